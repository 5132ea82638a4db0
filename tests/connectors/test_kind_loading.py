"""Kinds are found by their entry points: ours, other packages', and those that are broken."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path

import pytest

from headrace.connectors.kinds import Kinds
from headrace.kernel.errors import ConfigError
from headrace.ports.backend import GROUP
from headrace.settings import known_kinds
from headrace.settings.upstreams import KINDS

ROOT = Path(__file__).resolve().parents[2]


def package(folder: Path, name: str, points: str) -> list[EntryPoint]:
    """The entry points of a package that is installed in *folder*."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    return list(PathDistribution(info).entry_points)


@pytest.mark.req("C27")
def test_all_of_ours_are_installed_and_work() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    kinds = Kinds.installed()
    assert {"openai", "ollama"} <= set(declared)
    assert set(declared) <= set(kinds.names), (
        "run `make install`: the installed package is older than pyproject.toml"
    )
    for name in declared:
        kind = kinds.get(name)
        assert (kind.name, bool(kind.title)) == (name, True)
    assert kinds.troubles() == []


def test_the_settings_know_the_same_names() -> None:
    assert KINDS == GROUP
    assert sorted(known_kinds()) == Kinds.installed().names


def test_an_unknown_one_is_told_with_the_near_one() -> None:
    kinds = Kinds.installed()
    with pytest.raises(ConfigError, match=r"no kind of backends 'olama'. Did you mean 'ollama'\?"):
        kinds.get("olama")
    with pytest.raises(ConfigError, match=r"Known are .*ollama, openai"):
        kinds.get("xyz")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nothing_here:KIND", "can't be loaded: ModuleNotFoundError: No module named 'nothing_here'."),
        ("headrace.ports.backend:NOTHING", "can't be loaded: AttributeError: "),
        ("headrace.ports.backend:GROUP", "is not an object with the method 'open'"),
        ("headrace.connectors.openai:OpenAIKind", "is not an object with the method 'open'"),
    ],
)
def test_a_broken_one_is_told_in_a_sentence_and_harms_only_who_uses_it(
    tmp_path: Path, target: str, reason: str
) -> None:
    kinds = Kinds(package(tmp_path, "theirs", f"broken = {target}\ngood = headrace.connectors.openai:KIND"))
    assert kinds.get("good").name == "openai"
    (trouble,) = kinds.troubles()
    assert trouble.startswith("The kind of backends 'broken' of the package theirs ")
    assert reason in trouble
    assert "\n" not in trouble
    with pytest.raises(ConfigError) as caught:
        kinds.get("broken")
    assert caught.value.message == trouble


@pytest.mark.parametrize("ours_first", [True, False])
def test_nobody_takes_the_name_of_one_of_ours(tmp_path: Path, ours_first: bool) -> None:
    (tmp_path / "a").mkdir()
    ours = package(tmp_path, "headrace", "openai = headrace.connectors.openai:KIND")
    theirs = package(tmp_path / "a", "a-thief", "openai = headrace.connectors.ollama:KIND")
    kinds = Kinds(ours + theirs if ours_first else theirs + ours)
    assert kinds.get("openai").name == "openai"
    (trouble,) = kinds.troubles()
    assert "of the package a-thief isn't used" in trouble
