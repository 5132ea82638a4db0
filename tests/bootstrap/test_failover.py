"""What becomes of a request whose backend fails: who answers it, how often it is executed, what its client is told, and what is
recorded of it. The backends count."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.testing.fake_engine import Cut, ErrorEvent, FakeEngine, Garbage, Hang, Refuse, Script
from support.composed import Composed, composed
from support.raw import RawResponse
from support.waiting import until

HTML = Refuse(200, "<html>", {"Content-Type": "text/html"})
PLENTY = Script(tokens=200, interval_s=0.05)
FREE, TOLD, BEGUN = "free", "told", "begun"
"""What is known: it wasn't begun; it is the request that is refused; it may have been executed."""


@dataclass(frozen=True)
class Failing:
    """How a backend fails; script None: it is gone since it was last asked how it is. kind: what is known then. seen: whether a stream's client has seen a part of the answer by then. status,
    code: what the client is told where there is no other execution. executions: of the failing backend."""

    script: Script | None
    kind: str = BEGUN
    seen: bool = False
    status: int = 502
    code: str = "upstream_failed"
    executions: int = 1


SLOW = {"status": 504, "code": "upstream_timeout"}
FAILURES = {
    "refuses connections": Failing(None, FREE, executions=0),
    "is cut before the head": Failing(Script(fault=Cut(-1))),
    "500": Failing(Script(fault=Refuse(500)), executions=0),
    "502": Failing(Script(fault=Refuse(502)), executions=0),
    "503": Failing(Script(fault=Refuse(503)), executions=0),
    "503, loading": Failing(Script(loading=True), FREE, executions=0),
    "429, later": Failing(Script(fault=Refuse(429, headers={"Retry-After": "1"})), FREE, executions=0),
    "401": Failing(Script(api_key="another"), FREE, executions=0),
    "400": Failing(Script(fault=Refuse(400)), TOLD, status=400, code="", executions=0),
    "200, a page": Failing(Script(fault=HTML), executions=0),
    "garbage": Failing(Script(fault=Garbage(0))),
    "garbage under way": Failing(Script(fault=Garbage(3)), seen=True),
    "is cut under way": Failing(Script(fault=Cut(3)), seen=True),
    "an error under way": Failing(Script(fault=ErrorEvent(3)), seen=True),
    "hangs before the head": Failing(Script(fault=Hang(-1)), **SLOW),  # type: ignore[arg-type]
    "hangs under way": Failing(Script(fault=Hang(3)), seen=True, **SLOW),  # type: ignore[arg-type]
    "never comes to an end": Failing(PLENTY, seen=True, **SLOW),  # type: ignore[arg-type]
}
ROUTE = """
[[routes]]
model = "m"
selector = "node:bad"
reruns = {reruns}
timeouts = {{ connect = "5s", first_byte = "400ms", idle = "400ms", total = "1s" }}
[[routes.fallbacks]]
selector = "node:good"
when_busy = true
[[upstreams]]
name = "bad"
url = "{bad}"
models = ["m"]
[[upstreams]]
name = "good"
url = "{good}"
models = ["m"]
"""


@dataclass
class House:
    """The service, and its backends: `bad` fails as each model's script says."""

    service: Composed
    bad: FakeEngine
    good: FakeEngine

    def executions(self, response: RawResponse) -> tuple[int, int]:
        """How often the bad one began the request, and the good one."""
        request_id = response.headers["x-request-id"]
        return tuple(engine.stats.executions.get(request_id, 0) for engine in (self.bad, self.good))  # type: ignore[return-value]


@contextlib.asynccontextmanager
async def failing_house(home: Path, failing: Failing, reruns: bool) -> AsyncIterator[House]:
    """The service with a route from a backend that fails to one that doesn't."""
    by_model = {"m": failing.script} if failing.script else {}
    async with (
        FakeEngine(Script(tokens=4), by_model=by_model) as bad,
        FakeEngine(Script(tokens=4)) as good,
        composed(home, ROUTE.format(reruns=str(reruns).lower(), bad=bad.url, good=good.url)) as service,
    ):
        await service.ready("bad", "good")
        if failing.script is None:
            await bad.stop()
        yield House(service, bad, good)


def ends_in_an_error(answer: bytes) -> str:
    """The code of the one error event at the end of a stream."""
    events = answer.removesuffix(b"\n\n").split(b"\n\n")
    errors = [event for event in events if b'"error"' in event]
    assert errors == events[-1:]
    assert b"[DONE]" not in answer
    return str(json.loads(errors[0].removeprefix(b"data: "))["error"]["code"])


