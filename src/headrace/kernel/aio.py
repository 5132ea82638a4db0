"""Supervised tasks: the one place where Headrace calls `create_task`.

A background task belongs to an owner. When it dies of an error, the owner hears of it and ends too; when the owner
closes, its tasks are cancelled and awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

log = structlog.get_logger(__name__)


class Tasks:
    """The background tasks of one owner, as an async context manager.

    `on_death` is called with the error of a task that died by itself (not by `close`), at most once; without it the
    error is logged. Leaving the context cancels what still runs and waits for it.
    """

    def __init__(self, on_death: Callable[[BaseException], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_death = on_death
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, object], *, name: str) -> asyncio.Task[Any]:
        """Start *work* under this owner. Needs a running event loop.

        Raises:
            RuntimeError: the owner is closed; *work* was not started.
        """
        if self._closed:
            work.close()
            raise RuntimeError(f"task {name!r} started after its owner closed")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what runs and wait until it has ended; idempotent."""
        self._closed = True
        while self._tasks:
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._closed or self._on_death is None:
            log.error("a background task died", action="task.died", task=task.get_name(), exc_info=error)
            return
        on_death, self._on_death = self._on_death, None
        on_death(error)
