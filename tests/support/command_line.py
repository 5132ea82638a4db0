"""The command line in a process of its own, and an engine double on a thread of its own for it to talk to."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.testing import FakeEngine, Script
from headrace.testing.fake_engine import Stats

COMMAND = (sys.executable, "-c", "from headrace.cli.main import run; run()")


@dataclass(frozen=True)
class Result:
    """What a command wrote, and its exit status."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def run_apart(*arguments: str, piped: str = "", environ: Mapping[str, str] | None = None) -> Result:
    """Runs a command in a process of its own, with *piped* on its standard input."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=piped,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environ or {})},
    )
    return Result(done.returncode, done.stdout, done.stderr)


class Engine:
    """A fake engine that serves while the test's own thread is busy with a command."""

    def __init__(self, script: Script) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.fake = FakeEngine(script)
        self._do(self.fake.start())

    @property
    def url(self) -> str:
        return self.fake.url

    def until(self, reached: Callable[[Stats], bool]) -> None:
        self._do(self.fake.until(reached, timeout_s=20.0))

    def stop(self) -> None:
        self._do(self.fake.stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
