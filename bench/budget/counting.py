"""Runs the rig under callgrind and reads what it counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.budget.rig import USUAL, Size
from bench.budget.seams import EXPECTED, PARTS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("marks.c")
WITHIN_S = 1800.0
_NAME = re.compile(r"^desc: Trigger: Client Request: (.+)$", re.MULTILINE)
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class Unavailable(Exception):
    """The counting can't be done here; the message says what is missing."""


class Miscounted(Exception):
    """The counts can't be what they should be of; the message says why."""


@dataclass(frozen=True, slots=True)
class Count:
    """Instructions of one exchange: all of it, without a mark; and each part that was counted."""

    whole: float
    parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted. unit: instructions of one `unit.work`. by_size: name of a size → kind of talk → its count."""

    unit: float
    by_size: dict[str, dict[str, Count]]


def count(sizes: Mapping[str, Size] | None = None) -> Counts:
    """Count at each of the named *sizes*; without any, at the usual one, whose name is "usual".

    Raises:
        Unavailable: no valgrind, no compiler, or they don't work here.
        Miscounted: a part was never entered: a seam is no longer on the way of a request.
    """
    plan = {name: asdict(size) for name, size in (sizes or {"usual": USUAL}).items()}
    each, told = run_counted("bench.budget.counted", plan)
    return _counts(each, told["intervals"])


def run_counted(module: str, plan: object) -> tuple[dict[str, float], dict[str, Any]]:
    """Run *module* under callgrind, as `-m module LIBRARY PLAN OUT`; see `counted`. Name of each count → instructions, once divided;
    and what the module told, its `divisors` among it.

    Raises:
        Unavailable: no valgrind, no compiler, or they don't work here.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-budget-") as name:
        folder = Path(name)
        library, facts = _compiled(folder), folder / "facts.json"
        _run(
            [
                "valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no",
                f"--callgrind-out-file={folder / 'counts'}",
                sys.executable, "-m", module, str(library), json.dumps(plan), str(facts),
            ]
        )  # fmt: skip
        told = json.loads(facts.read_text())
        totals = _read(folder)
        return {name: totals[name] / divisor for name, divisor in told["divisors"].items()}, told


def _compiled(folder: Path) -> Path:
    library = folder / "marks.so"
    _run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)])
    return library


def _run(command: list[str]) -> None:
    """In an environment of its own: what stands there moves the stack, and with it some counts by a little."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    try:
        subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=WITHIN_S
        )
    except FileNotFoundError:
        raise Unavailable(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} failed:\n{error.stderr[-2000:]}") from None


def _read(folder: Path) -> dict[str, int]:
    """Name of a count → instructions."""
    found = {}
    for path in folder.glob("counts.*"):
        text = path.read_text()
        name, total = _NAME.search(text), _TOTAL.search(text)
        if name and total:
            found[name[1]] = int(total[1])
    return found


def _counts(each: Mapping[str, float], intervals: Mapping[str, Mapping[str, int]]) -> Counts:
    by_size: dict[str, dict[str, Count]] = {}
    for name, instructions in each.items():
        size, _, rest = name.partition("/")
        kind, _, what = rest.partition("/")
        if what != "whole":
            continue
        if unentered := [part for part in PARTS if part in EXPECTED and not intervals[kind][part]]:
            raise Miscounted(f"a {kind} request passes no seam of: {', '.join(unentered)}")
        parts = {
            part: each[place] - intervals[kind][part] * each["empty"]
            for part in PARTS
            if (place := f"{size}/{kind}/{part}") in each
        }
        whole = instructions - each[f"{size}/{kind}/driver"]
        by_size.setdefault(size, {})[kind] = Count(whole, parts)
    return Counts(each["unit"], by_size)
