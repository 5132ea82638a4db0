"""What every stack is started on, what is known of one that is up, and how it gets there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.endpoint import Endpoint
from bench.procs import running
from bench.programs import Programs, Upstream

UP_WITHIN_S = 60.0


class Unavailable(Exception):
    """This stack can't be measured here; the text says why in one line. Nothing of it is left running."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that is up. `pid` is None where there is no gateway; `configuration` is what it was started with."""

    name: str
    endpoint: Endpoint
    pid: int | None
    configuration: str


@dataclass(frozen=True, slots=True)
class Site:
    """What every stack is started on: the built programs, the upstream behind it, and a folder for its files.

    records: so many are in the database of the checkout's gateway before it starts.
    """

    programs: Programs
    upstream: Upstream
    folder: Path
    records: int = 0


def installed(name: str, path: Path | None) -> Path:
    """The path of a program.

    Raises:
        Unavailable: it isn't there.
    """
    if path is None or not path.exists():
        raise Unavailable(f"{name}: not installed")
    return path


@contextmanager
def up(
    name: str,
    command: Sequence[str],
    folder: Path,
    port: int,
    *,
    env: dict[str, str] | None = None,
    health: str = "/health",
) -> Iterator[subprocess.Popen[str]]:
    """Run a gateway until the block ends; it answers GET `health` with a 200 when that begins.

    Raises:
        Unavailable: it ended at once, or gave no 200 within `UP_WITHIN_S`; the text has the last line of its log.
    """
    log = folder / f"{name}.log"
    with log.open("w") as output, running(command, stdout=output, stderr=output, env=env) as process:
        if not Endpoint(port).wait_until_up(health, UP_WITHIN_S, lambda: process.poll() is None):
            words = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Unavailable(f"{name}: didn't come up ({words[-1][:200]})")
        yield process