@pytest.mark.slow
@pytest.mark.req("R03")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("reruns", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("name", FAILURES)
async def test_who_answers_when_a_backend_fails_and_how_often_it_is_executed(
    tmp_path: Path, name: str, reruns: bool, stream: bool
) -> None:
    failing = FAILURES[name]
    broken = stream and failing.seen
    moves = failing.kind == FREE or (failing.kind == BEGUN and reruns and not broken)
    async with failing_house(tmp_path, failing, reruns) as house:
        answer = await house.service.ask("m", stream=stream)
        record = await house.service.record(answer.headers["x-request-id"])
    assert house.executions(answer) == (failing.executions, int(moves))
    assert record["executions"] == int(failing.kind != FREE) + int(moves)
    if moves:
        assert (answer.status, answer.headers["x-headrace-node"]) == (200, "good")
        assert answer.headers["x-headrace-attempts"] == "2"
        assert b"tok3" in answer.body
        assert (record["status"], record["node"]) == ("completed", "good")
    elif broken:
        assert answer.status == 200
        assert ends_in_an_error(answer.body) == failing.code
        assert (record["status"], record["http_status"], record["error"]) == ("failed", 200, failing.code)
    else:
        assert answer.status == failing.status
        assert (answer.error["code"] or "") == failing.code
        assert (record["status"], record["http_status"]) == ("failed", failing.status)


def upstream(name: str, url: str, more: str = "") -> str:
    return f'[[upstreams]]\nname = "{name}"\nurl = "{url}"\nmodels = ["m"]\n{more}\n'


HUNG = Script(fault=Hang(-1))
STUCK = Script(fault=Hang(3))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "limit"),
    [(HUNG, "first_byte"), (STUCK, "idle"), (PLENTY, "total")],
    ids=["first_byte", "idle", "total"],
)
@pytest.mark.parametrize("whose", ["backend", "route", "route against its backend"])
async def test_a_backend_that_hangs_keeps_its_slot_for_its_time_and_no_longer(
    tmp_path: Path, script: Script, limit: str, whose: str, stream: bool
) -> None:
    """One slot, and one who waits for it: as soon as the time of the first is over, the other is served there."""
    short, long = f'timeouts = {{ {limit} = "300ms" }}', f'timeouts = {{ {limit} = "300s" }}'
    backend = {"backend": short, "route": "", "route against its backend": long}[whose]
    route = "" if whose == "backend" else f'[[routes]]\nmodel = "m"\n{short}\n'
    async with FakeEngine(Script(tokens=2, slots=1)) as engine:
        engine.once(script)
        text = upstream("only", engine.url, f"capacity = 1\n{backend}") + route
        async with composed(tmp_path, text) as service:
            first = asyncio.ensure_future(service.ask("m", stream=stream))
            await engine.until(lambda stats: stats.active == 1)
            second = await service.ask("m", stream=stream)
            late = await first
        assert (second.status, second.headers["x-headrace-node"]) == (200, "only")
        assert second.headers["x-headrace-queue-position"] == "1"
        if stream and limit != "first_byte":
            assert ends_in_an_error(late.body) == "upstream_timeout"
        else:
            assert (late.status, late.error["code"]) == (504, "upstream_timeout")
        await until(lambda: engine.stats.active == 0)
        assert engine.stats.aborted == 1, "it was stopped: it works for nobody"


@pytest.mark.slow
async def test_a_route_may_give_more_time_than_its_backend_has_by_itself(tmp_path: Path) -> None:
    slow = Script(tokens=2, delay_s=1.0)
    async with FakeEngine(slow) as engine:
        limits = 'timeouts = { first_byte = "100ms", total = "200ms" }'
        patient = (
            '[[routes]]\nmodel = "patient"\ntarget = "m"\ntimeouts = { first_byte = "60s", total = "60s" }\n'
        )
        async with composed(tmp_path, upstream("only", engine.url, limits) + patient) as service:
            assert (await service.ask("m", stream=True)).status == 504
            assert (await service.ask("patient", stream=True)).status == 200


@pytest.mark.slow
async def test_a_request_that_several_lose_is_executed_five_times_at_most(tmp_path: Path) -> None:
    engines = [FakeEngine(Script(fault=Refuse(500))) for _ in range(8)]
    for engine in engines:
        await engine.start()
    text = "".join(upstream(f"b{number}", engine.url) for number, engine in enumerate(engines))
    try:
        async with composed(tmp_path, f'{text}[[routes]]\nmodel = "m"\nreruns = true\n') as service:
            answer = await service.ask("m")
            assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
            record = await service.record(answer.headers["x-request-id"])
    finally:
        for engine in engines:
            await engine.stop()
    refused = [engine.stats.refused for engine in engines]
    assert max(refused) == 1, "never the same one twice"
    assert sum(refused) == record["executions"] <= 5
    assert record["executions"] > 1
