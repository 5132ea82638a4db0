"""The ledger in a real Redis: what lies there under which names, and what outages of every kind do and don't cost."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from headrace.adapters.ledger.breaker import OnUnavailable
from headrace.adapters.ledger.redis import RedisLedger, RedisOptions
from headrace.domain.quota import Limits, Measure, Period
from headrace.kernel.errors import ConfigError
from headrace.ports.ledger import Charge, Verdict
from headrace.testing import ManualClock
from support.ledger_contract import NOON, peeked, places, reserved, used, window
from support.servers.redis import RedisServer, redis_server
from support.stepping_clock import SteppingClock
from support.waiting import until

TOKENS, REQUESTS = Measure.TOKENS, Measure.REQUESTS
PATIENT = RedisOptions(timeout_s=10.0)
HASTY = RedisOptions(timeout_s=0.3)  # where Redis is made not to answer
ALLOWING = RedisOptions(timeout_s=0.3, on_unavailable=OnUnavailable.ALLOW)
DAILY = window(10_000)
ALLOWANCE = 1_000  # of that limit


@contextlib.asynccontextmanager
async def opened(
    redis: RedisServer, options: RedisOptions = PATIENT, clock: ManualClock | None = None
) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(redis.url, clock or ManualClock(NOON), options)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def recover(ledger: RedisLedger, clock: ManualClock) -> None:
    """Let pauses pass until Redis answers, and has all that it was owed."""

    def tried() -> bool:
        clock.advance(0.5)
        return ledger.available and not ledger.unsettled

    await until(tried)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be harmed."""
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.mark.req("E16", "E17")
async def test_a_users_counts_lie_under_the_names_that_were_agreed(redis: RedisServer) -> None:
    windows = Limits(0, 100, 3_000, 0, 50_000, 900_000).windows("user:alice")
    async with opened(redis) as ledger:
        for n in range(3):
            charges = [(single, 1 if single.measure is REQUESTS else 400) for single in windows]
            assert (await reserved(ledger, f"r{n}", *charges)).granted
        ledger.settle("r0", {TOKENS: 150})
        await used(ledger, *windows)
    assert redis.get("user:alice:quota:daily:requests:used") == "3"
    assert redis.get("user:alice:quota:daily:requests:limit") == "100"
    assert redis.get("user:alice:quota:daily:tokens:used") == "950"
    assert redis.get("user:alice:quota:daily:tokens:limit") == "50000"
    assert redis.get("user:alice:quota:monthly:requests:used") == "3"
    assert redis.get("user:alice:quota:monthly:tokens:used") == "950"
    assert redis.get("user:alice:quota:monthly:tokens:limit") == "900000"


async def test_other_subjects_and_periods_follow_the_same_scheme(redis: RedisServer) -> None:
    async with opened(redis, RedisOptions(prefix="{hr}:", timeout_s=10)) as ledger:
        minute = window(60, REQUESTS, Period.MINUTE, "address:192.0.2.7")
        assert (
            await reserved(ledger, "r1", (minute, 1), (places(3), 2), (window(9, subject="key:ä"), 4))
        ).granted
    assert redis.get("{hr}:address:192.0.2.7:quota:minutely:requests:used") == "1"
    assert redis.get("{hr}:key:ä:quota:daily:tokens:used") == "4"
    assert redis.command("ZCARD", "{hr}:key:k1:quota:concurrency:leases") == b":2\r\n"


@pytest.mark.req("E17")
async def test_a_call_never_prolongs_a_window_and_nothing_stays_for_good(redis: RedisServer) -> None:
    clock = ManualClock(NOON)
    daily = "user:ann:quota:daily:tokens:used"
    async with opened(redis, clock=clock) as ledger:
        assert (await reserved(ledger, "r0", (DAILY, 1), (places(90), 1))).granted
        first = redis.ttl_s(daily)
        assert 12 * 3600 <= first <= 12 * 3600 + 60
        for n in range(1, 40):
            clock.advance(600)
            assert (await reserved(ledger, f"r{n}", (window(10_000 + n), 1), (places(90), 1))).granted
            ledger.settle(f"r{n}", {TOKENS: 2})
        ledger.release("never-made")
        assert (await reserved(ledger, "refused", (window(1), 1))).refused
        await used(ledger, DAILY)
        assert first - 60 <= redis.ttl_s(daily) <= first, (
            "it is as it was set, whatever the ledger's clock says"
        )
        keys = redis.command("KEYS", "*").split(b"\r\n")[2::2]
        assert len(keys) > 40
        assert all(0 <= redis.ttl_s(key.decode()) <= first for key in keys if key)


