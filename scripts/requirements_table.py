#!/usr/bin/env python3
"""Keeps `docs/requirements.md`: writes its tests column from the `req` markers, and sets statuses.

scripts/requirements_table.py                      refresh the tests column
scripts/requirements_table.py --check              say what is wrong, change nothing; exit 1 if anything is
scripts/requirements_table.py --set C14=done C15=partly
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "requirements.md"
TESTS = ROOT / "tests"
STATUSES = ("done", "partly", "not yet")
NONE = "-"
ROW = re.compile(
    r"^\| (?P<number>[A-Z]\d\d) \| (?P<title>[^|]*) \| (?P<status>[^|]*) \| (?P<tests>[^|]*) \|$"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement. `tests`: where its tests stand, below tests/."""

    number: str
    title: str
    status: str
    tests: tuple[str, ...]

    def render(self) -> str:
        """Its line in the table."""
        tests = "<br>".join(f"`{test}`" for test in self.tests) or NONE
        return f"| {self.number} | {self.title} | {self.status} | {tests} |"


def read_rows(text: str) -> dict[str, Row]:
    """The rows of the table, by number."""
    rows = {}
    for match in filter(None, map(ROW.match, text.splitlines())):
        tests = tuple(re.findall(r"`([^`]+)`", match["tests"]))
        rows[match["number"]] = Row(match["number"], match["title"], match["status"].strip(), tests)
    return rows


def find_markers(tests: Path) -> dict[str, tuple[str, ...]]:
    """For each number that a `req` marker names: the tests that carry it, as `folder/file.py::Class::test`."""
    found: dict[str, set[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for where, numbers in _marked(tree.body, path.relative_to(tests).as_posix()):
            for number in numbers:
                found.setdefault(number, set()).add(where)
    return {number: tuple(sorted(places)) for number, places in found.items()}


def _marked(body: Iterable[ast.stmt], where: str) -> Iterator[tuple[str, list[str]]]:
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if statement.name.startswith("test"):
                yield f"{where}::{statement.name}", _numbers(statement.decorator_list)
            case ast.ClassDef():
                inner = f"{where}::{statement.name}"
                yield inner, _numbers(statement.decorator_list)
                yield from _marked(statement.body, inner)
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                yield where, _numbers([value])


def _numbers(expressions: Iterable[ast.expr]) -> list[str]:
    return [
        str(argument.value)
        for expression in expressions
        for node in ast.walk(expression)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "req"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    ]


def problems(rows: dict[str, Row], found: dict[str, tuple[str, ...]]) -> list[str]:
    """What is wrong with the table, one sentence each."""
    wrong = [
        f"{number} is marked by {places[0]} and not in the table"
        for number, places in found.items()
        if number not in rows
    ]
    for row in rows.values():
        tests = found.get(row.number, ())
        if row.tests != tests:
            wrong.append(f"{row.number}: its tests changed; run scripts/requirements_table.py")
        if row.status not in STATUSES:
            wrong.append(f"{row.number}: {row.status!r} is not a status; there are {', '.join(STATUSES)}")
        elif row.status == "not yet" and tests:
            wrong.append(f"{row.number} has tests and says 'not yet'")
        elif row.status != "not yet" and not tests:
            wrong.append(f"{row.number} says {row.status!r} and no test proves it")
    return wrong


def refreshed(text: str, found: dict[str, tuple[str, ...]], statuses: dict[str, str]) -> str:
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


def main(argv: list[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, say what is wrong")
    parser.add_argument("--set", nargs="+", default=[], metavar="NUMBER=STATUS", help="set a status")
    given = parser.parse_args(argv)
    statuses = dict(item.partition("=")[::2] for item in given.set)
    text, found = TABLE.read_text(encoding="utf-8"), find_markers(TESTS)
    if unknown := [number for number in statuses if number not in read_rows(text)]:
        parser.error(f"no such requirement: {', '.join(unknown)}")
    if not given.check:
        text = refreshed(text, found, statuses)
        TABLE.write_text(text, encoding="utf-8")
    wrong = problems(read_rows(text), found)
    sys.stdout.writelines(f"{problem}\n" for problem in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
