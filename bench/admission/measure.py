"""The figures of the part `admission`: operations each second, CPU time and instructions, by limits and by how many keys there are."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.admission import kept
from bench.admission.kept import Kept
from bench.admission.scene import MODES, Scene, Size
from bench.budget import counting

MANY = 100_000
TRIES = 12
REQUESTS = 1024
ALL = "all seven windows"


@dataclass(frozen=True, slots=True)
class Row:
    """One size. us: CPU microseconds of one request when it went best; instructions: of one, None where they can't be counted;
    units: the same as multiples of a fixed piece of Python's work."""

    size: Size
    us: float
    instructions: float | None
    units: float | None

    @property
    def per_s(self) -> float:
        """How many one core carries in a second."""
        return 1e6 / self.us


@dataclass(frozen=True, slots=True)
class AdmissionFigures:
    """rows: with a journal and records that cost nothing. kept: with both in SQLite. uncounted: why there are no instructions."""

    rows: list[Row]
    kept: list[Kept]
    uncounted: str = ""


def measure(
    folder: Path, many: int = MANY, tell: Callable[[str], None] = lambda _line: None
) -> AdmissionFigures:
    """Count and time all sizes, in about six minutes; *many*: the larger number of keys.

    Raises:
        RuntimeError: a request wasn't answered as it should be.
    """
    sizes = all_sizes(many)
    timed = []
    for size in sizes:
        timed.append(time_one(size))
        tell(f"admission: {size} timed")
    found = [kept.measure(folder, Size(mode)) for mode in MODES]
    uncounted = ""
    try:
        counted, _ = counting.run_counted("bench.admission.counted", [asdict(size) for size in sizes])
    except counting.Unavailable as reason:
        counted, uncounted = {}, str(reason)
    rows = [
        Row(size, us, each := counted.get(str(number)), each / counted["unit"] if each else None)
        for number, (size, us) in enumerate(zip(sizes, timed, strict=True))
    ]
    return AdmissionFigures(rows, found, uncounted)


def all_sizes(many: int) -> list[Size]:
    """Each mode with few keys and with *many*; and all windows where each request is its user's first in the minute."""
    return [*map(Size, MODES), *(Size(mode, many) for mode in MODES), Size(ALL, many, fresh=True)]


def time_one(size: Size) -> float:
    """CPU microseconds of one request at that size, when it went best."""
    scene = Scene(size)
    scene.warm_up()
    best = 0.0
    with _frozen():
        for _ in range(TRIES):
            scene.next_minute()
            begun = time.process_time_ns()
            scene.run(REQUESTS)
            us = (time.process_time_ns() - begun) / REQUESTS / 1000
            best = min(best or us, us)
    return best


@contextmanager
def _frozen() -> Iterator[None]:
    """As a running service does it: the collector looks at what is new only."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
