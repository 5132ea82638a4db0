"""Backends are found, lost, found again, and asked what they hold; no inference request is spent on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.control.discovery import Discovery, Watched
from headrace.control.registry import Registry
from headrace.domain.fleet import Node, NodeState
from headrace.kernel.clock import SystemClock
from headrace.testing.fake_engine import FakeEngine, Script
from support.waiting import until


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
    connector = DirectConnector(Endpoint.parse(url), clock=SystemClock())
    discovery = Discovery(registry, {"b": connector}, interval_s=0.05)
    await discovery.start([Watched(Node("b", "direct"), models, optional)], first_round_s=10)
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


async def test_a_backend_that_lists_nothing_we_can_read_needs_its_models_named() -> None:
    async with FakeEngine(Script(loading=True)) as engine, watching(engine.url) as watch:
        node = watch.registry.get("b")
        assert node is not None
        assert node.state is NodeState.DOWN
        assert "name them in the settings" in node.detail
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
