"""Predictions: requests whose bodies and answers pass as they are, through the same chain as any other."""

from __future__ import annotations

from typing import Any

from headrace.core.attempt import Attempt, CollectedAttempt
from headrace.core.call import Call
from headrace.domain.inference import Usage
from headrace.kernel.errors import UpstreamFailed
from headrace.ports.connector import Headers, Traits, UpstreamRequest
from headrace.ports.control import Grant
from headrace.wire.prediction import Prediction

_JSON = b"application/json"


class PredictionCall(Call[Prediction]):
    """A request to a model that predicts."""

    __slots__ = ()

    def _attempt_for(self, traits: Traits) -> Attempt[Prediction]:
        return PredictionAttempt(self, self._body)

    def _upstream_request(self, grant: Grant, attempt: Attempt[Any], traits: Traits) -> UpstreamRequest:
        headers: Headers = [(b"accept", _JSON), (b"x-request-id", self._ask.request_id.encode())]
        if self._body.raw:
            headers.append((b"content-type", _JSON))
        return UpstreamRequest(
            method=self._body.method,
            path=self._body.path(grant.model),
            headers=headers,
            body=self._body.raw,
            timeouts=grant.timeouts,
            stoppable=traits.cancels_unstreamed,
        )


class PredictionAttempt(CollectedAttempt[Prediction]):
    """A prediction as the backend gives it. It costs no tokens."""

    @property
    def usage(self) -> Usage:
        """Nothing."""
        return Usage()

    def _read(self, answer: bytes) -> tuple[bytes, Usage]:
        if not answer:
            raise UpstreamFailed("The backend's answer is empty.")
        return answer, self.usage