@pytest.mark.req("E03", "E15")
async def test_300_callers_of_three_gateways_get_exactly_the_50_that_there_are(redis: RedisServer) -> None:
    limited = window(50, REQUESTS)
    async with opened(redis) as one, opened(redis) as two, opened(redis) as three:
        verdicts = await asyncio.gather(
            *(reserved((one, two, three)[n % 3], f"r{n}", (limited, 1), (places(100), 1)) for n in range(300))
        )
        assert sum(verdict.granted for verdict in verdicts) == 50
        assert await used(two, limited, places(100)) == [50, 50]


async def test_another_gateway_can_settle_what_a_dead_one_reserved(redis: RedisServer) -> None:
    one, clock = RedisLedger(redis.url, ManualClock(NOON), PATIENT), ManualClock(NOON)
    await one.open()
    assert (await reserved(one, "r1", (DAILY, 500), (places(1), 1))).granted
    assert (await reserved(one, "r2", (DAILY, 500))).granted
    await one._pipe._tasks.close()
    async with opened(redis, clock=clock) as two:
        assert await used(two, DAILY, places(1)) == [1_000, 1]
        assert (await reserved(two, "r1", (DAILY, 500), (places(1), 1))).granted, "as the first was"
        two.settle("r1", {TOKENS: 20})
        two.release("r2")
        assert await used(two, DAILY, places(1)) == [20, 0]
    await one.close()


async def test_what_a_dead_gateway_had_running_is_counted_until_its_leases_lapse(redis: RedisServer) -> None:
    clock = ManualClock(NOON)
    one = RedisLedger(redis.url, ManualClock(NOON), PATIENT)
    await one.open()
    assert (await reserved(one, "r1", (places(1), 1))).granted
    await one._pipe._tasks.close()
    async with opened(redis, clock=clock) as two:
        clock.advance(59)
        assert not (await reserved(two, "r2", (places(1), 1))).granted
        clock.advance(1)
        assert (await reserved(two, "r3", (places(1), 1))).granted
    await one.close()


async def test_what_runs_is_counted_for_as_long_as_its_gateway_lives(redis: RedisServer) -> None:
    clock = ManualClock(NOON)
    async with opened(redis, clock=clock) as one, opened(redis, clock=clock) as two:
        assert (await reserved(one, "r1", (places(2), 1))).granted
        assert (await reserved(one, "r2", (places(2), 1))).granted
        two.settle("r2", {})
        for _ in range(30):
            clock.advance(20)
            await used(one, places(2))
        assert await used(two, places(2)) == [1], "what another gateway ended is not renewed"
        assert len(one._running) == 1


async def test_gateways_whose_clocks_differ_see_the_window_that_began_last(redis: RedisServer) -> None:
    slow, fast = SteppingClock(NOON), SteppingClock(NOON)
    fast.step(61)
    minute = window(100, period=Period.MINUTE)
    async with opened(redis, clock=slow) as behind, opened(redis, clock=fast) as ahead:
        assert (await reserved(behind, "r1", (minute, 90))).granted
        assert (await reserved(ahead, "r2", (minute, 70))).granted, "a minute of its own"
        late = await reserved(behind, "r3", (minute, 40))
        assert late.refused == (minute,)
        assert late.standings[0].resets_at == NOON + 120
        behind.settle("r1", {TOKENS: 10})
        assert await used(behind, minute) == [70]


