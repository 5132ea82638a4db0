"""Everything that an install brings is pinned in constraints.txt, and nothing else stands there."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")


def lines() -> list[str]:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    every = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(d for e in extras for d in e),
    ]
    return [Requirement(text) for text in every]


def transitive(requirements: list[Requirement]) -> set[str]:
    """Names of everything that these bring here, by the metadata of what is installed."""
    needed: set[str] = set()
    waiting = list(requirements)
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        key = f"{canonicalize_name(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        needed.add(canonicalize_name(requirement.name))
        for text in metadata.requires(requirement.name) or ():
            further = Requirement(text)
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return needed


def test_the_file_holds_pins_only() -> None:
    odd = [line for line in lines() if not PIN.match(line)]
    assert not odd, f"neither addresses, paths nor options belong here: {odd}"


def test_everything_that_is_needed_is_pinned() -> None:
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines()}
    missing = transitive(declared()) - pinned
    assert not missing, f"run scripts/pin; not pinned: {sorted(missing)}"


def test_what_is_installed_is_what_is_pinned() -> None:
    pins = dict(line.split("==") for line in lines())
    installed = {
        canonicalize_name(found.metadata["Name"]): found.version for found in metadata.distributions()
    }
    other = {
        name: (pin, installed[canonicalize_name(name)])
        for name, pin in pins.items()
        if installed.get(canonicalize_name(name), pin) != pin
    }
    assert not other, f"pinned and installed differ: {other}"


def test_declared_ranges_allow_the_pins() -> None:
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines())}
    wrong = [
        str(wanted) for wanted in declared() if pins[canonicalize_name(wanted.name)] not in wanted.specifier
    ]
    assert not wrong
