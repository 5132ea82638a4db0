"""What the documents say is there: files that they link to, commands that they name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)|!\[[^\]]*\]\(([^)\s]+)[^)]*\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s`$/(])headrace ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", re.MULTILINE)
MAX_README_LINES = 150


def documents() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    return [ROOT / name for name in tracked if name and (ROOT / name).exists()]


def heading_anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """The relative links of *path* that lead nowhere."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in ("".join(groups) for groups in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        if not linked.exists() or (
            anchor and linked.suffix == ".md" and anchor not in heading_anchors(linked)
        ):
            broken.append(f"{path.name} -> {target}")
    return broken


def commands(text: str) -> set[tuple[str, str]]:
    """The `headrace` commands that a document's code names, with the word after each."""
    return {(first, second) for code in CODE.findall(text) for first, second in COMMAND.findall(code)}


def test_relative_links_lead_somewhere() -> None:
    broken = [link for path in documents() for link in broken_links(path)]
    assert not broken, "\n".join(broken)


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


def test_commands_that_the_documents_name_exist() -> None:
    named = {command for path in documents() for command in commands(path.read_text(encoding="utf-8"))}
    known = known_commands()
    unknown = [
        f"headrace {first} {second}".strip()
        for first, second in sorted(named)
        if first not in known or (known[first] and second and second not in known[first])
    ]
    assert not unknown, f"named in a document, unknown to the command line: {unknown}"


def known_commands() -> dict[str, set[str]]:
    """Each command of the command line, and its subcommands; read from the program itself."""
    from typer.main import get_command

    from headrace.cli.main import build

    tree = get_command(build())
    return {
        name: set(getattr(command, "commands", ())) for name, command in getattr(tree, "commands", {}).items()
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("run `headrace up` now", {("up", "")}),
        ("```bash\n.venv/bin/headrace key create --name x\n```", {("key", "create")}),
        ("Headrace is a channel; headrace means that", set()),
        ("`src/headrace/cli`", set()),
    ],
)
def test_commands_are_found_in_code_only(text: str, found: set[tuple[str, str]]) -> None:
    assert commands(text) == found


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, *here*\n")
    text = "[a](there.md) [b](there.md#a-heading-here) [c](gone.md) [d](there.md#gone) [e](https://example.com/x)"
    (tmp_path / "page.md").write_text(text)
    assert broken_links(tmp_path / "page.md") == ["page.md -> gone.md", "page.md -> there.md#gone"]