async def test_a_frozen_redis_is_not_waited_for_and_what_reaches_it_late_is_not_charged(
    own: RedisServer,
) -> None:
    clock = ManualClock(NOON)
    async with opened(own, HASTY, clock) as ledger:
        assert (await reserved(ledger, "before", (DAILY, 100))).granted
        own.freeze()
        asked = [asyncio.ensure_future(reserved(ledger, f"r{n}", (DAILY, 100))) for n in range(300)]
        assert all(verdict.unavailable for verdict in await asyncio.gather(*asked))
        assert not ledger.available
        heard: list[Verdict] = []
        ledger.reserve("at once", [Charge(DAILY, 1)], heard.append)
        ledger.peek([DAILY], heard.append)
        assert [bool(verdict.unavailable) for verdict in heard] == [True, True]
        own.thaw()
        await recover(ledger, clock)
        assert await used(ledger, DAILY) == [100]
        assert (await reserved(ledger, "r1", (DAILY, 100))).granted, "that it was unavailable was no answer"
        assert await used(ledger, DAILY) == [200]


@pytest.mark.slow
@pytest.mark.req("E15")
async def test_what_is_settled_while_redis_is_frozen_counts_once(own: RedisServer) -> None:
    clock = ManualClock(NOON)
    async with opened(own, HASTY, clock) as ledger:
        for n in range(200):
            assert (await reserved(ledger, f"r{n}", (DAILY, 50), (places(500), 1))).granted
        own.freeze()
        for n in range(200):
            (ledger.settle if n % 2 else ledger.release)(f"r{n}", *([{TOKENS: 7}] if n % 2 else []))
        await until(lambda: not ledger.available)
        for _ in range(3):  # attempts that Redis will find in its socket, one after the other
            clock.advance(2)
            await until(lambda: clock.pending > 1)
        assert ledger.unsettled == 200
        own.thaw()
        await recover(ledger, clock)
        assert await used(ledger, DAILY, places(500)) == [700, 0]


async def test_a_redis_that_is_killed_and_comes_back_has_it_all(own: RedisServer) -> None:
    clock = ManualClock(NOON)
    async with opened(own, HASTY, clock) as ledger:
        assert (await reserved(ledger, "r1", (DAILY, 100))).granted
        assert (await reserved(ledger, "r2", (DAILY, 100))).granted
        own.kill()
        ledger.settle("r1", {TOKENS: 30})
        assert (await reserved(ledger, "r3", (DAILY, 1))).unavailable
        own.start()
        await recover(ledger, clock)
        assert await used(ledger, DAILY) == [130]
        own.kill()
        own.start()
        assert (await reserved(ledger, "r4", (DAILY, 1))).granted, "a connection that went stale is no outage"


async def test_a_redis_that_is_not_there_yet_is_waited_for(own: RedisServer) -> None:
    clock = ManualClock(NOON)
    own.kill()
    async with opened(own, HASTY, clock) as ledger:
        assert (await reserved(ledger, "r1", (DAILY, 1))).unavailable
        own.start()
        await recover(ledger, clock)
        assert (await reserved(ledger, "r1", (DAILY, 1))).granted


@pytest.mark.req("E15")
async def test_a_full_redis_takes_settlements_and_no_reservations(own: RedisServer) -> None:
    async with opened(own) as ledger:
        assert (await reserved(ledger, "r1", (DAILY, 100), (places(5), 1))).granted
        own.command("CONFIG", "SET", "maxmemory", "1")
        assert (await reserved(ledger, "r2", (DAILY, 100))).unavailable
        ledger.settle("r1", {TOKENS: 40})
        assert await used(ledger, DAILY, places(5)) == [40, 0]
        own.command("CONFIG", "SET", "maxmemory", "0")
        assert (await reserved(ledger, "r2", (DAILY, 100))).granted


async def test_while_redis_is_full_all_that_was_drawn_beforehand_can_be_used(own: RedisServer) -> None:
    clock = ManualClock(NOON)
    async with opened(own, ALLOWING, clock) as ledger:
        assert (await reserved(ledger, "before", (DAILY, 100))).granted
        await until(lambda: len(ledger._allowances.held) == 1)
        own.command("CONFIG", "SET", "maxmemory", "1")
        for n in range(5):
            assert (await reserved(ledger, f"r{n}", (DAILY, 200))).granted, (
                "the first one's end doesn't end it"
            )
            ledger.settle(f"r{n}", {TOKENS: 150})
        assert (await reserved(ledger, "beyond", (DAILY, 300))).unavailable
        assert ledger.available
        own.command("CONFIG", "SET", "maxmemory", "0")
        assert (await reserved(ledger, "after", (DAILY, 1))).granted
        assert await used(ledger, DAILY) in ([100 + 5 * 150 + 1], [100 + 5 * 150 + 1 + ALLOWANCE])


