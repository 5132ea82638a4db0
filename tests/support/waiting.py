"""Waiting, with patience, for what no event tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(reached: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait until *reached*.

    Raises:
        TimeoutError: it wasn't, in *timeout_s*.
    """
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
