"""What waits for an answer of Redis. Objects, because a closure for each call would cost more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.adapters.ledger.allowances import Allowance
from headrace.adapters.ledger.redis_pipe import Call
from headrace.domain.quota import Window
from headrace.ports.ledger import Charge, Told, Verdict

if TYPE_CHECKING:
    from headrace.adapters.ledger.redis import RedisLedger


class Asking:
    """A reservation on its way."""

    __slots__ = ("again", "attempt", "call", "charges", "ledger", "reservation", "told")

    def __init__(self, ledger: RedisLedger, reservation: str, charges: Sequence[Charge], told: Told) -> None:
        self.ledger = ledger
        self.reservation = reservation
        self.charges = charges
        self.told = told
        self.attempt = ""
        self.again = False  # after a refusal, because room was made
        self.call: Call | None = None

    def answered(self, answer: bytes | None) -> None:
        """Tell the verdict; without an answer, what may have been reserved is given back."""
        ledger = self.ledger
        if answer is None:
            if self.call is not None and self.call.sent:
                ledger.undo(self.reservation, self.attempt)
            self.told(ledger.without_redis(self.reservation, self.charges))
            return
        verdict = ledger.answer([charge.window for charge in self.charges], answer)
        if verdict.refused and not self.again and ledger.make_room(verdict.refused):
            self.again = True
            ledger.ask(self)
            return
        if verdict.granted:
            ledger.granted(self, verdict)
        self.told(verdict)


class Drawing(Asking):
    """An allowance on its way."""

    __slots__ = ("allowance",)

    def __init__(self, ledger: RedisLedger, allowance: Allowance) -> None:
        charge = Charge(allowance.window, allowance.amount)
        super().__init__(ledger, allowance.reservation, (charge,), self._heard)
        self.allowance = allowance

    def answered(self, answer: bytes | None) -> None:
        """Have it or not: nobody waits."""
        if answer is None:
            if self.call is not None and self.call.sent:
                self.ledger.undo(self.reservation, self.attempt)
            self._heard(Verdict(unavailable="no answer"))
        else:
            self._heard(self.ledger.answer((self.allowance.window,), answer))

    def _heard(self, verdict: Verdict) -> None:
        self.ledger.drawn(self.allowance, verdict)


class Peeking:
    """A question on its way."""

    __slots__ = ("ledger", "told", "windows")

    def __init__(self, ledger: RedisLedger, windows: Sequence[Window], told: Told) -> None:
        self.ledger = ledger
        self.windows = windows
        self.told = told

    def answered(self, answer: bytes | None) -> None:
        """Tell the verdict."""
        ledger = self.ledger
        if answer is None:
            self.told(ledger.look_without_redis(self.windows))
        else:
            self.told(ledger.answer(self.windows, answer))


class Renewing:
    """Leases that are being renewed."""

    __slots__ = ("ledger", "reservations", "sent_at")

    def __init__(self, ledger: RedisLedger, reservations: Sequence[str], sent_at: float) -> None:
        self.ledger = ledger
        self.reservations = reservations
        self.sent_at = sent_at

    def answered(self, answer: bytes | None) -> None:
        """Without an answer they are renewed next time."""
        if answer is not None:
            self.ledger.renewed(self.reservations, answer, self.sent_at)
