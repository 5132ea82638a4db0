"""The two C programs: built where they're missing or older than their source."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.endpoint import Endpoint
from bench.procs import LOAD_CORE, pinned, running

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
SLACK_S = 30.0
"""How long a load may take beyond its own time before it's given up."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one run of the load generator saw. Rates count what was complete in its time; `took_s` is that
    with the spread before it and the draining after it."""

    ok: int
    bad: int
    left: int
    cut: int
    redials: int
    events: int
    requests_per_s: float
    events_per_s: float
    took_s: float
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    first_event_p50_ms: float
    first_event_p90_ms: float
    first_event_p99_ms: float
    first_event_max_ms: float
    gap_p50_ms: float
    gap_p90_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    first_error: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running upstream, asked directly: never through a gateway."""

    endpoint: Endpoint
    pid: int

    def set(self, values: Mapping[str, int]) -> None:
        """Change what it gives (`tokens`, `interval_us`, `delay_us`, `head_delay_us`), for requests from now on."""
        query = "&".join(f"{name}={value}" for name, value in values.items())
        self.endpoint.ask("POST", f"/set?{query}")

    def stats(self) -> dict[str, int]:
        """Its counters: streams `started`, `finished`, `aborted`, `active`; plain `answered`, `pending`,
        `plain_aborted`; `last_abort_us` on the machine's monotonic clock."""
        stats: dict[str, int] = json.loads(self.endpoint.ask("GET", "/stats").body)
        return stats


@dataclass(frozen=True, slots=True)
class Offer:
    """A load that is under way."""

    process: subprocess.Popen[str]

    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return self.process.poll() is not None

    def result(self, within_s: float) -> LoadResult:
        """Wait for its end.

        Raises:
            subprocess.CalledProcessError: it gave no result; its words are on standard error.
            subprocess.TimeoutExpired: it took longer.
        """
        told, _ = self.process.communicate(timeout=within_s)
        if self.process.returncode:
            raise subprocess.CalledProcessError(self.process.returncode, self.process.args)
        return LoadResult(**json.loads(told))


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the built programs lie."""

    upstream: Path
    load: Path

    @classmethod
    def build(cls, folder: Path = BUILD) -> Programs:
        """Compile what is missing or out of date, warnings being errors.

        Raises:
            subprocess.CalledProcessError: the compiler refused; its words are on standard error.
            FileNotFoundError: there is no gcc.
        """
        folder.mkdir(parents=True, exist_ok=True)
        header = HERE / "http1.h"
        for name in ("upstream", "load"):
            source, binary = HERE / f"{name}.c", folder / name
            newest = max(source.stat().st_mtime, header.stat().st_mtime)
            if not binary.exists() or binary.stat().st_mtime < newest:
                subprocess.run(["gcc", *FLAGS, "-o", str(binary), str(source)], check=True, timeout=120)
        return cls(folder / "upstream", folder / "load")

    @contextmanager
    def serving(self, *options: str) -> Iterator[Upstream]:
        """Run an upstream on a free port for as long as the block lasts."""
        command = pinned([str(self.upstream), *options], LOAD_CORE)
        with running(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[1])
            yield Upstream(Endpoint(port), process.pid)

    def offer(self, port: int, seconds: float, options: Sequence[str]) -> LoadResult:
        """Put load on `port` for `seconds` and what drains afterwards.

        Raises:
            subprocess.CalledProcessError: nobody listens there, or an option is wrong.
            subprocess.TimeoutExpired: it took `SLACK_S` longer than it should; it was killed.
        """
        with self.offering(port, seconds, options) as offer:
            return offer.result(seconds + SLACK_S)

    @contextmanager
    def offering(self, port: int, seconds: float, options: Sequence[str]) -> Iterator[Offer]:
        """The same while the block runs: it can look at the gateway meanwhile. The load is gone when the block ends."""
        command = pinned(
            [str(self.load), "--port", str(port), "--seconds", str(seconds), *options], LOAD_CORE
        )
        with running(command, stdout=subprocess.PIPE) as process:
            yield Offer(process)
