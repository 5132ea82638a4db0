"""What the fake engine has seen and done, and how a test waits for it."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came. `headers`: lower-case names, in order; `target` with its query."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name; None when it didn't come."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    def json(self) -> Any:
        """The body, decoded.

        Raises:
            msgspec.DecodeError: it isn't JSON.
        """
        return msgspec.json.decode(self.body)


@dataclass(slots=True)
class Stats:
    """Counts of executions: requests that took a slot. `started` is always the sum of the five that follow it.

    finished: answered to the end. aborted: stopped because the client left. wasted: ran to its end for nobody.
    broken: failed as scripted. active: being worked on now.
    refused: requests turned away before they took a slot. queued: waiting for one now.
    tokens: produced so far; embeddings produce none.
    loads: how often a model was brought into memory. pulls: how often Ollama fetched one.
    questions: requests on other paths than inference's and the engine's own.
    connections, connected: accepted so far, and open now. held: those whose client doesn't take more just now.
    executions: how often each `x-request-id` took a slot, of the last 10,000.
    last, received: the latest requests on inference paths, whether or not they were refused.
    """

    started: int = 0
    finished: int = 0
    aborted: int = 0
    wasted: int = 0
    broken: int = 0
    active: int = 0
    max_active: int = 0
    refused: int = 0
    queued: int = 0
    tokens: int = 0
    loads: int = 0
    pulls: int = 0
    questions: int = 0
    connections: int = 0
    connected: int = 0
    held: int = 0
    executions: dict[str, int] = field(default_factory=dict)
    received: deque[Received] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def last(self) -> Received | None:
        """The latest request on an inference path; None before the first."""
        return self.received[-1] if self.received else None

    def counts(self) -> dict[str, int]:
        """The plain counts, by name."""
        return {name: value for name in self.__slots__ if isinstance(value := getattr(self, name), int)}

    def execute(self, request_id: str | None) -> None:
        """Note that a request took a slot."""
        self.started += 1
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        if request_id is not None:
            self.executions[request_id] = self.executions.get(request_id, 0) + 1
            if len(self.executions) > MAX_REMEMBERED:
                del self.executions[next(iter(self.executions))]


class Diary:
    """What became of each inference request, in a file that outlives a killed engine: lines of its `x-request-id` and a word.

    The word is `came` for one that isn't turned away, `ran` when it takes a slot, and the status for one that is turned away.
    Each line is written before anything of the answer is. None as the path: nothing is written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, request_id: str | None, word: str) -> None:
        """Add a line."""
        if self._file is not None:
            os.write(self._file, f"{request_id} {word}\n".encode())

    def close(self) -> None:
        """No more lines. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Watch:
    """Wakes those who wait for the stats to be in some state."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats
        self._waiting: list[tuple[Callable[[Stats], bool], asyncio.Future[None]]] = []

    def changed(self) -> None:
        """Look again at what is waited for."""
        for reached, future in self._waiting:
            if not future.done() and reached(self.stats):
                future.set_result(None)

    async def until(self, reached: Callable[[Stats], bool], timeout_s: float) -> None:
        """Return as soon as *reached* holds of the stats; it may have ceased to by the time the caller runs.

        Raises:
            TimeoutError: it didn't within *timeout_s*; the message has the counts.
        """
        if reached(self.stats):
            return
        entry = (reached, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await entry[1]
        except TimeoutError:
            raise TimeoutError(
                f"not seen within {timeout_s} s; the engine stands at {self.stats.counts()}"
            ) from None
        finally:
            self._waiting.remove(entry)
