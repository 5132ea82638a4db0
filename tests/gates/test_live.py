"""A test whose real counterpart is missing is skipped, and fails where it is required."""

from __future__ import annotations

import pytest

from support.live import missing


@pytest.mark.parametrize(
    ("required", "fails"),
    [("", False), ("postgres", False), ("engine", True), ("a,engine", True), ("all", True)],
)
def test_what_is_required_may_not_be_missing(
    monkeypatch: pytest.MonkeyPatch, required: str, fails: bool
) -> None:
    monkeypatch.setenv("HEADRACE_REQUIRE_LIVE", required)
    with pytest.raises(pytest.fail.Exception if fails else pytest.skip.Exception, match="no wheel"):
        missing("engine", "no wheel")
