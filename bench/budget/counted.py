"""What runs under callgrind: `python -m bench.budget.counted LIBRARY PLAN OUT`.

It sets everything up before counting begins, and writes to the file OUT what each count is of: its name and by how much it is to be
divided. The counts themselves are callgrind's to write, one file each.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

from bench.budget import unit
from bench.budget.marks import Flips
from bench.budget.rig import USUAL, Rig, Size, run_empty, run_nothing
from bench.budget.seams import PARTS
from bench.budget.timing import count_intervals
from bench.budget.traffic import TALKS, Talk

ROUNDS = {"plain": 256, "stream": 64, "long": 16}
"""How often each talk is had for one count: whole batches of request ids, where a request is what is counted."""
UNITS = 2000
EMPTY = 256


class Callgrind:
    """Counts what is run between two flips, as far as callgrind is asked to."""

    def __init__(self, library: Path) -> None:
        calls = ctypes.CDLL(str(library))
        self.start: Callable[[], None] = _bound(calls.start_counting)
        self.flip: Callable[[], None] = _bound(calls.flip)
        self._write = _bound(calls.write_count, ctypes.c_char_p)
        self.divisors: dict[str, int] = {}

    def write(self, name: str, divisor: int) -> None:
        """What was counted since the last time is the count of *name*."""
        self._write(name.encode())
        self.divisors[name] = divisor

    def count(self, name: str, divisor: int, work: Callable[[], object]) -> None:
        """Count all of *work*."""
        self.flip()
        work()
        self.flip()
        self.write(name, divisor)


class Scene:
    """The rigs of one size, warm: one bare, one with marks."""

    def __init__(self, name: str, size: Size, callgrind: Callgrind) -> None:
        self._name = name
        self._callgrind = callgrind
        self._marks = Flips(callgrind.flip)
        self._bare = Rig(size)
        self._marked = Rig(size, self._marks)
        self._talks = TALKS if size == USUAL else {"plain": TALKS["plain"]}

    async def open(self) -> None:
        """Connect, and run everything often enough for the interpreter to have adapted to it."""
        for rig in (self._bare, self._marked):
            await rig.open(TALKS["plain"])
            for talk in (*self._talks.values(), TALKS["plain"]):
                rig.check(talk)
                rig.run(talk, 40)
                rig.check(talk)

    def count(self) -> None:
        """Count the talks as wholes, then each part of them."""
        for kind, talk in self._talks.items():
            self._count(kind, talk, ROUNDS[kind])

    def _count(self, kind: str, talk: Talk, rounds: int) -> None:
        count = self._callgrind.count
        count(f"{self._name}/{kind}/whole", rounds, lambda: self._bare.run(talk, rounds))
        count(f"{self._name}/{kind}/driver", rounds, lambda: run_nothing(talk, rounds))
        for part in PARTS:
            self._marks.wanted = part
            self._marked.run(talk, rounds)
            self._callgrind.write(f"{self._name}/{kind}/{part}", rounds)


async def main(library: Path, sizes: dict[str, Size]) -> str:
    """Count at each of *sizes*; what the counts are of, as JSON."""
    callgrind = Callgrind(library)
    scenes = [Scene(name, size, callgrind) for name, size in sizes.items()]
    for scene in scenes:
        await scene.open()
    empty = Flips(callgrind.flip)
    empty.wanted = "empty"
    for warm_up in (lambda: run_empty("other", empty, EMPTY), lambda: unit.work(EMPTY)):
        warm_up()
    gc.collect()
    gc.freeze()
    gc.disable()
    callgrind.start()
    callgrind.count("unit", UNITS, lambda: unit.work(UNITS))
    run_empty("empty", empty, EMPTY)
    callgrind.write("empty", EMPTY)
    for scene in scenes:
        scene.count()
    return json.dumps({"divisors": callgrind.divisors, "intervals": await count_intervals()})


def _bound(function: ctypes._NamedFuncPointer, *arguments: type[ctypes.c_char_p]) -> Callable[..., None]:
    function.argtypes = arguments
    function.restype = None
    bound: Callable[..., None] = function
    return bound


if __name__ == "__main__":
    plan = {name: Size(**size) for name, size in json.loads(sys.argv[2]).items()}
    Path(sys.argv[3]).write_text(asyncio.run(main(Path(sys.argv[1]), plan)))
