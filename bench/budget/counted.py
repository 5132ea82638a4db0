"""What runs under callgrind: `python -m bench.budget.counted LIBRARY PLAN OUT`.

It sets everything up before counting begins, and writes to the file OUT what each count is of: its name and by how much it is to be
divided. The counts themselves are callgrind's to write, one file each.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

from bench.budget import unit
from bench.budget.marks import Flips
from bench.budget.rig import USUAL, Rig, Size, Surroundings, run_empty, run_nothing
from bench.budget.seams import ADMIT, ANSWER, FINISH, KEY, LATER, PARTS, READ, RECEIVE
from bench.budget.timing import count_intervals
from bench.budget.traffic import TALKS, Talk

BATCH = 256
"""How often a talk is had for a count with request ids in it, which are made so many at once."""
ROUNDS = {"plain": 64, "stream": 32, "long": 16}
"""How often for one without."""
PARTS_OF = {"plain": tuple(PARTS), "stream": tuple(PARTS), "long": (RECEIVE, ANSWER, LATER)}
"""The parts that are counted, besides the whole. Of a long stream, those that a further token passes."""
DECIDING = (KEY, ADMIT, FINISH)
"""At sizes other than the usual one: those that look something up."""
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
        around = Surroundings(size)
        self._bare = Rig(around)
        self._marked = Rig(around, self._marks)
        self._served = size.served
        self._usual = size == USUAL
        self._talks = TALKS if self._usual else {"plain": TALKS["plain"]}

    def warm_up(self) -> None:
        """Run everything often enough for the interpreter to have adapted to it."""
        for rig in (self._bare, self._marked):
            for talk in (*self._talks.values(), TALKS["plain"]):
                rig.check(talk)
                rig.run(talk, 40)
                rig.check(talk)
            rig.run(TALKS["plain"], self._served)

    def count(self) -> None:
        """Count the talks as wholes, then each part of them."""
        for kind, talk in self._talks.items():
            self._count_whole(kind, talk)
            for part in PARTS_OF[kind] if self._usual else DECIDING:
                self._count_part(kind, talk, part)

    def _count_whole(self, kind: str, talk: Talk) -> None:
        count = self._callgrind.count
        count(f"{self._name}/{kind}/whole", BATCH, lambda: self._bare.run(talk, BATCH))
        count(f"{self._name}/{kind}/driver", BATCH, lambda: run_nothing(talk, BATCH))

    def _count_part(self, kind: str, talk: Talk, part: str) -> None:
        rounds = BATCH if part == READ else ROUNDS[kind]
        self._marks.wanted = part
        self._marked.run(talk, rounds)
        self._callgrind.write(f"{self._name}/{kind}/{part}", rounds)


def main(library: Path, sizes: dict[str, Size]) -> str:
    """Count at each of *sizes*; what the counts are of, as JSON."""
    callgrind = Callgrind(library)
    scenes = [Scene(name, size, callgrind) for name, size in sizes.items()]
    for scene in scenes:
        scene.warm_up()
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
    return json.dumps({"divisors": callgrind.divisors, "intervals": count_intervals()})


def _bound(function: ctypes._NamedFuncPointer, *arguments: type[ctypes.c_char_p]) -> Callable[..., None]:
    function.argtypes = arguments
    function.restype = None
    bound: Callable[..., None] = function
    return bound


if __name__ == "__main__":
    plan = {name: Size(**size) for name, size in json.loads(sys.argv[2]).items()}
    Path(sys.argv[3]).write_text(main(Path(sys.argv[1]), plan))
