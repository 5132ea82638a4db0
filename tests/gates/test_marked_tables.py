"""How tables are kept whose last column comes from the tests' markers."""

from __future__ import annotations

from pathlib import Path

import pytest

import marked_table
from compliance_table import judge as judge_point
from marked_table import MarkedTable, Row
from requirements_table import judge as judge_requirement

TABLE = MarkedTable(Path("unused"), "req", "scripts/a_table.py", judge_requirement)


def test_markers_are_found_on_functions_classes_modules_and_contracts(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        'pytestmark = [pytest.mark.req("A01")]\n'
        '@pytest.mark.req("A02", "A03")\n'
        '@pytest.mark.other("A05")\n'
        "async def test_one(): ...\n"
        '@pytest.mark.req("A03")\n'
        "class TestTwo:\n"
        '    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.req("A04"))])\n'
        "    def test_three(self, x): ...\n"
    )
    (tmp_path / "port_contract.py").write_text(
        'import pytest\nclass Contract:\n    @pytest.mark.req("A04")\n    def test_four(self): ...\n'
    )
    assert TABLE.find(tmp_path) == {
        "A01": ("test_x.py",),
        "A02": ("test_x.py::test_one",),
        "A03": ("test_x.py::TestTwo", "test_x.py::test_one"),
        "A04": ("port_contract.py::Contract::test_four", "test_x.py::TestTwo::test_three"),
    }


@pytest.mark.parametrize(
    ("status", "written", "found", "wrong"),
    [
        ("done", "`test_x.py::test_y`", {"A01": ("test_x.py::test_y",)}, ""),
        ("not yet", "-", {}, ""),
        ("not yet", "`test_x.py::test_y`", {"A01": ("test_x.py::test_y",)}, "says 'not yet'"),
        ("partly", "-", {}, "no test proves it"),
        ("done", "-", {"A01": ("test_x.py::test_y",)}, "its tests changed; run scripts/a_table.py"),
        ("finished", "-", {}, "is not a status"),
        ("not yet", "-", {"Z99": ("test_x.py::test_y",)}, "not in the table"),
    ],
)
def test_what_does_not_agree_is_told(
    status: str, written: str, found: dict[str, tuple[str, ...]], wrong: str
) -> None:
    rows = marked_table.read_rows(f"| A01 | A title | {status} | {written} |")
    told = TABLE.problems(rows, found)
    assert len(told) == bool(wrong)
    assert wrong in "".join(told)


@pytest.mark.parametrize(
    ("status", "has_tests", "wrong"),
    [
        ("held", True, None),
        ("later: with quotas", False, None),
        ("waived: it would cost a parse of each token", False, None),
        ("held; later: the edge's part", True, None),
        ("held; waived: what the backend does", True, None),
        ("held", False, "no test proves it"),
        ("held; later: the rest", False, "no test proves it"),
        ("later: with quotas", True, "has tests"),
        ("later", False, "not why"),
        ("waived: ", False, "not why"),
        ("held; later:", True, "not why"),
        ("done", True, "is held, later or waived"),
        ("", False, "is held, later or waived"),
        ("later: a; held", True, "is held, later or waived"),
    ],
)
def test_a_point_is_held_or_says_why_not(status: str, has_tests: bool, wrong: str | None) -> None:
    told = judge_point(Row("O01", "A title", status, ()), has_tests)
    assert (told is None) is (wrong is None)
    assert (wrong or "") in (told or "")


def test_refreshing_keeps_titles_and_other_lines_and_sets_statuses() -> None:
    text = "# Title\n\n| A01 | One | not yet | - |\n| A02 | Two | partly | `gone.py::test` |\n"
    fresh = marked_table.refreshed(text, {"A01": ("b.py::t", "c.py::t")}, {"A01": "done"})
    assert fresh == "# Title\n\n| A01 | One | done | `b.py::t`<br>`c.py::t` |\n| A02 | Two | partly | - |\n"


def test_the_command_line_writes_checks_and_refuses_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "table.md"
    document.write_text("| Z01 | One | done | - |\n")
    table = MarkedTable(document, "no_such_marker", "x", judge_requirement)
    assert table.main(["--check"], "") == 1
    assert "no test proves it" in capsys.readouterr().out
    assert table.main(["--set", "Z01=not yet"], "") == 0
    assert document.read_text() == "| Z01 | One | not yet | - |\n"
    with pytest.raises(SystemExit):
        table.main(["--set", "Z02=done"], "")
