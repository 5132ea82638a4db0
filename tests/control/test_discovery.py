"""Backends are found, lost, found again, and asked what they hold; no inference request is spent on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from headrace.connectors.openai import OpenAIKind
from headrace.control.discovery import Discovery, Pace, Watched
from headrace.control.registry import Registry
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.kernel.clock import SystemClock
from headrace.ports.backend import BackendSpec, Prober, Report, Unwell
from headrace.testing.fake_engine import FakeEngine, Script
from support.waiting import until

QUICK = Pace(interval_s=0.05, first_retry_s=0.02, loading_s=0.02, soon_s=0.01)
NEVER = Pace(interval_s=1000.0, first_retry_s=1000.0, loading_s=1000.0, soon_s=0.01)
A = (ModelInfo("a"),)


class Watch:
    """A registry that is kept true about one backend, `b`."""

    def __init__(self, registry: Registry, discovery: Discovery) -> None:
        self.registry = registry
        self.discovery = discovery

    @property
    def state(self) -> NodeState | None:
        node = self.registry.get("b")
        return node.state if node else None

    @property
    def models(self) -> list[str]:
        return [info.id for info in self.registry.models()]


@contextlib.asynccontextmanager
async def watching(url: str, *, models: tuple[str, ...] = (), optional: bool = False) -> AsyncIterator[Watch]:
    registry = Registry()
    connector, prober = OpenAIKind().open(BackendSpec("b", url, models=models), SystemClock())
    discovery = Discovery(registry, pace=QUICK)
    await discovery.start([Watched(Node("b", "direct"), prober, models, optional=optional)], first_round_s=10)
    try:
        yield Watch(registry, discovery)
    finally:
        await discovery.close()
        await connector.close()


@pytest.mark.req("C04")
async def test_models_are_known_when_the_start_is_over_and_followed_afterwards() -> None:
    async with FakeEngine(Script(models=("a", "b/c"))) as engine, watching(engine.url) as watch:
        assert watch.state is NodeState.READY
        assert watch.models == ["a", "b/c"]
        engine.script = Script(models=("a", "new"))
        await until(lambda: watch.models == ["a", "new"])
        assert engine.stats.started == 0


async def test_named_models_count_whatever_the_backend_lists() -> None:
    async with (
        FakeEngine(Script(models=("a", "b"))) as engine,
        watching(engine.url, models=("only",)) as watch,
    ):
        assert watch.models == ["only"]


async def test_a_backend_that_goes_and_comes_back_is_followed() -> None:
    engine = FakeEngine(Script(models=("a",)))
    await engine.start()
    async with watching(engine.url) as watch:
        await engine.stop()
        await until(lambda: watch.state is NodeState.DOWN)
        assert watch.models == ["a"], "what it had is remembered: its model is unavailable, not unknown"
        await engine.start()
        await until(lambda: watch.state is NodeState.READY)
        await engine.stop()


async def test_who_could_not_use_it_makes_it_count_as_down_until_it_answers() -> None:
    async with FakeEngine(Script(models=("a",))) as engine, watching(engine.url) as watch:
        watch.discovery.unreachable("b", "refused")
        assert watch.state is NodeState.DOWN
        await until(lambda: watch.state is NodeState.READY)
        watch.discovery.unreachable("nobody", "refused")


async def test_a_backend_that_loads_counts_as_loading_until_it_has() -> None:
    async with FakeEngine(Script(models=("a",), loading=True)) as engine, watching(engine.url) as watch:
        assert watch.state is NodeState.LOADING
        engine.script = Script(models=("a",))
        await until(lambda: watch.state is NodeState.READY)


@pytest.mark.req("C26")
async def test_one_that_may_not_be_there_appears_when_it_answers_and_goes_without_a_fault() -> None:
    engine = FakeEngine(Script(models=("a",)))
    await engine.start()
    await engine.stop()
    async with watching(engine.url, optional=True) as watch:
        assert watch.state is None
        await engine.start()
        await until(lambda: watch.state is NodeState.READY)
        assert watch.models == ["a"]
        await engine.stop()
        await until(lambda: watch.state is None)
        assert watch.models == []


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"data":[{"id":5}]}', b"[" * 9999])
async def test_garbage_is_not_taken_for_a_list(body: bytes) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with watching(f"http://127.0.0.1:{port}") as watch:
            assert watch.state is NodeState.DOWN
            assert watch.models == []


@dataclass
class Said(Prober):
    """Says what the test says, and counts the looks."""

    report: Report | Exception = field(default_factory=lambda: Report(models=A))
    looks: int = 0
    running: Counter[str] = field(default_factory=Counter)
    gate: asyncio.Event | None = None

    async def look(self) -> Report:
        self.looks += 1
        self.running["now"] += 1
        self.running["most"] = max(self.running["most"], self.running["now"])
        try:
            if self.gate is not None:
                await self.gate.wait()
            if isinstance(self.report, Exception):
                raise self.report
            return self.report
        finally:
            self.running["now"] -= 1


@contextlib.asynccontextmanager
async def told(
    said: Said, *, pace: Pace = QUICK, models: tuple[str, ...] = (), capacity: int | None = None
) -> AsyncIterator[tuple[Registry, Discovery]]:
    registry = Registry()
    discovery = Discovery(registry, pace=pace)
    await discovery.start(
        [Watched(Node("b", "direct", capacity=7), said, models, capacity)], first_round_s=10
    )
    try:
        yield registry, discovery
    finally:
        await discovery.close()


def node(registry: Registry) -> Node:
    found = registry.get("b")
    assert found is not None
    return found


async def test_what_it_says_of_itself_is_in_the_registry() -> None:
    said = Said(Report(models=A, loaded=frozenset({"a"}), slots=3))
    async with told(said) as (registry, _):
        assert (node(registry).capacity, node(registry).loaded) == (3, frozenset({"a"}))
        assert node(registry).since > 0
        since = node(registry).since
        said.report = Report(models=A, loaded=frozenset())
        await until(lambda: node(registry).is_cold("a"))
        assert node(registry).capacity == 7, "it says it no longer"
        assert node(registry).since == since, "its state is the same all the while"


async def test_the_capacity_of_the_settings_counts_whatever_it_says() -> None:
    async with told(Said(Report(models=A, slots=3)), capacity=5) as (registry, _):
        assert node(registry).capacity == 5


async def test_while_it_loads_it_keeps_its_models_and_says_when_it_is_ready() -> None:
    said = Said()
    async with told(said) as (registry, _):
        said.report = Report(ready_in_s=12.0)
        await until(lambda: node(registry).state is NodeState.LOADING)
        assert (node(registry).ready_in_s, node(registry).models) == (12.0, A)
        said.report = Report(ready_in_s=0.0)
        await until(lambda: node(registry).ready_in_s is None)
        said.report = Report(models=A)
        await until(lambda: node(registry).state is NodeState.READY)


async def test_one_that_lists_nothing_needs_its_models_named() -> None:
    async with told(Said(Report())) as (registry, _):
        assert node(registry).state is NodeState.FAILED
        assert "name them in the settings" in node(registry).detail
    async with told(Said(Report()), models=("given",)) as (registry, _):
        assert node(registry).state is NodeState.READY
        assert [info.id for info in node(registry).models] == ["given"]


async def test_one_that_refuses_our_key_has_failed_and_is_asked_again() -> None:
    said = Said(Unwell("It refuses our key (401).", refused_key=True))
    async with told(said) as (registry, _):
        assert (node(registry).state, node(registry).detail) == (
            NodeState.FAILED,
            "It refuses our key (401).",
        )
        said.report = Report(models=A)
        await until(lambda: node(registry).state is NodeState.READY)


@pytest.mark.may_block("the traceback in the log reads the source")
async def test_a_prober_that_raises_what_it_must_not_is_only_unwell() -> None:
    said = Said(ZeroDivisionError("secret"))
    async with told(said) as (registry, _):
        assert node(registry).state is NodeState.DOWN
        assert node(registry).detail == "Asking it failed: ZeroDivisionError."
        said.report = Report(models=A)
        await until(lambda: node(registry).state is NodeState.READY)


async def test_who_waits_has_it_asked_at_once_but_no_oftener_than_the_pace_allows() -> None:
    said = Said()
    async with told(said, pace=NEVER) as (_, discovery):
        assert said.looks == 1
        discovery.look_soon("b")
        await until(lambda: said.looks == 2)
        said.gate = asyncio.Event()
        discovery.look_soon("b")
        await until(lambda: said.looks == 3)
        for _ in range(100):
            discovery.look_soon("b")
        said.gate.set()
        await until(lambda: said.looks == 4)
        discovery.look_soon("nobody")


async def test_each_look_is_told_with_whether_it_is_ready() -> None:
    heard: list[tuple[str, bool]] = []
    said = Said()
    discovery = Discovery(
        Registry(), pace=NEVER, on_probe=lambda node_id, ready: heard.append((node_id, ready))
    )
    await discovery.start([Watched(Node("b", "direct"), said)], first_round_s=10)
    for report in (Unwell("gone"), Report(ready_in_s=1.0), Report(models=A)):
        said.report = report
        count = len(heard)
        discovery.look_soon("b")
        await until(lambda count=count: len(heard) > count)  # type: ignore[misc]
    await discovery.close()
    assert heard == [("b", True), ("b", False), ("b", False), ("b", True)]


async def test_a_thousand_are_asked_a_few_at_once() -> None:
    gate, running = asyncio.Event(), Counter[str]()
    probers = [Said(gate=gate, running=running) for _ in range(1000)]
    registry = Registry()
    discovery = Discovery(registry, pace=Pace(at_once=16))
    backends = [Watched(Node(f"b{number}", "direct"), prober) for number, prober in enumerate(probers)]
    await discovery.start(backends, first_round_s=0.01)
    assert running["most"] == 16
    gate.set()
    await until(lambda: len(registry.holders("a")) == 1000)
    assert running["most"] == 16
    assert all(prober.looks == 1 for prober in probers), "none is asked twice in the first seconds"
    await discovery.close()


async def test_the_rhythms_of_backends_drift_apart() -> None:
    clock = SystemClock()
    moments: dict[str, list[float]] = {}
    discovery = Discovery(
        Registry(),
        pace=Pace(interval_s=0.2, soon_s=0.01),
        on_probe=lambda node_id, _: moments.setdefault(node_id, []).append(clock.monotonic()),
    )
    await discovery.start(
        [Watched(Node(f"b{number}", "direct"), Said()) for number in range(30)], first_round_s=10
    )
    await until(lambda: all(len(seen) >= 2 for seen in moments.values()))
    await discovery.close()
    waits = [seen[1] - seen[0] for seen in moments.values()]
    assert max(waits) - min(waits) > 0.01
