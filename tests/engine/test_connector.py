from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from headrace.domain.fleet import NodeState
from headrace.engine.connector import EngineConnector
from headrace.engine.supervisor import EngineState
from headrace.ports.connector import (
    Busy,
    Connector,
    Exchange,
    Failure,
    Loading,
    Lost,
    NotSent,
    Sink,
    Traits,
    UpstreamRequest,
)
from support.recorder import Recorder

REQUEST = UpstreamRequest("POST", "/v1/chat/completions")


class Held(Exchange):
    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None: ...


class Direct(Connector):
    """Holds every exchange until the test ends it."""

    traits = Traits()

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.held: list[Held] = []
        self.closed = False

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        self.held.append(Held(sink))
        return self.held[-1]

    async def close(self) -> None:
        self.closed = True
        for held in self.held:
            held.sink.fail(Lost("the engine died"))
        self.held.clear()


class Stage:
    def __init__(self, slots: int = 2) -> None:
        self.state = EngineState("e", NodeState.LOADING, ready_in_s=4.0)
        self.direct: list[Direct] = []
        self.connector = EngineConnector(slots=slots, make_direct=self._make, current=lambda: self.state)

    def _make(self, socket: str) -> Connector:
        self.direct.append(Direct(socket))
        return self.direct[-1]

    def ask(self) -> Recorder:
        recorder = Recorder()
        with recorder.quiet():
            exchange = self.connector.start(REQUEST, recorder)
            exchange.pause()
            exchange.resume()
            exchange.cancel()
        return recorder

    async def refusal(self) -> Failure | None:
        return (await self.ask().last()).failure


@pytest.mark.req("D36")
@pytest.mark.parametrize(
    ("state", "detail", "kind", "words"),
    [
        (NodeState.LOADING, "", Loading, "the model is loading"),
        (NodeState.LOADING, "downloading", Loading, "the model is loading: downloading"),
        (NodeState.DOWN, "It crashed.", Loading, "the engine restarts: It crashed."),
        (NodeState.FAILED, "No file.", NotSent, "the engine isn't running: No file."),
    ],
)
async def test_while_it_does_not_serve(
    state: NodeState, detail: str, kind: type[Failure], words: str
) -> None:
    stage = Stage()
    stage.state = replace(stage.state, state=state, detail=detail)
    failure = await stage.refusal()
    assert type(failure) is kind
    assert failure.reason == words
    if isinstance(failure, Loading):
        assert failure.retry_after_s == 4.0


@pytest.mark.req("D38")
async def test_never_more_than_its_slots() -> None:
    stage = Stage(slots=2)
    stage.connector.running("/x.sock")
    (direct,) = stage.direct
    assert direct.socket == "/x.sock"
    first, second = stage.ask(), stage.ask()
    assert type(await stage.refusal()) is Busy
    assert stage.connector.in_flight == 2 == stage.connector.traits.slots
    direct.held[0].sink.head(200, [])
    direct.held[0].sink.data(b"x")
    direct.held[0].sink.end()
    assert (first.status, bytes(first.body), first.ended) == (200, b"x", True)
    third = stage.ask()
    direct.held[1].sink.fail(Lost("broke"))
    assert second.failure == Lost("broke")
    assert not third.over
    assert stage.connector.in_flight == 1


async def test_the_slot_is_free_when_the_asker_hears_of_the_end() -> None:
    stage = Stage(slots=1)
    stage.connector.running("/x.sock")
    seen = []

    class Asker(Recorder):
        def end(self) -> None:
            seen.append(stage.connector.in_flight)

    stage.connector.start(REQUEST, Asker())
    stage.direct[0].held[0].sink.end()
    assert seen == [0]


@pytest.mark.req("D12")
async def test_a_crash_loses_what_was_open_and_the_next_engine_gets_its_own_connector() -> None:
    stage = Stage()
    stage.connector.running("/1.sock")
    open_one = stage.ask()
    await stage.connector.gone()
    assert type(open_one.failure) is Lost
    assert type(await stage.refusal()) is Loading
    stage.connector.running("/2.sock")
    stage.ask()
    assert [direct.socket for direct in stage.direct] == ["/1.sock", "/2.sock"]
    assert stage.connector.in_flight == 1
    await stage.connector.close()
    assert stage.direct[1].closed
    assert stage.connector.in_flight == 0
    assert type(await stage.refusal()) is NotSent
    await stage.connector.close()


def test_what_this_llama_cpp_can_do() -> None:
    traits = Stage(slots=3).connector.traits
    assert (traits.cancels_unstreamed, traits.stream_options, traits.slots) == (False, True, 3)


async def test_a_refusal_comes_after_start_returned() -> None:
    recorder = Stage().ask()
    assert not recorder.over
    await asyncio.sleep(0)
    assert recorder.over
