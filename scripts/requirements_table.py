#!/usr/bin/env python3
"""Keeps `docs/requirements.md`: writes its tests column from the `req` markers, and sets statuses.

scripts/requirements_table.py                      refresh the tests column
scripts/requirements_table.py --check              say what is wrong, change nothing; exit 1 if anything is
scripts/requirements_table.py --set C14=done C15=partly
"""

from __future__ import annotations

import sys

from marked_table import ROOT, MarkedTable, Row

STATUSES = ("done", "partly", "not yet")


def judge(row: Row, has_tests: bool) -> str | None:
    """What is wrong with the status of a requirement."""
    if row.status not in STATUSES:
        return f"says {row.status!r}, which is not a status; there are {', '.join(STATUSES)}"
    if row.status == "not yet" and has_tests:
        return "has tests and says 'not yet'"
    if row.status != "not yet" and not has_tests:
        return f"says {row.status!r} and no test proves it"
    return None


TABLE = MarkedTable(ROOT / "docs" / "requirements.md", "req", "scripts/requirements_table.py", judge)

if __name__ == "__main__":
    sys.exit(TABLE.main(sys.argv[1:], __doc__))
