"""How a ledger's keys are called in Redis: `user:alice:quota:daily:requests:used`."""

from __future__ import annotations

from headrace.domain.quota import Measure, Period, Window

_PERIODS = {Period.MINUTE: "minutely", Period.DAY: "daily", Period.MONTH: "monthly"}
_TAILS = {
    (measure, period): f":quota:{name}:{measure}:used"
    for period, name in _PERIODS.items()
    for measure in (Measure.REQUESTS, Measure.TOKENS)
}
_LEASES = ":quota:concurrency:leases"


class Keys:
    """Names with *prefix* in front. A prefix with a hash tag, `{headrace}:`, puts all of them into one slot of a cluster:
    one script looks at windows of a key, a user and an address together, which must lie in one place."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix

    def window(self, window: Window) -> str:
        """Where *window* is counted. Beside `…:used` lie `…:limit` and `…:starts_at`."""
        return f"{self._prefix}{window.subject}{_TAILS.get((window.measure, window.period), _LEASES)}"

    def reservation(self, reservation: str) -> str:
        """Where a reservation is kept."""
        return f"{self._prefix}quota:reservation:{reservation}"
