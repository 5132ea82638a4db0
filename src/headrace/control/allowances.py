"""Holding what a route's targets use to their daily allowances, between the plane that places requests and those who ask."""

from __future__ import annotations

from headrace.domain.inference import Usage
from headrace.domain.quota import Measure
from headrace.kernel.clock import Clock
from headrace.kernel.errors import RequestError
from headrace.ports.connector import Failure
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome, Overdrawn, Placing, Waiting
from headrace.ports.ledger import Charge, QuotaLedger, Verdict

_UNKNOWN_S = 5.0
"""How long an allowance is left alone when the ledger couldn't be asked."""


class AllowancePlane(Placing):
    """Charges grants that have an allowance to *ledger*; one that is used up sends the request back, to the fallbacks."""

    def __init__(self, placing: Placing, ledger: QuotaLedger, clock: Clock) -> None:
        self.placing = placing
        self.ledger = ledger
        self.clock = clock
        self._limited = False

    def limit(self, limited: bool) -> None:
        """Whether any route has an allowance; as long as none has, everything passes untouched."""
        self._limited = limited

    def resolved(self, ask: Ask) -> Ask:
        """See the port."""
        return self.placing.resolved(ask)

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """See the port."""
        if not self._limited:
            return self.placing.admit(ask, told)
        guard = _Guard(self, told)
        guard.follow(self.placing.admit(ask, guard))
        return guard

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """See the port."""
        if grant.allowance is not None:
            self.ledger.release(_reservation(grant))
        if not self._limited:
            return self.placing.retry(grant, failure, told)
        guard = _Guard(self, told)
        guard.follow(self.placing.retry(grant, failure, guard))
        return guard

    def answering(self, grant: Grant) -> None:
        """See the port."""
        self.placing.answering(grant)

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """See the port."""
        self.placing.finish(grant, outcome)
        if grant.allowance is not None:
            self.ledger.settle(_reservation(grant), {Measure.TOKENS: outcome.usage.total_tokens})


class _Guard(Admission, Waiting):
    """One who asks, until it is granted something that its allowance allows."""

    __slots__ = ("_owner", "_told", "_waiting", "_withdrawn")

    def __init__(self, owner: AllowancePlane, told: Admission) -> None:
        self._owner = owner
        self._told = told
        self._waiting: Waiting | None = None
        self._withdrawn = False

    def follow(self, waiting: Waiting) -> None:
        """What to withdraw, unless it was sent back inside, and waits for something else by now."""
        if self._waiting is None:
            self._waiting = waiting

    def withdraw(self) -> None:
        """See the port."""
        self._withdrawn = True
        if self._waiting is not None:
            self._waiting.withdraw()

    def granted(self, grant: Grant) -> None:
        """It has a slot: reserve what it may use."""
        if grant.allowance is None:
            self._told.granted(grant)
            return
        charge = Charge(grant.allowance, max(1, grant.ask.estimated_tokens))
        self._owner.ledger.reserve(
            _reservation(grant), [charge], lambda verdict: self._decided(grant, verdict)
        )

    def refused(self, refusal: RequestError) -> None:
        """There is no place."""
        self._told.refused(refusal)

    def _decided(self, grant: Grant, verdict: Verdict) -> None:
        owner = self._owner
        if self._withdrawn:
            owner.placing.finish(grant, Outcome(Ending.CANCELLED, Usage(), status=0))
            owner.ledger.release(_reservation(grant))
        elif verdict.granted:
            self._told.granted(grant)
        else:
            ends = max((standing.resets_at for standing in verdict.standings), default=0)
            renewed_in_s = max(1.0, ends - owner.clock.now()) if ends else _UNKNOWN_S
            failure = Overdrawn(f"The daily allowance for {grant.target!r} is used up.", renewed_in_s)
            self._waiting = owner.placing.retry(grant, failure, self)


def _reservation(grant: Grant) -> str:
    return f"{grant.ask.request_id}/route/{grant.attempts}"
