"""The main use case: one request, from admission to settlement.

admit ─► granted ─► attempt ─┬─► completed ─────────────────────► finish(completed)
  ▲         │                ├─► rejected by the backend ───────► finish(failed)
  │         │                └─► failed ─┬─ nothing passed on ──► retry ─► granted, or refused
  └─────────┴── the client leaves        └─ some passed on ─────► finish(failed)
                at any time: cancel ─► the backend stops ───────► finish(cancelled)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from headrace.core.answer import Answer
from headrace.core.attempt import AssembledAttempt, Attempt, StreamAttempt, Told, WholeAttempt
from headrace.domain.access import Principal
from headrace.domain.inference import Usage
from headrace.kernel.errors import RequestError, UpstreamFailed, UpstreamTimeout, code_of
from headrace.ports.connector import (
    Broken,
    Connector,
    Exchange,
    Failure,
    Headers,
    Lost,
    NotSent,
    Traits,
    UpstreamRequest,
)
from headrace.ports.control import Admission, Ask, ControlPlane, Ending, Grant, Outcome, Waiting
from headrace.wire.openai import InferenceBody


class Hints(msgspec.Struct, frozen=True):
    """What a request says beside its body. tags: those that its backend must have. session: what its conversation is known by."""

    tags: tuple[str, ...] = ()
    session: str = ""


NO_HINTS = Hints()


class Inference:
    """Runs requests: asks control for a place, and moves the bytes between the node's connector and the client.

    `connectors` is the live mapping from node id to connector; `active` the calls that haven't settled yet; `status_of` tells
    which status a client is told with an error, for the records. affinity: whether any route wants to know what requests have in
    common.
    """

    affinity = False

    def __init__(
        self,
        control: ControlPlane,
        connectors: Mapping[str, Connector],
        status_of: Callable[[RequestError], int] = lambda _error: 0,
    ) -> None:
        self.status_of = status_of
        self._control = control
        self._connectors = connectors
        self.active: set[InferenceCall] = set()

    def start(
        self,
        request_id: str,
        principal: Principal,
        body: InferenceBody,
        answer: Answer,
        *,
        asked_at: float = 0.0,
        client: str = "",
        hints: Hints = NO_HINTS,
    ) -> InferenceCall:
        """Begin. Returns at once; *answer* hears the rest, perhaps before this returned.

        asked_at: when the request was complete, on the monotonic clock. client: its address.
        """
        if principal.default_max_tokens is not None:
            body.limit(principal.default_max_tokens)
        ask = Ask(
            request_id=request_id,
            principal=principal,
            operation=body.operation,
            model=body.model,
            estimated_tokens=body.prompt_tokens + (body.max_tokens or 0) * body.choices,
            priority=principal.priority,
            asked_at=asked_at,
            client=client,
            streamed=body.stream,
            tags=hints.tags,
            session=hints.session or (body.session if self.affinity else ""),
            prefix=body.prefix if self.affinity else 0,
        )
        call = InferenceCall(ask, body, answer, self)
        self.active.add(call)
        call.begin(self._control, self._connectors)
        return call

    def abort_all(self, error: RequestError) -> None:
        """End every call with *error*: the deadline of a shutdown."""
        for call in tuple(self.active):
            call.abort(error)


class InferenceCall(Admission, Told, Exchange):
    """One request under way; for the client it is the exchange: pause, resume, cancel."""

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

    def __init__(self, ask: Ask, body: InferenceBody, answer: Answer, owner: Inference) -> None:
        self._ask = ask
        self._body = body
        self._answer = answer
        self._owner = owner
        self._attempt: Attempt | None = None
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
        if self._body.stream:
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

    def _attempt_for(self, traits: Traits) -> Attempt:
        body = self._body
        if body.stream:
            return StreamAttempt(self, body)
        if not traits.cancels_unstreamed and body.operation in traits.streamed:
            return AssembledAttempt(self, body)
        return WholeAttempt(self, body)

    def _upstream_request(self, grant: Grant, attempt: Attempt, traits: Traits) -> UpstreamRequest:
        streamed = attempt.streamed
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if streamed else b"application/json"),
            (b"x-request-id", self._ask.request_id.encode()),
        ]
        return UpstreamRequest(
            method="POST",
            path=self._body.operation.path,
            headers=headers,
            body=self._body.render(model=grant.model, stream=streamed, ask_usage=traits.stream_options),
            timeouts=grant.timeouts,
            stoppable=streamed or traits.cancels_unstreamed,
        )

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
