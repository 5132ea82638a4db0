"""What is kept of each request: made of what control knows when it ends, never of what was said in it."""

from __future__ import annotations

from collections.abc import Callable

from headrace.kernel.clock import Clock
from headrace.kernel.errors import RequestError, code_of
from headrace.ports.control import Ask, Ending, Grant, Outcome
from headrace.ports.records import Records, RequestRecord


class Recorder:
    """Writes one record for each request that was asked for. `status_of`: the HTTP status that a refusal becomes."""

    def __init__(self, records: Records, clock: Clock, status_of: Callable[[RequestError], int]) -> None:
        self._records = records
        self._clock = clock
        self.status_of = status_of

    def finished(self, grant: Grant, outcome: Outcome) -> None:
        """A granted request has ended."""
        ask, usage = grant.ask, outcome.usage
        asked_at = ask.asked_at or grant.granted_at
        now = self._clock.now()
        latency_s = self._clock.monotonic() - asked_at
        first = outcome.first_token_at
        self._records.add(
            RequestRecord(
                request_id=ask.request_id,
                user_id=ask.principal.user,
                key_id=ask.principal.id,
                client=ask.client,
                path=ask.operation.value,
                model=ask.model,
                node=grant.target,
                status=outcome.ending.value,
                http_status=outcome.status,
                error=outcome.error,
                created_at=now - latency_s,
                completed_at=now,
                latency_ms=latency_s * 1000,
                first_token_ms=None if first is None else (first - asked_at) * 1000,
                streamed=ask.streamed,
                executions=grant.executions,
                estimated_tokens=ask.estimated_tokens,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
                estimated=usage.estimated,
            )
        )

    def refused(self, ask: Ask, refusal: RequestError, executions: int = 0) -> None:
        """A request got no place, or no further one after so many executions that came to nothing."""
        status = Ending.FAILED.value if executions else "refused"
        self._add(ask, status, self.status_of(refusal), code_of(refusal), executions)

    def withdrawn(self, ask: Ask, executions: int = 0) -> None:
        """The client left before it got a place, or a further one."""
        self._add(ask, Ending.CANCELLED.value, 0, "", executions)

    def _add(self, ask: Ask, status: str, http_status: int, error: str, executions: int) -> None:
        now = self._clock.now()
        latency_s = self._clock.monotonic() - ask.asked_at if ask.asked_at else 0.0
        self._records.add(
            RequestRecord(
                request_id=ask.request_id,
                user_id=ask.principal.user,
                key_id=ask.principal.id,
                client=ask.client,
                path=ask.operation.value,
                model=ask.model,
                status=status,
                http_status=http_status,
                error=error,
                created_at=now - latency_s,
                completed_at=now,
                latency_ms=latency_s * 1000,
                streamed=ask.streamed,
                executions=executions,
                estimated_tokens=ask.estimated_tokens,
            )
        )
