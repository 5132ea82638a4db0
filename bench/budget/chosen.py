"""What runs under callgrind to count choices: `python -m bench.budget.chosen LIBRARY PLAN OUT`; PLAN says among how many backends."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.budget import unit
from bench.budget.counted import UNITS, Callgrind
from headrace.control.strategies import Candidates, Cursor, Load, Wish, choose
from headrace.domain.fleet import Node
from headrace.domain.routing import Strategy

MODEL = "model"
SLOTS = 8
FULL = (0, 50, 99)
"""Per cent of the backends that have no free slot."""
BATCH = 256
SLOT = "slot"


class Fleet:
    """Backends of which some are full, and all others are used more or less, of different paces and weights."""

    def __init__(self, backends: int, full: int) -> None:
        chance = random.Random(f"{backends}/{full}")
        self.nodes = [
            Node(f"backend-{number}", "direct", capacity=SLOTS, weight=1.0 + number % 7)
            for number in range(backends)
        ]
        chance.shuffle(self.nodes)
        self.load = Load()
        for number, node in enumerate(self.nodes):
            self.load.allow(node.id, SLOTS)
            self.load.observe(node.id, MODEL, chance.uniform(0.1, 2.0), 0.02)
            is_full = number < backends * full // 100
            for _ in range(SLOTS if is_full else chance.randrange(SLOTS)):
                self.load.take(node.id)
        chance.shuffle(self.nodes)
        self.candidates = Candidates(self.nodes, MODEL)

    def choose(self, wishes: Sequence[Wish], cursor: Cursor) -> None:
        """As often as there are wishes, each time with the slot taken and given back: some counting is put off to the next choice."""
        candidates, load = self.candidates, self.load
        for wish in wishes:
            node = choose(candidates, wish, load, cursor)
            assert node is not None
            load.take(node.id)
            load.give_back(node.id)

    def take_and_give_back(self, times: int) -> None:
        """A slot of one that has a free one, so often."""
        load = self.load
        name = next(node.id for node in self.nodes if load.busy.get(node.id, 0) < SLOTS)
        for _ in range(times):
            load.take(name)
            load.give_back(name)


def wishes(strategy: Strategy, first: int = 0) -> list[Wish]:
    """Of as many sessions and prefixes as there are wishes, numbered from *first* on."""
    return [Wish(strategy, MODEL, f"session-{first + n}", first + n + 1) for n in range(BATCH)]


def main(library: Path, backends: int) -> str:
    """Count; what the counts are of, as JSON."""
    callgrind = Callgrind(library)
    fleets = {full: Fleet(backends, full) for full in FULL}
    cursors = {strategy: Cursor() for strategy in Strategy}
    for fleet in fleets.values():
        fleet.take_and_give_back(BATCH)
        for strategy, cursor in cursors.items():
            fleet.choose(wishes(strategy), cursor)
    unit.work(BATCH)
    asked = {(full, strategy): wishes(strategy, BATCH * (full + 1)) for full in FULL for strategy in Strategy}
    gc.collect()
    gc.freeze()
    gc.disable()
    callgrind.start()
    callgrind.count("unit", UNITS, lambda: unit.work(UNITS))
    for full, fleet in fleets.items():
        for strategy, cursor in cursors.items():
            callgrind.count(f"{full}/{strategy}", BATCH, lambda: fleet.choose(asked[full, strategy], cursor))  # noqa: B023 - run at once
        callgrind.count(f"{full}/{SLOT}", BATCH, lambda: fleet.take_and_give_back(BATCH))  # noqa: B023
    return json.dumps({"divisors": callgrind.divisors})


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