async def outage(own: RedisServer, ledger: RedisLedger, clock: ManualClock) -> None:
    """Redis is killed, and the ledger has noticed."""
    own.kill()
    await peeked(ledger, DAILY)
    assert not ledger.available


async def test_while_redis_is_away_what_was_drawn_beforehand_can_be_used_if_that_is_wanted(
    own: RedisServer,
) -> None:
    clock = ManualClock(NOON)
    async with opened(own, ALLOWING, clock) as ledger:
        assert (await reserved(ledger, "before", (DAILY, 100), (places(20), 1))).granted
        await until(lambda: len(ledger._allowances.held) == 2)
        assert await used(ledger, DAILY) == [100 + ALLOWANCE]
        await outage(own, ledger, clock)
        asked = [await reserved(ledger, f"r{n}", (DAILY, 400), (places(20), 1)) for n in range(4)]
        assert [verdict.granted for verdict in asked] == [True, True, False, False]
        assert asked[0] == await reserved(ledger, "r0", (DAILY, 400), (places(20), 1))
        assert asked[0].standings[0].remaining == 600
        assert (await peeked(ledger, DAILY)).standings[0].remaining == 200
        ledger.settle("r0", {TOKENS: 50})
        assert (await reserved(ledger, "r0", (DAILY, 1))).unavailable, "it is closed"
        assert (await reserved(ledger, "more", (DAILY, 500), (places(20), 1))).granted
        assert (await reserved(ledger, "other", (window(100, subject="user:eve"), 1))).unavailable
        ledger.settle("before", {TOKENS: 10})
        ledger.release("more")
        own.start()
        await recover(ledger, clock)
        assert await used(ledger, DAILY) == [10 + ALLOWANCE], "r1 is still open"
        ledger.settle("r1", {TOKENS: 60})
        assert await used(ledger, DAILY, places(20)) == [10 + 50 + 60, 0]


@pytest.mark.req("E15")
async def test_what_was_used_while_redis_was_away_is_charged_when_it_is_back(own: RedisServer) -> None:
    clock = ManualClock(NOON)
    async with opened(own, ALLOWING, clock) as ledger:
        assert (await reserved(ledger, "before", (DAILY, 100))).granted
        await until(lambda: len(ledger._allowances.held) == 1)
        await outage(own, ledger, clock)
        for n in range(5):
            assert (await reserved(ledger, f"r{n}", (DAILY, 500))).granted
            ledger.settle(f"r{n}", {TOKENS: 30})
        own.start()
        await recover(ledger, clock)
        assert await used(ledger, DAILY) == [100 + 5 * 30]
        assert ledger.open_reservations == 1


async def test_little_that_is_left_is_not_drawn_beforehand(redis: RedisServer) -> None:
    options = RedisOptions(timeout_s=10, on_unavailable=OnUnavailable.ALLOW)
    async with opened(redis, options) as ledger:
        assert (await reserved(ledger, "r1", (DAILY, DAILY.limit - 2 * ALLOWANCE))).granted
        assert await used(ledger, DAILY) == [DAILY.limit - 2 * ALLOWANCE]
        assert not ledger._allowances.held


async def test_what_was_drawn_beforehand_can_be_used_by_who_asks_for_the_last(redis: RedisServer) -> None:
    clock = ManualClock(NOON)
    options = RedisOptions(timeout_s=10, on_unavailable=OnUnavailable.ALLOW)
    async with opened(redis, options, clock) as ledger:
        assert (await reserved(ledger, "r1", (DAILY, 1))).granted
        await until(lambda: len(ledger._allowances.held) == 1)
        assert (await reserved(ledger, "r2", (DAILY, DAILY.limit - 1))).granted
        assert (await reserved(ledger, "r3", (DAILY, 1))).refused == (DAILY,)
        assert await used(ledger, DAILY) == [DAILY.limit]


