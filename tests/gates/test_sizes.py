"""What is larger than usual is listed in larger_than_usual.toml, with its reason; nothing else is larger."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("larger_than_usual.toml")
MOST = {"files": 400, "functions": 50, "parameters": 6}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(body: list[ast.stmt], where: str) -> Iterator[tuple[str, Function]]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from functions(statement.body, f"{where}:{statement.name}")
        elif isinstance(statement, Function):
            yield f"{where}:{statement.name}", statement
            yield from functions(statement.body, f"{where}:{statement.name}")


def parameters(function: Function) -> int:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def sizes(root: Path) -> dict[str, dict[str, int]]:
    """What stands over the limits below *root*: kind → place → size."""
    found: dict[str, dict[str, int]] = {kind: {} for kind in MOST}
    for path in sorted(root.rglob("*.py")):
        text, where = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        found["files"][where] = len(text.splitlines())
        for name, function in functions(ast.parse(text).body, where):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            found["functions"][name] = max(lines, found["functions"].get(name, 0))
            found["parameters"][name] = max(parameters(function), found["parameters"].get(name, 0))
    return {
        kind: {place: size for place, size in places.items() if size > MOST[kind]}
        for kind, places in found.items()
    }


@pytest.mark.parametrize("kind", MOST)
def test_what_is_larger_than_usual_is_listed_with_its_reason(kind: str) -> None:
    listed: dict[str, str] = tomllib.loads(LIST.read_text(encoding="utf-8"))[kind]
    larger = sizes(ROOT / "src")[kind]
    unlisted = "\n".join(
        f'"{place}" = "..."  # {size}' for place, size in larger.items() if place not in listed
    )
    assert not unlisted, (
        f"over {MOST[kind]}; make them smaller, or list them under [{kind}] with a reason:\n{unlisted}"
    )
    assert not set(listed) - set(larger), "no longer larger than usual; take them off the list"
    assert all(len(reason.split()) >= 3 for reason in listed.values()), "a reason is a few words at least"


def test_the_measure_finds_what_is_large(tmp_path: Path) -> None:
    long = "class A:\n    def f(self, a, b, c, *, d, e, f, g):\n" + "        pass\n" * 400
    (tmp_path / "long.py").write_text(long)
    (tmp_path / "short.py").write_text("def f(a, b, c, d, e, f):\n    pass\n")
    assert sizes(tmp_path) == {
        "files": {"long.py": 402},
        "functions": {"long.py:A:f": 401},
        "parameters": {"long.py:A:f": 7},
    }
