"""docs/reference/openai.md and the tests' `compliance` markers say the same."""

from __future__ import annotations

from compliance_table import TABLE
from marked_table import ROW, read_rows

POINTS = [
    *range(1, 8), *range(10, 19), *range(20, 24), 30, 31, *range(40, 45), *range(50, 53), 60, 70, 71, 95, 96,
]  # fmt: skip


def test_the_table_agrees_with_the_tests() -> None:
    wrong = TABLE.problems(read_rows(TABLE.document.read_text(encoding="utf-8")), TABLE.find())
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_point_once_and_in_order() -> None:
    lines = TABLE.document.read_text(encoding="utf-8").splitlines()
    assert [match["number"] for match in map(ROW.match, lines) if match] == [f"O{p:02}" for p in POINTS]
