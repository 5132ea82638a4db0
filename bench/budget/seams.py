"""The seams that are marked: each stands before the real object, and says which part begins and ends."""

from __future__ import annotations

from collections.abc import Callable

from bench.budget.marks import Marks
from headrace.control.access import KeyRing
from headrace.domain.access import Principal
from headrace.kernel.errors import RequestError
from headrace.ports.connector import Connector, Exchange, Failure, Headers, Sink, UpstreamRequest
from headrace.ports.control import Admission, Ask, ControlPlane, Grant, Outcome, Waiting

READ, KEY, ADMIT, RENDER, SEND = "read", "key", "admit", "render", "send"
RECEIVE, ANSWER, FINISH, LATER = "receive", "answer", "finish", "later"
PARTS = {
    READ: "the client's head and body read and checked",
    KEY: "whose key it is",
    ADMIT: "model resolved, node placed, slot granted",
    RENDER: "the backend's request made",
    SEND: "its head encoded, written to a kept connection",
    RECEIVE: "the backend's bytes read as HTTP",
    ANSWER: "made strict, metered, written to the client",
    FINISH: "usage settled, slot freed",
    LATER: "what was put off to the end of a turn of the event loop",
}
"""Part → what it does, in the order in which a request meets them."""
EXPECTED = frozenset(PARTS) - {LATER}
"""The parts that are on the way of every request."""


def marked(part: str, call: Callable[[bytes], object], marks: Marks | None) -> Callable[[bytes], object]:
    """*call* as *part*; *call* itself without marks."""
    if marks is None:
        return call
    switch = marks.switch

    def called(data: bytes) -> None:
        before = switch(part)
        call(data)
        switch(before)

    return called


class MarkedKeys(KeyRing):
    """The keys of *inner*, their look-ups marked."""

    def __init__(self, inner: KeyRing, marks: Marks) -> None:
        super().__init__()
        self._switch = marks.switch
        self._look_up = inner.authenticate

    def authenticate(self, key: bytes) -> Principal:
        """See `KeyRing`."""
        before = self._switch(KEY)
        principal = self._look_up(key)
        self._switch(before)
        return principal


class MarkedControl(ControlPlane):
    """A control plane that decides as the *inner* one does. One request at a time."""

    def __init__(self, inner: ControlPlane, marks: Marks) -> None:
        self._inner = inner
        self._switch = marks.switch
        self._told = _MarkedAdmission(marks)

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """See the port."""
        self._told.inner = told
        before = self._switch(ADMIT)
        waiting = self._inner.admit(ask, self._told)
        self._switch(before)
        return waiting

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """See the port."""
        return self._inner.retry(grant, failure, told)

    def answering(self, grant: Grant) -> None:
        """See the port."""
        self._inner.answering(grant)

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """See the port."""
        before = self._switch(FINISH)
        self._inner.finish(grant, outcome)
        self._switch(before)


class MarkedConnector(Connector):
    """A connector that asks as the *inner* one does. One request at a time."""

    def __init__(self, inner: Connector, marks: Marks) -> None:
        self.traits = inner.traits
        self._inner = inner
        self._switch = marks.switch
        self._sink = _MarkedSink(marks)

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        """See the port."""
        self._sink.inner = sink
        before = self._switch(SEND)
        exchange = self._inner.start(request, self._sink)
        self._switch(before)
        return exchange

    async def close(self) -> None:
        """See the port."""
        await self._inner.close()


class _MarkedAdmission(Admission):
    inner: Admission

    def __init__(self, marks: Marks) -> None:
        self._switch = marks.switch

    def granted(self, grant: Grant) -> None:
        before = self._switch(RENDER)
        self.inner.granted(grant)
        self._switch(before)

    def refused(self, refusal: RequestError) -> None:
        self.inner.refused(refusal)


class _MarkedSink(Sink):
    inner: Sink

    def __init__(self, marks: Marks) -> None:
        self._switch = marks.switch

    def head(self, status: int, headers: Headers) -> None:
        before = self._switch(ANSWER)
        self.inner.head(status, headers)
        self._switch(before)

    def data(self, chunk: bytes) -> None:
        before = self._switch(ANSWER)
        self.inner.data(chunk)
        self._switch(before)

    def end(self) -> None:
        before = self._switch(ANSWER)
        self.inner.end()
        self._switch(before)

    def fail(self, failure: Failure) -> None:
        self.inner.fail(failure)
