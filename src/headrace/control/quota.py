"""Holding requests to the limits of those who pay, around the plane that places them.

    asked ─► tokens left? ─► requests, concurrency reserved ─► placed (may wait) ─► tokens reserved ─► granted
               │ no             │ no                             │ refused            │ no                │
               ▼                ▼                                ▼                    ▼                   ▼
             refused          refused                    all is given back      slot is freed      settled at its end

A request is charged as one, and with the tokens that it used, however it ended; one that was never granted isn't charged.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from headrace.control.recording import Recorder
from headrace.domain.inference import Usage
from headrace.domain.quota import Measure, Period, Window
from headrace.kernel.budget import Budget
from headrace.kernel.clock import Clock
from headrace.kernel.errors import (
    Forbidden,
    LimitExceeded,
    ModelHidden,
    RequestError,
    Unavailable,
    code_of,
)
from headrace.ports.connector import Failure
from headrace.ports.control import Admission, Ask, ControlPlane, Ending, Grant, Outcome, Placing, Waiting
from headrace.ports.ledger import Charge, QuotaLedger, Standing, Verdict

_SOON = (Period.NOW, Period.MINUTE)
_REQUESTS, _OF_TOKENS = Measure.REQUESTS, Measure.TOKENS
_ENTRY, _TOKENS = "/entry", "/tokens"
"""What its two reservations are called, after the request."""


class TokenCount(msgspec.Struct):
    """Tokens of requests that are held to limits of them. reserved, settled: since the start. open: reserved for those that
    haven't ended."""

    reserved: int = 0
    settled: int = 0
    open: int = 0


class QuotaPlane(ControlPlane):
    """A control plane that asks *ledger* before and after *placing* grants. Who has no limits passes it by.

    secret_models: to a key that may not use a model, it doesn't exist. held: requests that were granted and haven't ended, by id.
    """

    def __init__(
        self,
        placing: Placing,
        ledger: QuotaLedger,
        clock: Clock,
        recorder: Recorder | None = None,
        *,
        secret_models: bool = False,
    ) -> None:
        self.placing = placing
        self.ledger = ledger
        self.clock = clock
        self._recorder = recorder
        self._secret_models = secret_models
        self.held: dict[str, _Held] = {}
        self.refusals: dict[str, int] = {}
        self.tokens = TokenCount()

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """See the port."""
        if "@" in ask.model:
            ask = self.placing.resolved(ask)
        principal = ask.principal
        if principal.models and not principal.may_use(ask.model):
            told.refused(self.count(ask, self._not_allowed(ask.model)))
            return _NOTHING
        if not principal.entry and not principal.tokens:
            return self.placing.admit(ask, told)
        held = _Held(self, ask, told)
        if principal.tokens:  # who has nothing left is refused at once, before anything is reserved
            self.ledger.peek(principal.tokens, held.peeked)
        else:
            held.enter()
        return held

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """See the port. What was reserved for the request stays so."""
        held = self.held.get(grant.ask.request_id)
        if held is None:
            return self.placing.retry(grant, failure, told)
        held.told = told
        held.waiting = self.placing.retry(grant, failure, held)
        return held

    def answering(self, grant: Grant) -> None:
        """See the port."""
        self.placing.answering(grant)

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """See the port."""
        self.placing.finish(grant, outcome)
        held = self.held.pop(grant.ask.request_id, None)
        if held is not None:
            held.waiting = None  # it knows *held*, too: nothing is left to the garbage collector
            held.settle(outcome.usage.total_tokens)

    def _not_allowed(self, model: str) -> RequestError:
        if self._secret_models:
            return ModelHidden(model)
        return Forbidden(f"Your key may not use the model {model!r}.", code="model_not_allowed")

    def status_of(self, error: RequestError) -> int:
        """Which status a client is told with *error*; 0 where nobody records it."""
        return self._recorder.status_of(error) if self._recorder is not None else 0

    def outcome_of(self, refusal: RequestError) -> Outcome:
        """How a grant ends that nothing was done with, since *refusal* came in between."""
        return Outcome(Ending.FAILED, Usage(), self.status_of(refusal), code_of(refusal))

    def count(self, ask: Ask, refusal: RequestError) -> RequestError:
        """Count and record a request that is refused before it was placed."""
        if self._recorder is not None:
            self._recorder.refused(ask, refusal)
        return self.tally(refusal)

    def tally(self, refusal: RequestError) -> RequestError:
        """Count a refusal by its code."""
        code = code_of(refusal)
        self.refusals[code] = self.refusals.get(code, 0) + 1
        return refusal


