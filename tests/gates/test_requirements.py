"""docs/requirements.md and the tests' `req` markers say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import requirements_table as table

COUNTS = {"A": 25, "B": 29, "C": 54, "D": 51, "E": 69, "R": 8}


def test_the_table_agrees_with_the_tests() -> None:
    wrong = table.problems(
        table.read_rows(table.TABLE.read_text(encoding="utf-8")), table.find_markers(table.TESTS)
    )
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_requirement_once() -> None:
    lines = table.TABLE.read_text(encoding="utf-8").splitlines()
    numbers = [match["number"] for match in map(table.ROW.match, lines) if match]
    assert numbers == [
        f"{letter}{place:02}" for letter, count in COUNTS.items() for place in range(1, count + 1)
    ]


def test_markers_are_found_on_functions_classes_and_modules(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        'pytestmark = [pytest.mark.req("A01")]\n'
        '@pytest.mark.req("A02", "A03")\n'
        "async def test_one(): ...\n"
        '@pytest.mark.req("A03")\n'
        "class TestTwo:\n"
        '    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.req("A04"))])\n'
        "    def test_three(self, x): ...\n"
    )
    assert table.find_markers(tmp_path) == {
        "A01": ("test_x.py",),
        "A02": ("test_x.py::test_one",),
        "A03": ("test_x.py::TestTwo", "test_x.py::test_one"),
        "A04": ("test_x.py::TestTwo::test_three",),
    }


@pytest.mark.parametrize(
    ("status", "written", "found", "wrong"),
    [
        ("done", "`test_x.py::test_y`", {"A01": ("test_x.py::test_y",)}, ""),
        ("not yet", "-", {}, ""),
        ("not yet", "`test_x.py::test_y`", {"A01": ("test_x.py::test_y",)}, "says 'not yet'"),
        ("partly", "-", {}, "no test proves it"),
        ("done", "-", {"A01": ("test_x.py::test_y",)}, "its tests changed"),
        ("finished", "-", {}, "is not a status"),
        ("not yet", "-", {"Z99": ("test_x.py::test_y",)}, "not in the table"),
    ],
)
def test_what_does_not_agree_is_told(
    status: str, written: str, found: dict[str, tuple[str, ...]], wrong: str
) -> None:
    rows = table.read_rows(f"| A01 | A title | {status} | {written} |")
    told = table.problems(rows, found)
    assert len(told) == bool(wrong)
    assert wrong in "".join(told)


def test_refreshing_keeps_titles_and_other_lines_and_sets_statuses() -> None:
    text = "# Title\n\n| A01 | One | not yet | - |\n| A02 | Two | partly | `gone.py::test` |\n"
    fresh = table.refreshed(text, {"A01": ("b.py::t", "c.py::t")}, {"A01": "done"})
    assert fresh == "# Title\n\n| A01 | One | done | `b.py::t`<br>`c.py::t` |\n| A02 | Two | partly | - |\n"
