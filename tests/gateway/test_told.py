"""What a client is told, on both lanes: the same is recorded and counted, and its heads tell which way it went."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from headrace.adapters.ledger.memory import LedgerOptions, MemoryLedger
from headrace.control.access import digest
from headrace.domain.access import Principal, Scope
from headrace.domain.quota import UNLIMITED, Limits, entry_and_tokens
from headrace.gateway.guard import AddressGuard
from headrace.gateway.problems import problem
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import (
    LimitExceeded,
    ModelHidden,
    ModelNotFound,
    RequestError,
    Unavailable,
    code_of,
)
from headrace.testing.fake_engine import Cut, FakeEngine, Fault, Hang, Refuse, Script
from headrace.testing.journal import MemoryJournal
from headrace.testing.records import MemoryRecords
from support.administration import NOON
from support.events import KeptEvents
from support.house import House, Quota, gateway
from support.raw import RawClient, RawResponse, call
from support.waiting import until

CHAT = "/v1/chat/completions"
KEY, ROOT = "sk-metered", "sk-root"
LANES = pytest.mark.parametrize("asgi", [False, True], ids=["token lane", "asgi lane"])


class NoonClock(SystemClock):
    """It is always noon in the middle of a month: no window ends while a test is looking."""

    def now(self) -> float:
        """UTC epoch seconds."""
        return NOON


def principal(limits: Limits = UNLIMITED, models: tuple[str, ...] = ()) -> Principal:
    entry, tokens = entry_and_tokens(limits.windows("key:key_metered"))
    return Principal("key_metered", user="ann", models=models, entry=entry, tokens=tokens)


def body(model: str = "fake", *, stream: bool = False, max_tokens: int = 2) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps(
        {"model": model, "messages": messages, "stream": stream, "max_tokens": max_tokens}
    ).encode()


@dataclass
class Stage:
    """A gateway that holds `KEY` to limits and keeps records, in front of one engine."""

    house: House
    engine: FakeEngine
    records: MemoryRecords
    journal: MemoryJournal
    events: KeptEvents

    def admit(self, who: Principal) -> None:
        root = Principal("key_root", frozenset({Scope.ADMIN}))
        self.house.keys.replace_managed({digest(KEY.encode()): who, digest(ROOT.encode()): root})

    async def ask(self, data: bytes | None = None) -> RawResponse:
        return await call(self.house.port, "POST", CHAT, {"authorization": f"Bearer {KEY}"}, data or body())

    async def refusals(self) -> dict[str, int]:
        """What `/metrics` says of them, by code."""
        told = await call(self.house.port, "GET", "/metrics", {"authorization": f"Bearer {ROOT}"})
        lines = [
            line.split()
            for line in told.body.decode().splitlines()
            if line.startswith("headrace_refusals_total{")
        ]
        return {name.split('"')[1]: int(float(count)) for name, count in lines}


@contextlib.asynccontextmanager
async def staged(
    *, asgi: bool, secret_models: bool = False, capacity: int = 64, wait_s: float = 5.0
) -> AsyncIterator[Stage]:
    journal, records, events = MemoryJournal(), MemoryRecords(), KeptEvents()
    clock = NoonClock()
    ledger = MemoryLedger(journal, clock, LedgerOptions(wait_s=wait_s))
    await ledger.open()
    quota = Quota(ledger, clock, records, secret_models)
    guard = AddressGuard(0, events)
    try:
        async with (
            FakeEngine(Script(tokens=2)) as engine,
            gateway(engine.url, asgi=asgi, quota=quota, capacity=capacity, guard=guard) as house,
        ):
            stage = Stage(house, engine, records, journal, events)
            stage.admit(principal())
            yield stage
    finally:
        await ledger.close()


def kinds(base: type[RequestError] = RequestError) -> list[type[RequestError]]:
    return [kind for sub in base.__subclasses__() for kind in (sub, *kinds(sub))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_the_code_that_is_kept_is_the_one_in_the_envelope(kind: type[RequestError]) -> None:
    given: dict[str, dict[str, object]] = {
        "LimitExceeded": {"code": "insufficient_quota", "retry_after_s": 1.0},
        "MethodNotAllowed": {"allowed": ["GET"]},
        "UpstreamRefused": {"status": 422},
    }
    error = kind("what", **given.get(kind.__name__, {}))  # type: ignore[arg-type]
    assert json.loads(problem(error).body)["error"]["code"] == (code_of(error) or None)
    assert code_of(error).islower() or kind.__name__ in ("InvalidRequest", "UpstreamRefused")


REFUSED = '{"error": {"message": "no", "code": "said_by_the_backend"}}'
TURNS: dict[str, tuple[Principal, Fault | None, bytes, int, str | None]] = {
    "no such model": (principal(), None, body("nowhere"), 404, "model_not_found"),
    "a denied model": (principal(models=("other",)), None, body(), 403, "model_not_allowed"),
    "too many tokens": (principal(Limits(tokens_per_minute=1)), None, body(), 429, "rate_limit_exceeded"),
    "the backend broke": (principal(), Cut(), body(), 502, "upstream_failed"),
    "the backend refused": (principal(), Refuse(400, REFUSED), body(), 400, "said_by_the_backend"),
    "and gave no code": (principal(), Refuse(422, '{"error": {"message": "no"}}'), body(), 422, None),
}  # fmt: skip


@pytest.mark.req("C08", "C34", "C47")
@pytest.mark.parametrize("turn", TURNS)
@LANES
async def test_what_is_told_is_recorded_and_counted(asgi: bool, turn: str) -> None:
    who, fault, data, status, code = TURNS[turn]
    async with staged(asgi=asgi) as stage:
        stage.admit(who)
        stage.engine.script = Script(tokens=2, fault=fault)
        told = await stage.ask(data)
        assert (told.status, told.error["code"]) == (status, code)
        [record] = await stage.records.recent(9)
        assert (record.http_status, record.error) == (status, code or "")
        assert (record.client, record.user_id, record.key_id) == ("127.0.0.1", "ann", "key_metered")
        assert record.latency_ms > 0
        assert record.status in ("refused", "failed")
        assert await stage.refusals() == ({} if turn.endswith(("refused", "code")) else {code: 1})


@pytest.mark.req("C34")
@LANES
async def test_an_answer_that_breaks_under_way_is_a_200_with_the_code_of_its_last_event(asgi: bool) -> None:
    async with staged(asgi=asgi) as stage:
        stage.engine.script = Script(tokens=2, fault=Cut(1))
        told = await stage.ask(body(stream=True))
        event = told.body.decode().strip().split("\n\n")[-1].removeprefix("data: ")
        [record] = await stage.records.recent(9)
        assert json.loads(event)["error"]["code"] == record.error == "upstream_failed"
        assert (told.status, record.http_status, record.status) == (200, 200, "failed")


@pytest.mark.req("E03", "C34")
@LANES
async def test_a_ledger_that_is_away_is_recorded_as_it_is_told(asgi: bool) -> None:
    """At the door, and once there is a place already."""
    for limits in (Limits(requests_per_day=9), Limits(tokens_per_day=9_000_000)):
        async with staged(asgi=asgi, wait_s=0.05) as stage:
            stage.admit(principal(limits))
            stage.journal.hold()
            told = await stage.ask()
            assert (told.status, told.error["code"]) == (503, "quota_unavailable")
            assert told.headers["retry-after"] == "1"
            assert "x-should-retry" not in told.headers
            [record] = await stage.records.recent(9)
            assert (record.http_status, record.error) == (503, "quota_unavailable")
            assert await stage.refusals() == {"quota_unavailable": 1}
            stage.journal.let_go()


@pytest.mark.req("E03", "E07")
@pytest.mark.compliance("O51")
@pytest.mark.parametrize("stream", [False, True])
@LANES
async def test_the_heads_of_an_answer_tell_how_its_limits_stand(asgi: bool, stream: bool) -> None:
    async with staged(asgi=asgi) as stage:
        stage.admit(principal(Limits(requests_per_minute=50, requests_per_day=60, tokens_per_day=1000)))
        for _ in range(2):
            told = await stage.ask(body(stream=stream))
            assert told.status == 200
        told_of = {name: value for name, value in told.headers.items() if name.startswith("x-ratelimit-")}
        assert told_of.pop("x-ratelimit-reset-requests").endswith("s")
        assert told_of.pop("x-ratelimit-reset-tokens").endswith("s")
        assert 0 < int(told_of.pop("x-ratelimit-remaining-tokens")) < 1000
        assert told_of == {
            "x-ratelimit-limit-requests": "50",
            "x-ratelimit-remaining-requests": "48",
            "x-ratelimit-limit-tokens": "1000",
        }
        assert (told.headers["x-headrace-node"], told.headers["x-headrace-attempts"]) == ("b0", "1")
        assert 0 <= float(told.headers["x-headrace-overhead-ms"]) < 60_000
        assert "x-headrace-queue-position" not in told.headers


@pytest.mark.req("E03")
@pytest.mark.parametrize("stream", [False, True])
@LANES
async def test_who_has_no_limits_is_told_of_none(asgi: bool, stream: bool) -> None:
    async with staged(asgi=asgi) as stage:
        told = await stage.ask(body(stream=stream))
        assert told.status == 200
        assert not [name for name in told.headers if name.startswith("x-ratelimit-")]


@pytest.mark.parametrize("stream", [False, True])
@LANES
async def test_who_waited_is_told_where_in_the_queue(asgi: bool, stream: bool) -> None:
    async with staged(asgi=asgi, capacity=1) as stage, RawClient(stage.house.port) as first:
        stage.engine.once(Script(tokens=2, fault=Hang(0)))
        first.request("POST", CHAT, {"authorization": f"Bearer {KEY}"}, body(stream=True))
        await stage.engine.until(lambda stats: stats.active == 1)
        waiting = asyncio.ensure_future(stage.ask(body(stream=stream)))
        await until(lambda: stage.house.control.waiting == 1)
        stage.engine.release()
        told = await waiting
        assert told.status == 200
        assert told.headers["x-headrace-queue-position"] == "1"
        assert float(told.headers["x-headrace-queued-ms"]) >= 0


@pytest.mark.req("E07")
@pytest.mark.compliance("O42")
@LANES
async def test_when_to_come_again_and_when_not_to(asgi: bool) -> None:
    never, soon = (None, "false"), (range(60, 61), None)
    cases: list[tuple[Limits, int, tuple[range | None, str | None], str]] = [
        (Limits(requests_per_minute=1), 2, soon, "rate_limit_exceeded"),
        (Limits(concurrency=1), 2, (range(1, 2), None), "rate_limit_exceeded"),
        (Limits(tokens_per_minute=50), 1_000, never, "rate_limit_exceeded"),
        (Limits(tokens_per_month=50), 1_000, never, "insufficient_quota"),
        (Limits(requests_per_month=1), 2, (range(14 * 86_400, 16 * 86_400), "false"), "insufficient_quota"),
    ]
    for limits, max_tokens, (wait, retry), code in cases:
        async with staged(asgi=asgi) as stage, RawClient(stage.house.port) as first:
            stage.admit(principal(limits))
            if max_tokens == 2:  # one takes all there is, and is still running
                stage.engine.once(Script(tokens=2, fault=Hang(0)))
                first.request("POST", CHAT, {"authorization": f"Bearer {KEY}"}, body(stream=True))
                await stage.engine.until(lambda stats: stats.active == 1)
            told = await stage.ask(body(max_tokens=max_tokens))
            assert (told.status, told.error["code"]) == (429, code), limits
            assert told.headers.get("x-should-retry") == retry, limits
            after = told.headers.get("retry-after")
            assert after is None if wait is None else int(after or 0) in wait, limits


def test_a_wait_that_no_client_waits_for_is_told_as_one_that_is_pointless() -> None:
    def heads(error: RequestError) -> tuple[bytes | None, bytes | None]:
        told = problem(error).headers
        return told.get(b"retry-after"), told.get(b"x-should-retry")

    exceeded: Callable[[float | None], RequestError] = lambda wait_s: LimitExceeded(  # noqa: E731
        "x", code="rate_limit_exceeded", retry_after_s=wait_s
    )
    assert heads(exceeded(120.0)) == (b"120", None)
    assert heads(exceeded(120.5)) == (b"121", b"false")
    assert heads(exceeded(None)) == (None, b"false")
    assert heads(Unavailable("x", retry_after_s=0.2)) == (b"1", None)
    assert heads(Unavailable("x")) == (None, None)


@pytest.mark.req("D49", "C09")
@pytest.mark.parametrize("secret", [False, True], ids=["told", "secret"])
@LANES
async def test_a_denied_model_is_an_event_however_it_is_asked_for(asgi: bool, secret: bool) -> None:
    """403 on inference, 404 where models are secret: and then it looks like one that was never there. It never is in the list."""
    async with staged(asgi=asgi, secret_models=secret) as stage:
        stage.admit(principal(models=("other*",)))
        auth = {"authorization": f"Bearer {KEY}"}
        there, absent = await stage.ask(body("fake")), await stage.ask(body("fuke"))
        expected = (404, "model_not_found") if secret else (403, "model_not_allowed")
        assert (there.status, there.error["code"]) == expected
        assert there.error["message"].replace("fake", "fuke") == absent.error["message"]
        assert stage.events.actions == ["security.access_denied"] * 2
        assert stage.events.written[0]["key_id"] == "key_metered"
        assert stage.events.written[0]["code"] == expected[1]
        stage.events.written.clear()
        one, none = [
            await call(stage.house.port, "GET", f"/v1/models/{name}", auth) for name in ("fake", "fuke")
        ]
        assert (one.status, one.error["code"]) == (404, "model_not_found")
        assert one.body.replace(b"fake", b"fuke") == none.body
        assert stage.events.actions == ["security.access_denied"] * 2
        facts = {"address": "127.0.0.1", "key_id": "key_metered", "code": "model_not_found"}
        assert facts.items() <= stage.events.written[0].items()
        stage.events.written.clear()
        unknown = await call(stage.house.port, "GET", "/v1/models/other-1", auth)
        assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
        assert (await call(stage.house.port, "GET", "/v1/models", auth)).json["data"] == []
        assert stage.events.written == [], "what it may use and isn't there is no attack"


def test_a_hidden_model_is_told_in_the_words_for_one_that_is_not_there() -> None:
    assert problem(ModelHidden("m", ["n"])) == problem(ModelNotFound("m", ["n"]))


@pytest.mark.req("D49")
@LANES
async def test_refusals_of_one_key_fill_no_log(asgi: bool) -> None:
    async with staged(asgi=asgi) as stage:
        stage.admit(principal(models=("other",)))
        async with RawClient(stage.house.port) as client:
            for number in range(20):
                path = "/v1/models/fake" if number % 2 else CHAT
                data = None if number % 2 else body()
                client.request("GET" if number % 2 else "POST", path, {"x-api-key": KEY}, data)
                assert (await client.response()).status in (403, 404)
        assert len(stage.events.written) == 5
        assert sum(stage.events.seen.values()) == 20
