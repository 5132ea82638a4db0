"""One gateway in this process, from the client's connection to the backend's, between transports that only take bytes.

It is driven as asyncio drives it: bytes are handed to the two protocols. What is inside may change as it likes; marked are
only the ports, and objects that are given in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from uvicorn.config import Config
from uvicorn.server import ServerState

from bench.budget.marks import Marks
from bench.budget.seams import READ, RECEIVE, MarkedConnector, MarkedControl, MarkedKeys, marked
from bench.budget.traffic import KEY, MODEL, Talk
from bench.budget.wires import Line, SteppedClock, Wire
from headrace.connectors.direct import DirectConnector
from headrace.control.access import KeyRing
from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.core.inference import Inference
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.gateway.cors import OriginPolicy
from headrace.gateway.gate import ConnectionLimits, Gate
from headrace.gateway.protocol import GatewayProtocol
from headrace.gateway.token_lane import TokenLane
from headrace.ports.connector import Connector, Traits
from headrace.ports.control import ControlPlane


@dataclass(frozen=True, slots=True)
class Size:
    """What there is around the one request: keys, nodes that hold other models, nodes that hold its model."""

    keys: int = 10
    others: int = 0
    holders: int = 1


USUAL = Size()


class Rig:
    """Open it inside a running event loop; then `run` any number of exchanges, one after the other.

    *marks*: told of the parts; None leaves the seams out, so that nothing runs but the gateway.
    """

    def __init__(self, size: Size = USUAL, marks: Marks | None = None) -> None:
        clock = SteppedClock()
        self._marks = marks
        self._wire = Wire(name="http://backend", authority="backend")
        direct = DirectConnector(self._wire, clock=clock, traits=Traits(cancels_unstreamed=True))
        registry = _registry(size)
        plane = LocalControlPlane(registry, clock)
        connector: Connector = MarkedConnector(direct, marks) if marks else direct
        control: ControlPlane = MarkedControl(plane, marks) if marks else plane
        inference = Inference(control, {node.id: connector for node in registry.nodes()})
        lane = TokenLane(_keys(size, marks), inference, OriginPolicy(r"https?://localhost(?::\d+)?"))
        self._line = Line()
        client = _client(lane, clock)
        client.connection_made(self._line)
        self._ask = marked(READ, client.data_received, marks)
        self._answer: Callable[[bytes], object] = _nothing

    async def open(self, talk: Talk) -> None:
        """Have the connection to the backend made, by a first *talk*.

        Raises:
            RuntimeError: the client didn't get its answer.
        """
        self._ask(talk.asked)
        backend = await self._wire.first
        await asyncio.sleep(0)  # now the connector knows that it is there, too
        self._answer = marked(RECEIVE, backend.data_received, self._marks)
        for read in talk.answered:
            self._answer(read)
        self._look(talk)

    def run(self, talk: Talk, times: int) -> None:
        """Have the exchange so often, without a look at what came of it."""
        _run(self._ask, self._answer, talk, times)

    def check(self, talk: Talk) -> None:
        """Have it once, with a look.

        Raises:
            RuntimeError: the client didn't get its answer.
        """
        self._line.taken.clear()
        self.run(talk, 1)
        self._look(talk)

    def _look(self, talk: Talk) -> None:
        talk.check(b"".join(self._line.taken))


def run_nothing(talk: Talk, times: int) -> None:
    """What `Rig.run` costs by itself."""
    _run(_nothing, _nothing, talk, times)


def run_empty(part: str, marks: Marks, times: int) -> None:
    """So many intervals of *part* in which nothing is done: what the marks cost."""
    take = marked(part, _nothing, marks)
    for _ in range(times):
        take(b"")


def _run(ask: Callable[[bytes], object], answer: Callable[[bytes], object], talk: Talk, times: int) -> None:
    asked, answered = talk.asked, talk.answered
    for _ in range(times):
        ask(asked)
        for read in answered:
            answer(read)


def _nothing(_data: bytes) -> None:
    pass


def _registry(size: Size) -> Registry:
    registry = Registry()
    for number in range(size.holders):
        registry.upsert(_node(f"holder-{number}", MODEL))
    for number in range(size.others):
        registry.upsert(_node(f"other-{number}", f"model-{number}"))
    return registry


def _node(name: str, model: str) -> Node:
    return Node(name, "direct", (ModelInfo(model),), capacity=64, state=NodeState.READY)


def _keys(size: Size, marks: Marks | None) -> KeyRing:
    keys = MarkedKeys(marks) if marks else KeyRing()
    for number in range(size.keys - 1):
        keys.add(f"sk-other-{number}")
    keys.add(KEY)
    return keys


def _client(lane: TokenLane, clock: SteppedClock) -> GatewayProtocol:
    config = Config(_no_app, interface="asgi3", lifespan="off", ws="none", log_config=None)
    config.load()
    gate = Gate(ConnectionLimits(), clock.monotonic)
    gate.date = b"date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    return GatewayProtocol(config, ServerState(), {}, gate, lane)


async def _no_app(_scope: object, _receive: object, _send: object) -> None:
    raise RuntimeError("a request left the token lane")
