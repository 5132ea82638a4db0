"""The fixture that forbids blocking calls on the event loop does its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import blockbuster
import pytest

import headrace

OURS = str(Path(headrace.__path__[0]) / "made_up.py")


def sleeper(file: str) -> Callable[[], None]:
    """A function that blocks, as if it stood in *file*."""
    names: dict[str, Callable[[], None]] = {}
    exec(compile("import time\ndef sleep():\n    time.sleep(0.001)\n", file, "exec"), names)
    return names["sleep"]


async def test_our_code_may_not_block_the_loop() -> None:
    with pytest.raises(blockbuster.BlockingError, match=r"time\.sleep"):
        sleeper(OURS)()


async def test_the_tests_themselves_may() -> None:
    sleeper(__file__)()


def test_our_code_may_block_where_no_loop_runs() -> None:
    sleeper(OURS)()


@pytest.mark.may_block("shows that the marker works")
async def test_a_marked_test_may_block() -> None:
    before = time.monotonic()
    sleeper(OURS)()
    assert time.monotonic() > before
