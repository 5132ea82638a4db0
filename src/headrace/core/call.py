"""One request under way, from admission to settlement: the same for whatever is asked, and of whichever backend.

admit ─► granted ─► attempt ─┬─► completed ─────────────────────► finish(completed)
  ▲         │                ├─► rejected by the backend ───────► finish(failed)
  │         │                └─► failed ─┬─ nothing passed on ──► retry ─► granted, or refused
  └─────────┴── the client leaves        └─ some passed on ─────► finish(failed)
                at any time: cancel ─► the backend stops ───────► finish(cancelled)
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from headrace.core.answer import Answer
from headrace.core.attempt import Attempt, Told
from headrace.domain.inference import Usage
from headrace.kernel.errors import RequestError, UpstreamFailed, UpstreamTimeout, code_of
from headrace.ports.connector import (
    Broken,
    Connector,
    Exchange,
    Failure,
    Lost,
    NotSent,
    Traits,
    UpstreamRequest,
)
from headrace.ports.control import Admission, Ask, ControlPlane, Ending, Grant, Outcome, Waiting

Body = TypeVar("Body")


class Owner(Protocol):
    """Who has calls under way. `active`: those that haven't settled yet; `status_of` tells which status an error becomes."""

    active: set[Call[Any]]
    status_of: Callable[[RequestError], int]


class Call(Admission, Told, Exchange, Generic[Body]):
    """One request under way; for the client it is the exchange: pause, resume, cancel. *body* is what it asks."""

    __slots__ = (
        "_answer",
        "_ask",
        "_attempt",
        "_body",
        "_client_gone",
        "_connectors",
        "_control",
        "_first_at",
        "_grant",
        "_owner",
        "_passing",
        "_paused",
        "_turn",
        "_waiting",
    )

    _control: ControlPlane
    _connectors: Mapping[str, Connector]

    def __init__(self, ask: Ask, body: Body, answer: Answer, owner: Owner) -> None:
        self._ask = ask
        self._body = body
        self._answer = answer
        self._owner = owner
        self._attempt: Attempt[Any] | None = None
        self._grant: Grant | None = None
        self._waiting: Waiting | None = None
        self._client_gone = False
        self._first_at: float | None = None
        self._passing = False
        self._paused = False
        self._turn = 0

    def begin(self, control: ControlPlane, connectors: Mapping[str, Connector]) -> None:
        """Ask for a place."""
        self._control = control
        self._connectors = connectors
        self._wait(lambda: control.admit(self._ask, self))

    # The client's side

    def pause(self) -> None:
        """The client is slow: stop the backend's flow."""
        self._paused = True
        if self._attempt is not None:
            self._attempt.exchange.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._paused = False
        if self._attempt is not None:
            self._attempt.exchange.resume()

    def cancel(self) -> None:
        """The client is gone: stop waiting, or stop the backend. The answer hears nothing more. Idempotent."""
        if self._client_gone:
            return
        self._client_gone = True
        if self._attempt is not None:
            self._attempt.exchange.cancel()
        elif self._waiting is not None:
            self._waiting.withdraw()
            self._owner.active.discard(self)

    def abort(self, error: RequestError) -> None:
        """We give up on it: tell the client, stop the backend."""
        if not self._client_gone:
            self._answer.fail(error)
            self.cancel()

    # Control's side

    def granted(self, grant: Grant) -> None:
        """Run it on the node that was granted."""
        if self._client_gone:
            self._settle(grant, Ending.CANCELLED, Usage(), status=0)
            return
        self._grant = grant
        connector = self._connectors.get(grant.target)
        if connector is None:
            self._again(NotSent(f"The node {grant.target!r} has just gone."))
            return
        attempt = self._attempt_for(connector.traits)
        attempt.exchange = connector.start(self._upstream_request(grant, attempt, connector.traits), attempt)
        self._attempt = attempt
        if self._paused:
            attempt.exchange.pause()

    def refused(self, refusal: RequestError) -> None:
        """There is no place for it."""
        self._owner.active.discard(self)
        if not self._client_gone:
            self._answer.fail(refusal)

    # The attempt's side

    def answering(self, content_type: bytes) -> None:
        """The answer begins: no other attempt after this."""
        self._passing = True
        grant = self._held()
        if grant.watched:
            self._control.answering(grant)
        if self._ask.streamed:
            self._first_at = time.monotonic()
        if not self._client_gone:
            self._answer.head(content_type, grant)

    def passed(self, chunk: bytes) -> None:
        """Some of the answer."""
        if not self._client_gone:
            self._answer.data(chunk)

    def completed(self, usage: Usage) -> None:
        """The answer is complete."""
        self._settle(self._held(), Ending.CANCELLED if self._client_gone else Ending.COMPLETED, usage)
        if not self._client_gone:
            self._answer.end()

    def rejected(self, error: RequestError, usage: Usage) -> None:
        """The backend refused the request itself."""
        self._settle(self._held(), Ending.FAILED, usage, error)
        if not self._client_gone:
            self._answer.fail(error)

    def failed(self, failure: Failure, usage: Usage) -> None:
        """The attempt came to nothing, or broke off."""
        self._attempt = None
        if self._client_gone:
            self._settle(self._held(), Ending.CANCELLED, usage, status=200 if self._passing else 0)
        elif self._passing:
            error = _broken(failure)
            self._settle(self._held(), Ending.FAILED, usage, error, failure=failure)
            self._answer.fail(error)
        else:
            self._again(failure)

    def _again(self, failure: Failure) -> None:
        grant = self._held()
        self._grant = None
        self._wait(lambda: self._control.retry(grant, failure, self))

    def _wait(self, ask: Callable[[], Waiting]) -> None:
        """Keep the handle of what we wait for, unless the answer came at once and led to another wait inside."""
        self._turn += 1
        turn = self._turn
        waiting = ask()
        if turn == self._turn:
            self._waiting = waiting

    @abstractmethod
    def _attempt_for(self, traits: Traits) -> Attempt[Any]:
        """Who reads the answer of a backend with these *traits*."""

    @abstractmethod
    def _upstream_request(self, grant: Grant, attempt: Attempt[Any], traits: Traits) -> UpstreamRequest:
        """What that backend is sent."""

    def _held(self) -> Grant:
        assert self._grant is not None, "an attempt runs under a grant"
        return self._grant

    def _settle(
        self,
        grant: Grant,
        ending: Ending,
        usage: Usage,
        error: RequestError | None = None,
        *,
        status: int = 200,
        failure: Failure | None = None,
    ) -> None:
        self._attempt = None
        self._waiting = None
        self._owner.active.discard(self)
        code = ""
        if error is not None:
            code = code_of(error)
            status = status if self._first_at is not None else self._owner.status_of(error)
        self._control.finish(grant, Outcome(ending, usage, status, code, self._first_at, failure))


def _broken(failure: Failure) -> RequestError:
    """What a client hears of an answer that broke off under way."""
    if isinstance(failure, Lost | Broken) and failure.timed_out:
        return UpstreamTimeout(f"The answer stopped coming. {failure.reason}")
    return UpstreamFailed(f"The answer broke off. {failure.reason}")
