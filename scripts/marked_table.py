"""Tables in the documents whose last column is written from markers in the tests: what they share.

A table has rows `| A01 | title | status | tests |`. People write title and status; the tests column comes from the sources of
the tests, without running them.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
NONE = "-"
ROW = re.compile(
    r"^\| (?P<number>[A-Z]\d\d) \| (?P<title>[^|]*) \| (?P<status>[^|]*) \| (?P<tests>[^|]*) \|$"
)
SOURCES = ("test_*.py", "*_contract.py")
"""Files that have tests; those of contracts run once for each adapter, and are named once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One numbered line. `tests`: where its tests stand, below tests/."""

    number: str
    title: str
    status: str
    tests: tuple[str, ...]

    def render(self) -> str:
        """Its line in the table."""
        tests = "<br>".join(f"`{test}`" for test in self.tests) or NONE
        return f"| {self.number} | {self.title} | {self.status} | {tests} |"


Found = dict[str, tuple[str, ...]]
"""Number → the tests that name it."""


@dataclass(frozen=True, slots=True)
class MarkedTable:
    """One table: the document that it stands in, the marker that names its numbers, the script that keeps it.

    judge: what is wrong with a row's status, given whether tests name it; None where nothing is.
    """

    document: Path
    marker: str
    script: str
    judge: Callable[[Row, bool], str | None]

    def find(self, tests: Path = TESTS) -> Found:
        """For each number that a marker names: the tests that carry it, as `folder/file.py::Class::test`."""
        return find_markers(tests, self.marker)

    def problems(self, rows: dict[str, Row], found: Found) -> list[str]:
        """What is wrong with the table, one sentence each."""
        wrong = [
            f"{number} is marked by {places[0]} and not in the table"
            for number, places in found.items()
            if number not in rows
        ]
        for row in rows.values():
            tests = found.get(row.number, ())
            if row.tests != tests:
                wrong.append(f"{row.number}: its tests changed; run {self.script}")
            if verdict := self.judge(row, bool(tests)):
                wrong.append(f"{row.number} {verdict}")
        return wrong

    def main(self, argv: list[str], description: str | None) -> int:
        """Do what the command line says: refresh, set statuses, or only check."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--check", action="store_true", help="change nothing, say what is wrong")
        parser.add_argument("--set", nargs="+", default=[], metavar="NUMBER=STATUS", help="set a status")
        given = parser.parse_args(argv)
        statuses = dict(item.partition("=")[::2] for item in given.set)
        text, found = self.document.read_text(encoding="utf-8"), self.find()
        if unknown := [number for number in statuses if number not in read_rows(text)]:
            parser.error(f"not in the table: {', '.join(unknown)}")
        if not given.check:
            text = refreshed(text, found, statuses)
            self.document.write_text(text, encoding="utf-8")
        wrong = self.problems(read_rows(text), found)
        sys.stdout.writelines(f"{problem}\n" for problem in wrong)
        return 1 if wrong else 0


def read_rows(text: str) -> dict[str, Row]:
    """The rows of the table in a document, by number."""
    rows = {}
    for match in filter(None, map(ROW.match, text.splitlines())):
        tests = tuple(re.findall(r"`([^`]+)`", match["tests"]))
        rows[match["number"]] = Row(match["number"], match["title"], match["status"].strip(), tests)
    return rows


def refreshed(text: str, found: Found, statuses: dict[str, str]) -> str:
    """The document with a fresh tests column, and these statuses set.

    Raises:
        KeyError: a status is for a number that the table doesn't have.
    """
    rows = read_rows(text)
    for number, status in statuses.items():
        rows[number] = replace(rows[number], status=status)
    lines = []
    for line in text.splitlines():
        match = ROW.match(line)
        row = rows[match["number"]] if match else None
        lines.append(replace(row, tests=found.get(row.number, ())).render() if row else line)
    return "\n".join(lines) + "\n"


def find_markers(tests: Path, marker: str) -> Found:
    """For each number that a marker of this name names: the tests that carry it."""
    found: dict[str, set[str]] = {}
    for path in sorted({path for pattern in SOURCES for path in tests.rglob(pattern)}):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for where, expressions in _marked(tree.body, path.relative_to(tests).as_posix()):
            for number in _numbers(expressions, marker):
                found.setdefault(number, set()).add(where)
    return {number: tuple(sorted(places)) for number, places in found.items()}


def _marked(body: Iterable[ast.stmt], where: str) -> Iterator[tuple[str, list[ast.expr]]]:
    """Each place that can be marked, and the expressions that may mark it."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if statement.name.startswith("test"):
                yield f"{where}::{statement.name}", statement.decorator_list
            case ast.ClassDef():
                inner = f"{where}::{statement.name}"
                yield inner, statement.decorator_list
                yield from _marked(statement.body, inner)
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                yield where, [value]


def _numbers(expressions: Iterable[ast.expr], marker: str) -> list[str]:
    return [
        str(argument.value)
        for expression in expressions
        for node in ast.walk(expression)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == marker
        for argument in node.args
        if isinstance(argument, ast.Constant)
    ]