class _Held(msgspec.Struct, eq=False):
    """One request that is held to limits, from the question to the settlement: an `Admission`, and a `Waiting`.

    entered, reserved: what is reserved of the windows of its entry, and of its tokens. executed: it was granted, and passed on.
    needed: tokens that are reserved for it.
    """

    owner: QuotaPlane
    ask: Ask
    told: Admission
    waiting: Waiting | None = None
    entered: bool = False
    reserved: bool = False
    executed: bool = False
    withdrawn: bool = False
    standings: tuple[Standing, ...] = ()
    grant: Grant | None = None
    needed: int = 0

    def withdraw(self) -> None:
        """See the port."""
        if self.withdrawn:
            return
        self.withdrawn = True
        if self.waiting is not None:
            self.waiting.withdraw()
        if self.executed:
            self.owner.held.pop(self.ask.request_id, None)
            self.settle(0)
        else:
            self._give_back()

    def settle(self, tokens: int) -> None:
        """The request has ended, and used so many tokens. Idempotent."""
        ledger, request_id = self.owner.ledger, self.ask.request_id
        if self.entered:
            self.entered = False
            ledger.settle(request_id + _ENTRY, {})
        if self.reserved:
            self.reserved = False
            ledger.settle(request_id + _TOKENS, {_OF_TOKENS: tokens})
            counted = self.owner.tokens
            counted.settled += tokens
            counted.open -= self.needed

    def peeked(self, verdict: Verdict) -> None:
        """How the windows of its tokens stand."""
        if self.withdrawn:
            return
        if verdict.refused or verdict.unavailable:
            self._refuse(verdict)
        else:
            self.enter()

    def enter(self) -> None:
        """Reserve what it takes to wait for a place, and then ask for one."""
        ask = self.ask
        windows = ask.principal.entry
        if windows:
            charges = [Charge(window, 1) for window in windows]
            self.owner.ledger.reserve(ask.request_id + _ENTRY, charges, self._entry_decided)
        else:
            self._place()

    def _entry_decided(self, verdict: Verdict) -> None:
        if verdict.refused or verdict.unavailable:
            if not self.withdrawn:
                self._refuse(verdict)
            return
        self.entered = True
        self.standings = verdict.standings
        if self.withdrawn:
            self._give_back()
        else:
            self._place()

    def _place(self) -> None:
        waiting = self.owner.placing.admit(self.ask, self)
        if self.waiting is None:
            self.waiting = waiting

    def granted(self, grant: Grant) -> None:
        """It has a slot: reserve its tokens, unless that was done for an earlier execution."""
        ask = self.ask
        windows = ask.principal.tokens
        if self.reserved or not windows:
            self._pass_on(grant)
            return
        self.grant = grant
        self.needed = needed = ask.estimated_tokens or 1
        charges = [Charge(window, needed) for window in windows]
        self.owner.ledger.reserve(ask.request_id + _TOKENS, charges, self._tokens_decided)

    def _tokens_decided(self, verdict: Verdict) -> None:
        grant, self.grant = self.grant, None
        assert grant is not None, "its tokens are reserved once it is granted"
        placing = self.owner.placing
        granted = self.reserved = not (verdict.refused or verdict.unavailable)
        if granted:
            counted = self.owner.tokens
            counted.reserved += self.needed
            counted.open += self.needed
        if self.withdrawn:
            placing.finish(grant, Outcome(Ending.CANCELLED, Usage(), status=0))
            self._give_back()
        elif granted:
            self.standings += verdict.standings
            self._pass_on(grant)
        else:
            refusal = self._refusal(verdict)
            placing.finish(grant, self.owner.outcome_of(refusal))
            self._give_back()
            self.told.refused(self.owner.tally(refusal))

    def _pass_on(self, grant: Grant) -> None:
        owner = self.owner
        self.executed = True
        owner.held[self.ask.request_id] = self
        self.told.granted(replace(grant, budgets=_nearest(self.standings, owner.clock.now())))

    def refused(self, refusal: RequestError) -> None:
        """There was no place for it, or no further one."""
        if self.executed:
            self.owner.held.pop(self.ask.request_id, None)
            self.settle(0)
        else:
            self._give_back()
        self.told.refused(refusal)

    def _refuse(self, verdict: Verdict) -> None:
        self._give_back()
        self.told.refused(self.owner.count(self.ask, self._refusal(verdict)))

    def _refusal(self, verdict: Verdict) -> RequestError:
        if verdict.unavailable:
            return Unavailable(
                "The quotas can't be checked at the moment.", retry_after_s=1.0, code="quota_unavailable"
            )
        needed = {Measure.TOKENS: self.ask.estimated_tokens}
        now = self.owner.clock.now()
        return _exceeded(verdict, needed, now, _nearest(verdict.standings, now))

    def _give_back(self) -> None:
        """Undo what was reserved: it was never executed."""
        ledger, request_id = self.owner.ledger, self.ask.request_id
        if self.entered:
            self.entered = False
            ledger.release(request_id + _ENTRY)
        if self.reserved:
            self.reserved = False
            ledger.release(request_id + _TOKENS)
            self.owner.tokens.open -= self.needed


