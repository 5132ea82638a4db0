"""What limits mean, and when windows begin and end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from headrace.domain.quota import UNLIMITED, Limits, Measure, Period, Window, entry_and_tokens

ALL = Limits(1, 2, 3, 4, 5, 6, 7)


def test_each_limit_is_a_window_and_zero_and_nothing_are_none() -> None:
    assert [(w.measure, w.period, w.limit) for w in ALL.windows("user:ann")] == [
        (Measure.REQUESTS, Period.MINUTE, 1),
        (Measure.REQUESTS, Period.DAY, 2),
        (Measure.REQUESTS, Period.MONTH, 3),
        (Measure.TOKENS, Period.MINUTE, 4),
        (Measure.TOKENS, Period.DAY, 5),
        (Measure.TOKENS, Period.MONTH, 6),
        (Measure.CONCURRENCY, Period.NOW, 7),
    ]
    assert Limits(0, 0, 0, 0, 0, 0, 0).windows("user:ann") == UNLIMITED.windows("user:ann") == ()


@pytest.mark.parametrize(
    ("own", "others", "effective"),
    [
        (Limits(), ALL, ALL),
        (ALL, Limits(9, 9, 9, 9, 9, 9, 9), ALL),
        (Limits(requests_per_day=0), ALL, Limits(1, 0, 3, 4, 5, 6, 7)),
        (Limits(tokens_per_month=8), Limits(), Limits(0, 0, 0, 0, 0, 8, 0)),
        (Limits(), Limits(), Limits(0, 0, 0, 0, 0, 0, 0)),
        (Limits(concurrency=0), Limits(concurrency=0), Limits(0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_own_limits_go_over_others_each_by_itself(own: Limits, others: Limits, effective: Limits) -> None:
    assert own.over(others) == effective


def test_a_request_is_held_to_tokens_later_than_to_all_else() -> None:
    entry, tokens = entry_and_tokens(ALL.windows("key:k"))
    assert [window.limit for window in entry] == [1, 2, 3, 7]
    assert [window.limit for window in tokens] == [4, 5, 6]
    assert entry[0] == Window("key:k", Measure.REQUESTS, Period.MINUTE, 1)


@pytest.mark.parametrize(
    ("period", "begins", "ends"),
    [
        (Period.MINUTE, "2024-02-29T23:59", "2024-03-01T00:00"),
        (Period.DAY, "2024-02-29T00:00", "2024-03-01T00:00"),
        (Period.MONTH, "2024-02-01T00:00", "2024-03-01T00:00"),
    ],
)
def test_windows_begin_with_their_unit_of_utc(period: Period, begins: str, ends: str) -> None:
    now = datetime(2024, 2, 29, 23, 59, 59, 900_000, UTC).timestamp()
    moments = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M") for at in period.bounds(now)]
    assert moments == [begins, ends]
    assert period.bounds(period.bounds(now)[1])[0] == period.bounds(now)[1], "the next one follows at once"


def test_what_runs_now_has_no_end() -> None:
    assert Period.NOW.bounds(1e9) == (0, 0)
