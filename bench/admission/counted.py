"""What runs under callgrind: `python -m bench.admission.counted LIBRARY PLAN OUT`; PLAN is a list of sizes."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.admission.scene import Scene, Size
from bench.budget import unit
from bench.budget.counted import UNITS, Callgrind

REQUESTS = 1024
"""Enough that what is done for many at once, commits and batches of ids, has its share in each."""


def main(library: Path, sizes: Sequence[Size]) -> str:
    """Count; what the counts are of, as JSON."""
    callgrind = Callgrind(library)
    scenes = [Scene(size) for size in sizes]
    for scene in scenes:
        scene.warm_up()
    unit.work(UNITS)
    gc.collect()
    gc.freeze()
    gc.disable()
    callgrind.start()
    callgrind.count("unit", UNITS, lambda: unit.work(UNITS))
    for number, scene in enumerate(scenes):
        scene.next_minute()
        callgrind.count(str(number), REQUESTS, lambda: scene.run(REQUESTS))  # noqa: B023 - run at once
    return json.dumps({"divisors": callgrind.divisors})


if __name__ == "__main__":
    plan = [Size(**size) for size in json.loads(sys.argv[2])]
    Path(sys.argv[3]).write_text(main(Path(sys.argv[1]), plan))
