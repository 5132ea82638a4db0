"""What the scripts in Redis are given, and what their answers mean. No input, no output."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.adapters.ledger.closed import CLOSED
from headrace.adapters.ledger.redis_keys import Keys
from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import Charge, Standing, Verdict

Given = tuple[list[str], list[str | int]]  # keys, arguments


class Spans(msgspec.Struct, frozen=True):
    """How long things last in Redis, in milliseconds.

    lease: of what runs at once. remember: what is closed or refused. after: windows, after their end, so that clocks that
    differ a little see the same.
    """

    lease: int
    remember: int
    after: int


class Calls:
    """Writes and reads for the scripts."""

    def __init__(self, keys: Keys, spans: Spans) -> None:
        self._keys = keys
        self._spans = spans
        self._running: dict[Period, tuple[int, int]] = {Period.NOW: (0, 0)}

    def reserve(
        self, reservation: str, attempt: str, charges: Sequence[Charge], now: float, *, again: bool
    ) -> Given:
        """For `RESERVE`."""
        spans = self._spans
        keys = [self._keys.reservation(reservation)]
        windows: list[str | int] = []
        open_ms = max(spans.lease, spans.remember)
        for charge in charges:
            window = charge.window
            start, end = self._bounds(window.period, now)
            live_ms = int((end - now) * 1000) + spans.after if end else 0
            open_ms = max(open_ms, live_ms)
            keys.append(self._keys.window(window))
            windows += (window.limit, charge.amount, start, live_ms)
        first: list[str | int] = [
            reservation,
            attempt,
            int(now * 1000),
            open_ms,
            spans.remember,
            spans.lease,
            int(again),
        ]
        return keys, [*first, *windows]

    def settle(self, reservation: str, actual: dict[Measure, int]) -> Given:
        """For `SETTLE`."""
        used = (
            "" if (amount := actual.get(measure)) is None else max(0, amount)
            for measure in (Measure.REQUESTS, Measure.TOKENS)
        )
        return [self._keys.reservation(reservation)], [reservation, self._spans.remember, *used]

    def release(self, reservation: str, attempt: str = "") -> Given:
        """For `RELEASE`; with *attempt*, only what that one reserved."""
        return [self._keys.reservation(reservation)], [reservation, self._spans.remember, attempt]

    def peek(self, windows: Sequence[Window], now: float) -> Given:
        """For `PEEK`."""
        arguments: list[str | int] = [int(now * 1000)]
        for window in windows:
            arguments += (window.limit, self._bounds(window.period, now)[0])
        return [self._keys.window(window) for window in windows], arguments

    def renew(self, reservations: Sequence[str], now: float) -> Given:
        """For `RENEW`."""
        keys = [self._keys.reservation(reservation) for reservation in reservations]
        return keys, [int(now * 1000), self._spans.lease, *reservations]

    def verdict(self, answer: bytes, windows: Sequence[Window]) -> Verdict:
        """What `RESERVE` and `PEEK` answered about *windows*."""
        mark, *parts = answer.decode().split(" ")
        if mark in ("c", "u"):
            return CLOSED
        standings, refused = [], []
        for window, part in zip(
            windows, parts, strict=False
        ):  # a repeat may ask for others than it is answered for
            used, _, start = part.partition(":")
            if used.endswith("!"):
                used = used[:-1]
                refused.append(window)
            standings.append(Standing(window, int(used), self._end(window.period, int(start))))
        return Verdict(tuple(standings), tuple(refused))

    def _bounds(self, period: Period, now: float) -> tuple[int, int]:
        running = self._running.get(period)
        if running is None or (running[1] and not running[0] <= now < running[1]):
            running = self._running[period] = period.bounds(now)
        return running

    def _end(self, period: Period, start: int) -> int:
        running = self._running.get(period)
        return running[1] if running is not None and running[0] == start else period.bounds(start)[1]