class _Nothing(Waiting):
    """The handle of one who was refused at once."""

    def withdraw(self) -> None:
        """Nothing waits."""


_NOTHING = _Nothing()


def _nearest(standings: Sequence[Standing], now: float) -> tuple[Budget, ...]:
    """Of requests and of tokens how that limit stands that is the nearest to its end."""
    requests: Standing | None = None
    tokens: Standing | None = None
    most_requests = most_tokens = -1.0
    for standing in standings:
        window = standing.window
        share = standing.used / window.limit
        measure = window.measure
        if measure is _REQUESTS:
            if share > most_requests:
                most_requests, requests = share, standing
        elif measure is _OF_TOKENS and share > most_tokens:
            most_tokens, tokens = share, standing
    if requests is None:
        return () if tokens is None else (_budget(tokens, now),)
    return (_budget(requests, now),) if tokens is None else (_budget(requests, now), _budget(tokens, now))


def _budget(standing: Standing, now: float) -> Budget:
    window = standing.window
    limit = window.limit
    left, wait_s = limit - standing.used, standing.resets_at - now
    # The built-in functions for this would be a third of it, and every request with limits comes here.
    return Budget(window.measure, limit, left if left > 0 else 0, wait_s if wait_s > 0 else 0.0)  # noqa: FURB136


def _exceeded(
    verdict: Verdict, needed: dict[Measure, int], now: float, budgets: tuple[Budget, ...]
) -> LimitExceeded:
    """What the one hears for whom a window had no room: the one that is renewed last decides."""
    standings = {standing.window: standing for standing in verdict.standings}
    last = max(verdict.refused, key=lambda window: standings[window].resets_at)
    standing = standings[last]
    wait_s = max(1.0, standing.resets_at - now) if standing.resets_at else 1.0
    code = "rate_limit_exceeded" if last.period in _SOON else "insufficient_quota"
    need = needed.get(last.measure, 1)
    if need > last.limit:
        message = f"This request may need {need} {last.measure}, over {_of(last)}."
        return LimitExceeded(message, code=code, retry_after_s=None, budgets=budgets)
    used = f"{standing.used} are used" if last.measure is not Measure.CONCURRENCY else "all are running"
    message = f"You have reached {_of(last)}: {used}."
    return LimitExceeded(message, code=code, retry_after_s=wait_s, budgets=budgets)


def _of(window: Window) -> str:
    if window.measure is Measure.CONCURRENCY:
        return f"your limit of {window.limit} requests at once"
    return f"your limit of {window.limit} {window.measure} per {window.period}"