async def test_what_was_drawn_and_lies_idle_is_given_back(redis: RedisServer) -> None:
    clock = ManualClock(NOON)
    options = RedisOptions(timeout_s=10, on_unavailable=OnUnavailable.ALLOW)
    async with opened(redis, options, clock) as ledger:
        assert (await reserved(ledger, "r1", (DAILY, 1), (window(500, period=Period.MINUTE), 1))).granted
        await until(lambda: len(ledger._allowances.held) == 2)
        for _ in range(32):
            clock.advance(20)
            await used(ledger, DAILY)
        assert await used(ledger, DAILY) == [1]
        assert not ledger._allowances.held
        assert (await reserved(ledger, "r2", (DAILY, 1))).granted
        await until(lambda: len(ledger._allowances.held) == 1)
    async with opened(redis, clock=clock) as another:
        assert await used(another, DAILY) == [2], "and what is held is given back at the end"


async def test_300_callers_get_exactly_50_also_where_something_is_drawn_beforehand(
    redis: RedisServer,
) -> None:
    options = RedisOptions(timeout_s=10, on_unavailable=OnUnavailable.ALLOW)
    limited = window(50, REQUESTS)
    async with opened(redis, options) as ledger:
        verdicts = await asyncio.gather(*(reserved(ledger, f"r{n}", (limited, 1)) for n in range(300)))
        assert sum(verdict.granted for verdict in verdicts) == 50


async def test_no_more_is_open_than_may_be(redis: RedisServer) -> None:
    clock = ManualClock(NOON)
    async with opened(redis, RedisOptions(timeout_s=10, most_open=3), clock) as ledger:
        for n in range(3):
            assert (await reserved(ledger, f"r{n}", (DAILY, 1))).granted
        assert (await reserved(ledger, "r3", (DAILY, 1))).unavailable
        ledger.settle("r0", {})
        await used(ledger, DAILY)
        assert (await reserved(ledger, "r3", (DAILY, 1))).granted
        clock.advance(3601)
        assert (await reserved(ledger, "r4", (DAILY, 1))).granted, "others have settled those, or nobody will"


async def test_no_more_wait_than_may(redis: RedisServer) -> None:
    async with opened(redis, RedisOptions(timeout_s=10, most_waiting=5)) as ledger:
        verdicts = await asyncio.gather(*(reserved(ledger, f"r{n}", (DAILY, 1)) for n in range(8)))
        assert [bool(verdict.unavailable) for verdict in verdicts] == [False] * 5 + [True] * 3
        assert await used(ledger, DAILY) == [5]


@pytest.mark.parametrize("timeout_s", [0.3, 30])
async def test_closing_does_not_hang_with_a_redis_that_does(own: RedisServer, timeout_s: float) -> None:
    ledger = RedisLedger(own.url, ManualClock(NOON), RedisOptions(timeout_s=timeout_s, close_s=0.5))
    await ledger.open()
    assert (await reserved(ledger, "r1", (DAILY, 1))).granted
    own.freeze()
    ledger.settle("r1", {})
    asked = asyncio.ensure_future(reserved(ledger, "r2", (DAILY, 1)))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await ledger.close()
    assert (await asked).unavailable
    assert ledger.unsettled >= 1


async def test_a_listener_that_raises_harms_nobody_else(redis: RedisServer) -> None:
    def broken(verdict: Verdict) -> None:
        raise RuntimeError("listener")

    async with opened(redis) as ledger:
        ledger.reserve("r1", [Charge(DAILY, 1)], broken)
        assert (await reserved(ledger, "r2", (DAILY, 1))).granted


async def test_a_url_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="Redis URL"):
        RedisLedger("http://127.0.0.1:1/", ManualClock(NOON))


def test_without_the_extra_the_error_names_it() -> None:
    code = "import sys; sys.modules['redis'] = None; import headrace.adapters.ledger.redis"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError" in done.stderr
    assert "headrace[redis]" in done.stderr
