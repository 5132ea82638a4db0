"""One gateway in this process, from the client's connection to the backend's, between transports that only take bytes.

It is driven as asyncio drives it: bytes are handed to the two protocols, and turns of the loop end. What is inside may change
as it likes; marked are only the ports, and objects that are given in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from uvicorn.config import Config
from uvicorn.server import ServerState

from bench.budget.marks import Marks
from bench.budget.seams import LATER, READ, RECEIVE, MarkedConnector, MarkedControl, MarkedKeys, marked
from bench.budget.traffic import KEY, MODEL, TALKS, Talk
from bench.budget.wires import Line, SteppedClock, Turns, Wire
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
    """What there is around the one request: keys, nodes that hold other models, nodes that hold its model, and requests that
    were served before."""

    keys: int = 10
    others: int = 0
    holders: int = 1
    served: int = 0


USUAL = Size()


class Surroundings:
    """What a size asks for, made once for all rigs that stand in it."""

    def __init__(self, size: Size = USUAL) -> None:
        self.keys = KeyRing()
        for number in range(size.keys - 1):
            self.keys.add(f"sk-other-{number}")
        self.keys.add(KEY)
        self.registry = Registry()
        for number in range(size.holders):
            self.registry.upsert(_node(f"holder-{number}", MODEL))
        for number in range(size.others):
            self.registry.upsert(_node(f"other-{number}", f"model-{number}"))


class Rig:
    """Ready to `run` any number of exchanges, one after the other, each in as many turns as there are reads.

    *around*: the usual surroundings where it is None. *marks*: told of the parts; None leaves the seams out, so that nothing
    runs but the gateway.

    Raises:
        RuntimeError: the client of a first exchange, by which the backend is connected, didn't get its answer.
    """

    def __init__(self, around: Surroundings | None = None, marks: Marks | None = None) -> None:
        self._loop = Turns()
        self._line, self._wire = Line(), Wire(name="http://backend", authority="backend")
        with self._loop.running():
            client = _client(around or Surroundings(), self._wire, marks)
            client.connection_made(self._line)
            first = TALKS["plain"]
            client.data_received(first.asked)
            self._loop.end_turn()
            backend = self._wire.opened[0]
        turn = self._loop.end_turn
        self._drive = Drive(
            marked(READ, client.data_received, marks),
            marked(RECEIVE, backend.data_received, marks),
            partial(self._loop.end_marked_turn, LATER, marks) if marks else turn,
        )
        with self._loop.running():
            for read in first.answered:
                backend.data_received(read)
                turn()
        self._look(first)

    def run(self, talk: Talk, times: int) -> None:
        """Have the exchange so often, without a look at what came of it."""
        with self._loop.running():
            self._drive.run(talk, times)

    def check(self, talk: Talk) -> None:
        """Have it once, with a look.

        Raises:
            RuntimeError: the client didn't get its answer, or not over the kept connection.
        """
        self._line.taken.clear()
        self.run(talk, 1)
        self._look(talk)

    def _look(self, talk: Talk) -> None:
        talk.check(b"".join(self._line.taken))
        if len(self._wire.opened) != 1:
            raise RuntimeError("the kept connection to the backend was not used again")


@dataclass(frozen=True, slots=True)
class Drive:
    """What drives a rig: the client's bytes come, the backend's come, a turn ends."""

    ask: Callable[[bytes], object]
    answer: Callable[[bytes], object]
    end_turn: Callable[[], object]

    def run(self, talk: Talk, times: int) -> None:
        """Have the exchange so often."""
        ask, answer, end_turn = self.ask, self.answer, self.end_turn
        asked, answered = talk.asked, talk.answered
        for _ in range(times):
            ask(asked)
            end_turn()
            for read in answered:
                answer(read)
                end_turn()


def run_nothing(talk: Talk, times: int) -> None:
    """What `Rig.run` costs by itself."""
    loop = Turns()
    with loop.running():
        Drive(_nothing, _nothing, loop.end_turn).run(talk, times)


def run_empty(part: str, marks: Marks, times: int) -> None:
    """So many intervals of *part* in which nothing is done: what the marks cost."""
    take = marked(part, _nothing, marks)
    for _ in range(times):
        take(b"")


def _nothing(_data: bytes) -> None:
    pass


def _node(name: str, model: str) -> Node:
    return Node(name, "direct", (ModelInfo(model),), capacity=64, state=NodeState.READY)


def _client(around: Surroundings, wire: Wire, marks: Marks | None) -> GatewayProtocol:
    """The protocol of a client's connection, and behind it everything up to *wire*."""
    clock = SteppedClock()
    direct = DirectConnector(wire, clock=clock, traits=Traits(cancels_unstreamed=True))
    plane = LocalControlPlane(around.registry, clock)
    connector: Connector = MarkedConnector(direct, marks) if marks else direct
    control: ControlPlane = MarkedControl(plane, marks) if marks else plane
    inference = Inference(control, {node.id: connector for node in around.registry.nodes()})
    keys = MarkedKeys(around.keys, marks) if marks else around.keys
    lane = TokenLane(keys, inference, OriginPolicy(r"https?://localhost(?::\d+)?"))
    config = Config(_no_app, interface="asgi3", lifespan="off", ws="none", log_config=None)
    config.load()
    gate = Gate(ConnectionLimits(), clock.monotonic)
    gate.date = b"date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    return GatewayProtocol(config, ServerState(), {}, gate, lane)


async def _no_app(_scope: object, _receive: object, _send: object) -> None:
    raise RuntimeError("a request left the token lane")
