"""One at a time, across processes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, wait: Callable[[], object]) -> Iterator[None]:
    """Hold the lock at *path* (made if it isn't there; it stays). The kernel frees it if this process dies.

    While another holder has it, *wait* is called again and again: it should sleep for a moment, and raises to give up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
        yield
