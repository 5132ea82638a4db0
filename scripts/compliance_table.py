#!/usr/bin/env python3
"""Keeps `docs/reference/openai.md`: writes its tests column from the `compliance` markers, and sets statuses.

scripts/compliance_table.py                        refresh the tests column
scripts/compliance_table.py --check                say what is wrong, change nothing; exit 1 if anything is
scripts/compliance_table.py --set "O05=later: with detached answers"
"""

from __future__ import annotations

import sys

from marked_table import ROOT, MarkedTable, Row

HELD, LATER, WAIVED = "held", "later", "waived"


def judge(row: Row, has_tests: bool) -> str | None:
    """What is wrong with the status of a point: `held`, `later: why`, `waived: why`, or the first and one of the others."""
    parts = row.status.split("; ")
    kinds = [part.partition(":")[0] for part in parts]
    if kinds not in ([HELD], [LATER], [WAIVED], [HELD, LATER], [HELD, WAIVED]):
        return f"says {row.status!r}; a point is held, later or waived, or held and for the rest one of the others"
    for part in parts:
        kind, _, reason = part.partition(":")
        if kind != HELD and not reason.strip():
            return f"says {kind!r} and not why"
    if HELD in kinds and not has_tests:
        return "says 'held' and no test proves it"
    if HELD not in kinds and has_tests:
        return f"has tests and says {row.status!r}"
    return None


TABLE = MarkedTable(
    ROOT / "docs" / "reference" / "openai.md", "compliance", "scripts/compliance_table.py", judge
)

if __name__ == "__main__":
    sys.exit(TABLE.main(sys.argv[1:], __doc__))
