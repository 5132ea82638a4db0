"""The main use case: requests of OpenAI's API, and predictions, moved between clients and backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from headrace.core.answer import Answer
from headrace.core.attempt import AssembledAttempt, Attempt, StreamAttempt, WholeAttempt
from headrace.core.call import Call
from headrace.core.prediction import PredictionCall
from headrace.domain.access import Principal
from headrace.kernel.errors import RequestError
from headrace.ports.connector import Connector, Headers, Traits, UpstreamRequest
from headrace.ports.control import Ask, ControlPlane, Grant
from headrace.wire.openai import InferenceBody
from headrace.wire.prediction import Prediction


class Origin(msgspec.Struct, frozen=True):
    """What is known of a request beside its body.

    asked_at: when it was complete, on the monotonic clock. client: its address. tags: those that its backend must have. session:
    what its conversation is known by.
    """

    asked_at: float = 0.0
    client: str = ""
    tags: tuple[str, ...] = ()
    session: str = ""


UNKNOWN = Origin()


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
        self.active: set[Call[Any]] = set()

    def start(
        self,
        request_id: str,
        principal: Principal,
        body: InferenceBody,
        answer: Answer,
        origin: Origin = UNKNOWN,
    ) -> InferenceCall:
        """Begin. Returns at once; *answer* hears the rest, perhaps before this returned."""
        if principal.default_max_tokens is not None:
            body.limit(principal.default_max_tokens)
        ask = Ask(
            request_id=request_id,
            principal=principal,
            operation=body.operation,
            model=body.model,
            estimated_tokens=body.prompt_tokens + (body.max_tokens or 0) * body.choices,
            priority=principal.priority,
            asked_at=origin.asked_at,
            client=origin.client,
            streamed=body.stream,
            tags=origin.tags,
            session=origin.session or (body.session if self.affinity else ""),
            prefix=body.prefix if self.affinity else 0,
        )
        call = InferenceCall(ask, body, answer, self)
        self.active.add(call)
        call.begin(self._control, self._connectors)
        return call

    def predict(
        self,
        request_id: str,
        principal: Principal,
        prediction: Prediction,
        answer: Answer,
        origin: Origin = UNKNOWN,
    ) -> PredictionCall:
        """The same for a prediction: it is charged as a request, and no tokens."""
        ask = Ask(
            request_id=request_id,
            principal=principal,
            operation=prediction.operation,
            model=prediction.model,
            priority=principal.priority,
            asked_at=origin.asked_at,
            client=origin.client,
            tags=origin.tags,
            session=origin.session,
        )
        call = PredictionCall(ask, prediction, answer, self)
        self.active.add(call)
        call.begin(self._control, self._connectors)
        return call

    def abort_all(self, error: RequestError) -> None:
        """End every call with *error*: the deadline of a shutdown."""
        for call in tuple(self.active):
            call.abort(error)


class InferenceCall(Call[InferenceBody]):
    """A request of OpenAI's API."""

    __slots__ = ()

    def _attempt_for(self, traits: Traits) -> Attempt[InferenceBody]:
        body = self._body
        if body.stream:
            return StreamAttempt(self, body)
        if not traits.cancels_unstreamed and body.operation in traits.streamed:
            return AssembledAttempt(self, body)
        return WholeAttempt(self, body)

    def _upstream_request(self, grant: Grant, attempt: Attempt[Any], traits: Traits) -> UpstreamRequest:
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
