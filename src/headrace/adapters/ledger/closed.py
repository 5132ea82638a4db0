"""The memory for reservations that are closed, or were refused."""

from __future__ import annotations

from headrace.ports.ledger import Verdict

CLOSED = Verdict(unavailable="this reservation is closed")


class Closed:
    """Remembers at least the last *at_least* ids, and at most twice as many, each with the answer to who asks again."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self.fresh: dict[str, Verdict] = {}
        self.stale: dict[str, Verdict] = {}

    def __len__(self) -> int:
        return len(self.fresh) + len(self.stale)

    def add(self, reservation: str, answer: Verdict = CLOSED) -> None:
        """Remember it. Once half is full, the older half is forgotten: no list is kept in order, nothing is searched."""
        self.fresh[reservation] = answer
        if len(self.fresh) >= self._at_least:
            self.stale, self.fresh = self.fresh, {}

    def get(self, reservation: str) -> Verdict | None:
        """What who asks again is told; None when it isn't remembered."""
        return self.fresh.get(reservation) or self.stale.get(reservation)
