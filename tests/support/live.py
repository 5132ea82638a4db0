"""Real things that a test wants and may not find: an engine, a database, a compiler."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str, why: str) -> NoReturn:
    """Skip the running test because *what* (a short name like "engine") isn't here: *why*, in a few words.

    Where `HEADRACE_REQUIRE_LIVE` (names with commas, or "all") lists it, the test fails instead.
    """
    required = os.environ.get("HEADRACE_REQUIRE_LIVE", "").split(",")
    if what in required or "all" in required:
        pytest.fail(f"{what} is required here (HEADRACE_REQUIRE_LIVE) and missing: {why}", pytrace=False)
    pytest.skip(f"{what} is missing: {why}")
