"""docs/requirements.md and the tests' `req` markers say the same."""

from __future__ import annotations

from marked_table import ROW, read_rows
from requirements_table import TABLE

COUNTS = {"A": 25, "B": 29, "C": 54, "D": 51, "E": 69, "R": 8}


def test_the_table_agrees_with_the_tests() -> None:
    wrong = TABLE.problems(read_rows(TABLE.document.read_text(encoding="utf-8")), TABLE.find())
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_requirement_once() -> None:
    lines = TABLE.document.read_text(encoding="utf-8").splitlines()
    assert [match["number"] for match in map(ROW.match, lines) if match] == [
        f"{letter}{place:02}" for letter, count in COUNTS.items() for place in range(1, count + 1)
    ]
