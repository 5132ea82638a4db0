"""Rules of the house that no linter knows, held over every file in src/."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "headrace"
TASK_MAKERS = ("create_task", "ensure_future")


def violations(text: str, where: str) -> Iterator[str]:
    """The rules that *text* breaks, one sentence each; *where* is its path below src/headrace."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        at = f"{where}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Call(func=ast.Attribute(attr=name, value=owner)) if name in TASK_MAKERS:
                if where != "kernel/aio.py" and not _is_task_group(owner):
                    yield f"{at}: {name} stands only in kernel/aio.py; use Tasks.spawn or an asyncio.TaskGroup"
            case ast.Call(func=ast.Name(id="print")) if not where.startswith("cli/"):
                yield f"{at}: print belongs into cli/"
            case ast.Global():
                yield f"{at}: no global statements; state has an owner"
            case ast.ExceptHandler() if _is_broad(node) and not _has_comment(lines, node):
                yield f"{at}: a broad except says why, in a comment before its first statement"


def _is_task_group(owner: ast.expr) -> bool:
    """By the name it is given: a task group is called one, or `tasks`."""
    return isinstance(owner, ast.Name) and owner.id in ("group", "task_group", "tasks")


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds)


def _has_comment(lines: list[str], handler: ast.ExceptHandler) -> bool:
    """Between `except` and its first statement, for the formatter may break the line; a bare noqa is no reason."""
    head = lines[handler.lineno - 1 : handler.body[0].lineno]
    return any(line.partition("#")[2].replace("noqa: BLE001", "").strip(" -:") for line in head)


def test_the_source_keeps_the_rules() -> None:
    found = [
        violation
        for path in sorted(SOURCE.rglob("*.py"))
        for violation in violations(path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "where", "broken"),
    [
        ("asyncio.create_task(work())", "core/x.py", True),
        ("loop.create_task(work())", "core/x.py", True),
        ("asyncio.ensure_future(work())", "core/x.py", True),
        ("group.create_task(work())", "core/x.py", False),
        ("loop.create_task(work())", "kernel/aio.py", False),
        ("print('hello')", "core/x.py", True),
        ("print('hello')", "cli/main.py", False),
        ("def f():\n    global state", "core/x.py", True),
        ("try:\n    f()\nexcept Exception:\n    pass", "core/x.py", True),
        ("try:\n    f()\nexcept (OSError, Exception):\n    pass", "core/x.py", True),
        ("try:\n    f()\nexcept:\n    pass", "core/x.py", True),
        ("try:\n    f()\nexcept Exception:  # noqa: BLE001\n    pass", "core/x.py", True),
        (
            "try:\n    f()\nexcept Exception:  # noqa: BLE001 - a sink must not raise\n    pass",
            "core/x.py",
            False,
        ),
        ("try:\n    f()\nexcept Exception:\n    # a sink must not raise\n    pass", "core/x.py", False),
        ("try:\n    f()\nexcept (\n    Exception\n):  # the last resort\n    pass", "core/x.py", False),
        ("try:\n    f()\nexcept OSError:\n    pass", "core/x.py", False),
    ],
)
def test_the_rules_can_be_broken(text: str, where: str, broken: bool) -> None:
    assert bool(list(violations(text, where))) == broken
