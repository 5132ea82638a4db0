"""The ledger in Redis against a simple model: calls of two gateways at once, retries, ends of windows, and a gateway that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headrace.adapters.ledger.redis import RedisLedger, RedisOptions
from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import Charge, Verdict
from headrace.testing import ManualClock
from support.quota_model import QuotaModel
from support.servers.redis import RedisServer, redis_server

ALMOST_MIDNIGHT = 1_700_092_800.0 - 200
LEASE_S = 60.0
WINDOWS = (
    Window("user:ann", Measure.REQUESTS, Period.MINUTE, 7),
    Window("user:ann", Measure.TOKENS, Period.MINUTE, 200),
    Window("user:ann", Measure.TOKENS, Period.DAY, 500),
    Window("key:k1", Measure.CONCURRENCY, Period.NOW, 4),
)
amounts = st.integers(0, 120)
which = st.integers(0, 50)
several = st.sets(st.integers(0, 3), min_size=1)
side = st.integers(0, 1)


def charges_of(amount: int, places: set[int]) -> list[Charge]:
    """Charges on the windows at *places*."""
    return [
        Charge(window, amount if window.measure is Measure.TOKENS else 1)
        for place, window in enumerate(WINDOWS)
        if place in places
    ]


class RedisLedgerMachine(RuleBasedStateMachine):
    """Calls are made in one turn of the loop, and then all are waited for: Redis sees them in the order of the calls as long
    as they come from one gateway, so those of the other one come when these are done."""

    def __init__(self, server: RedisServer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.server = server
        self.loop = loop
        self.clock = ManualClock(ALMOST_MIDNIGHT)
        self.model = QuotaModel()
        self.made = 0
        self.lapsed: set[str] = set()
        self.dying = False
        self.asked = self.heard = 0
        server.command("FLUSHALL")
        self.ledgers = [self.ledger(), self.ledger()]

    def run(self, work: Coroutine[object, object, object]) -> None:
        self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def ledger(self) -> RedisLedger:
        async def opened() -> RedisLedger:
            ledger = RedisLedger(self.server.url, self.clock, RedisOptions(timeout_s=20, lease_s=LEASE_S))
            await ledger.open()
            return ledger

        return self.loop.run_until_complete(opened())

    async def quiet(self) -> None:
        """Until Redis has answered everything."""
        for ledger in self.ledgers:
            told: asyncio.Future[Verdict] = self.loop.create_future()
            ledger.peek(WINDOWS, told.set_result)
            await told

    def reserve(self, by: int, amount: int, places: set[int]) -> None:
        self.made += 1
        reservation = f"r{self.made}"
        charges = charges_of(amount, places)
        refused = self.model.refused(charges, self.clock.now())
        gone = reservation in self.model.closed
        if not refused and not gone:
            self.model.reserve(reservation, charges, self.clock.now())
        self.asked += 1
        self.ledgers[by].reserve(reservation, charges, partial(self.hear, reservation, refused, gone))

    def hear(self, reservation: str, refused: tuple[Window, ...], gone: bool, verdict: Verdict) -> None:
        self.heard += 1
        if self.dying and verdict.unavailable:
            if not refused and not gone:
                self.model.reservations.pop(reservation)  # as if it had never been asked
            return
        assert bool(verdict.unavailable) == gone
        if not gone:
            assert verdict.refused == refused
        if refused:
            self.model.closed.add(reservation)

    @rule(by=side, many=st.lists(st.tuples(amounts, several), min_size=1, max_size=8))
    def reserve_several(self, by: int, many: list[tuple[int, set[int]]]) -> None:
        async def work() -> None:
            for amount, places in many:
                self.reserve(by, amount, places)
            await self.quiet()

        self.run(work())

    @precondition(lambda self: self.made)
    @rule(by=side, chosen=which)
    def reserve_again(self, by: int, chosen: int) -> None:
        """Open, refused or closed: nothing is charged for it."""
        reservation = f"r{chosen % self.made + 1}"

        async def work() -> None:
            self.ledgers[by].reserve(reservation, charges_of(50, {0, 1, 2, 3}), lambda _verdict: None)
            await self.quiet()

        known = reservation in self.model.reservations or reservation in self.model.closed
        if known and reservation not in self.lapsed:  # whoever hears that it is granted leases it anew
            self.run(work())

    def one(self, chosen: int) -> str:
        """An open reservation, or one that is closed or was never made."""
        open_ones = [name for name, one in self.model.reservations.items() if one.actual is None]
        if open_ones and chosen % 8:
            return open_ones[chosen % len(open_ones)]
        return f"r{chosen}"

    @precondition(lambda self: self.made)
    @rule(by=side, chosen=st.lists(which, max_size=4), actual=st.one_of(st.none(), amounts))
    def settle(self, by: int, chosen: list[int], actual: int | None) -> None:
        used = {} if actual is None else {Measure.TOKENS: actual}

        async def work() -> None:
            for each in chosen:
                reservation = self.one(each)
                self.model.settle(reservation, used)
                self.ledgers[by].settle(reservation, used)
            await self.quiet()

        self.run(work())

    @precondition(lambda self: self.made)
    @rule(by=side, chosen=which)
    def release(self, by: int, chosen: int) -> None:
        async def work() -> None:
            reservation = self.one(chosen)
            self.model.release(reservation)
            self.ledgers[by].release(reservation)
            await self.quiet()

        self.run(work())

    @rule(steps=st.integers(1, 4))
    def advance(self, steps: int) -> None:
        """Never past what is remembered of a closed reservation: Redis forgets that by its own clock, which stands still."""

        async def work() -> None:
            for _ in range(steps):
                self.clock.advance(19.0)
                await self.quiet()

        self.run(work())

    @rule()
    def die(self) -> None:
        """The first gateway is gone; another takes its place. What it reserved stays, what it ran lapses."""
        dead, leases = self.ledgers[0], set(self.ledgers[0]._running) - set(self.ledgers[1]._running)
        self.run(dead._pipe._tasks.close())
        self.run(dead.close())
        self.ledgers[0] = self.ledger()
        self.advance(4)
        for reservation in leases:
            if (one := self.model.reservations.get(reservation)) is not None:
                self.lapsed.add(reservation)
                one.amounts = {p: a for p, a in one.amounts.items() if p[1] is not Measure.CONCURRENCY}

    @invariant()
    def redis_agrees_with_the_model(self) -> None:
        assert self.asked == self.heard
        verdicts: list[Verdict] = []

        async def work() -> None:
            for ledger in self.ledgers:
                told: asyncio.Future[Verdict] = self.loop.create_future()
                ledger.peek(WINDOWS, told.set_result)
                verdicts.append(await told)

        self.run(work())
        now = self.clock.now()
        expected = [self.model.used(self.model.place(window, now)) for window in WINDOWS]
        assert [[standing.used for standing in verdict.standings] for verdict in verdicts] == [expected] * 2

    def teardown(self) -> None:
        for ledger in self.ledgers:
            self.run(ledger.close())


class DyingRedisMachine(RedisLedgerMachine):
    """The same, and Redis itself is killed at any moment, with calls on their way, and comes back with what it had written."""

    @rule(
        by=side,
        many=st.lists(st.tuples(amounts, several), max_size=5),
        chosen=st.lists(which, max_size=3),
        actual=amounts,
        turns=st.integers(0, 6),
    )
    def redis_dies(
        self, by: int, many: list[tuple[int, set[int]]], chosen: list[int], actual: int, turns: int
    ) -> None:
        """What was told as granted or settled counts, exactly once; what heard nothing of it counts not at all."""
        was_open = [self.one(each) for each in chosen] if self.made else []

        async def work() -> None:
            for reservation in was_open:
                self.model.settle(reservation, {Measure.TOKENS: actual})
                self.ledgers[by].settle(reservation, {Measure.TOKENS: actual})
            for amount, places in many:
                self.reserve(by, amount, places)
            for _ in range(turns):
                await asyncio.sleep(0)
            self.server.kill()
            while self.heard < self.asked or any(ledger.available for ledger in self.ledgers):
                for ledger in self.ledgers:
                    ledger.peek(WINDOWS, lambda _verdict: None)
                await asyncio.sleep(0.001)
            self.server.start()
            while not all(ledger.available and not ledger.unsettled for ledger in self.ledgers):
                self.clock.advance(0.5)
                await asyncio.sleep(0.001)
            await self.quiet()

        self.dying = True
        self.run(work())
        self.dying = False


@pytest.mark.slow
@pytest.mark.req("E03", "E15")
def test_redis_counts_as_the_model_does_however_often_it_dies(tmp_path: Path) -> None:
    with asyncio.Runner() as runner, redis_server(tmp_path / "redis") as server:

        class Machine(DyingRedisMachine):
            def __init__(self) -> None:
                super().__init__(server, runner.get_loop())

        run_state_machine_as_test(
            Machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
        )


@pytest.mark.slow
@pytest.mark.req("E03", "E15")
def test_redis_counts_as_the_model_does(redis: RedisServer) -> None:
    with asyncio.Runner() as runner:

        class Machine(RedisLedgerMachine):
            def __init__(self) -> None:
                super().__init__(redis, runner.get_loop())

        run_state_machine_as_test(
            Machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None)
        )
