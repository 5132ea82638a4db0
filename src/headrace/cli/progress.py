"""A progress bar for downloads, on standard error; silent where that is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Appears with the first call, is gone after `stop`. Called with the bytes done, and the total if that is known.

    What draws it is imported then, too: a start without a download doesn't pay for it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown: tuple[Progress, TaskID] | None = None
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __call__(self, done: int, total: int | None) -> None:
        """So many bytes are here."""
        if self._terminal:
            progress, task = self._shown = self._shown or self._begin()
            progress.update(task, completed=done, total=total)

    def stop(self) -> None:
        """Take it off the screen. Idempotent."""
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None

    def _begin(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self._title, total=None)
