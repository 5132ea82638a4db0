"""What may be used, and in which stretch of time: windows of requests, tokens and places."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec


class Measure(StrEnum):
    """What a window counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"  # requests that run right now: given back when they end


class Period(StrEnum):
    """How long a window lasts. All begin with their unit of UTC, so a call never prolongs one."""

    NOW = "now"  # of concurrency: no beginning, no end
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"

    def bounds(self, now: float) -> tuple[int, int]:
        """When the window that *now* falls into begins, and when it ends, in whole seconds since the epoch.

        `NOW` begins at 0 and never ends, which is also written 0.
        """
        if self is Period.MINUTE:
            start = int(now) // 60 * 60
            return start, start + 60
        if self is Period.DAY:
            start = int(now) // 86_400 * 86_400
            return start, start + 86_400
        if self is Period.MONTH:
            first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            following = (first + timedelta(days=32)).replace(day=1)
            return int(first.timestamp()), int(following.timestamp())
        return 0, 0


class Window(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """A limit on what one subject uses in one period. `subject`: `key:ID`, `user:ID` or `address:IP`."""

    subject: str
    measure: Measure
    period: Period
    limit: int


class Limits(msgspec.Struct, frozen=True):
    """What one key or user may use. 0: no limit. None: nothing is said, and what stands above it holds: for a user its tier, for
    a tier nothing; a key has nothing above it, for its user's limits hold beside its own."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrency: int | None = None

    def windows(self, subject: str) -> tuple[Window, ...]:
        """The windows that these limits mean for *subject*."""
        return tuple(
            Window(subject, measure, period, limit)
            for name, measure, period in _WINDOWS
            if (limit := getattr(self, name))
        )

    def over(self, others: Limits) -> Limits:
        """These, and where they say nothing what *others* say; 0 where nobody says anything."""
        said = {}
        for name in self.__struct_fields__:
            own, other = getattr(self, name), getattr(others, name)
            said[name] = (other or 0) if own is None else own
        return Limits(**said)


def entry_and_tokens(windows: tuple[Window, ...]) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """Those that a request is held to when it asks, and those of its tokens, when it gets its slot."""
    tokens = tuple(window for window in windows if window.measure is Measure.TOKENS)
    return tuple(window for window in windows if window not in tokens), tokens


class Tier(msgspec.Struct, frozen=True):
    """What users of one kind may do. default_max_tokens: for requests that set no limit; None: the backend's own."""

    limits: Limits = Limits()
    default_max_tokens: int | None = None


UNLIMITED = Limits()
NO_TIER = Tier()

_WINDOWS = (
    ("requests_per_minute", Measure.REQUESTS, Period.MINUTE),
    ("requests_per_day", Measure.REQUESTS, Period.DAY),
    ("requests_per_month", Measure.REQUESTS, Period.MONTH),
    ("tokens_per_minute", Measure.TOKENS, Period.MINUTE),
    ("tokens_per_day", Measure.TOKENS, Period.DAY),
    ("tokens_per_month", Measure.TOKENS, Period.MONTH),
    ("concurrency", Measure.CONCURRENCY, Period.NOW),
)
