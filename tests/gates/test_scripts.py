"""The build's scripts say what is wrong in one sentence, and succeed without rights where nothing is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / script, *arguments],
        env={"PATH": os.environ["PATH"]} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def folder_of(tmp_path: Path, **programs: str) -> str:
    """A PATH with the usual tools and these programs of our own, and nothing else."""
    for name in ("bash", "env", "id", "mktemp", "rm", "tail", "grep", "dirname", "uname", "touch"):
        found = next(Path(place) / name for place in ("/usr/bin", "/bin") if (Path(place) / name).exists())
        (tmp_path / name).symlink_to(found)
    for name, text in programs.items():
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return str(tmp_path)


def test_nothing_is_installed_where_nothing_is_missing(tmp_path: Path) -> None:
    path = folder_of(tmp_path, curl="exit 0")
    done = run("require-apt", "curl", PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("programs", "told"),
    [
        ({}, "There is no apt-get here"),
        ({"apt-get": "exit 0", "sudo": "exit 1", "id": "echo 1000"}, "apt-get install curl"),
        ({"apt-get": "echo E: no such package; exit 100", "id": "echo 0"}, "could not install them"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, programs: dict[str, str], told: str) -> None:
    done = run("require-apt", "curl", PATH=folder_of(tmp_path, **programs))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Missing on this machine: curl.")
    assert told in done.stderr


def test_packages_are_installed_by_apt(tmp_path: Path) -> None:
    path = folder_of(tmp_path, **{"apt-get": f'echo "$@" >> {tmp_path}/calls', "sudo": 'shift; "$@"'})
    done = run("require-apt", "curl", "nginx", PATH=path)
    assert done.returncode == 0
    assert done.stdout == "Installing curl nginx with apt-get ...\n"
    assert (tmp_path / "calls").read_text().splitlines() == [
        "-qq update",
        "-qq install -y --no-install-recommends curl nginx",
    ]


def test_an_old_python_is_told(tmp_path: Path) -> None:
    path = folder_of(tmp_path, python3="exit 1")
    done = run("install", str(tmp_path / "venv"), PATH=path)
    assert done.returncode == 1
    assert done.stderr.startswith("Not installed: Headrace needs Python 3.11 or newer")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "WARNING: Retrying ... NewConnectionError: Temporary failure in name resolution",
            "can't be reached",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        ("ERROR: No matching distribution found for setuptools", "lacks a pinned version"),
        ("ERROR: Invalid requirement: 'x'", "pip failed: ERROR: Invalid requirement"),
    ],
)
def test_what_stopped_pip_is_told_in_one_sentence(tmp_path: Path, said: str, told: str) -> None:
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").write_text(
        f'#!/bin/bash\ncase "$*" in *" install "*) echo "{said}"; exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    (venv / "python").chmod(0o755)
    done = run("install", str(venv.parent), PYTHON=sys.executable)
    assert done.returncode == 1
    assert done.stderr.startswith("Not installed: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_make_lists_its_targets() -> None:
    listed = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    wanted = ("help", "install", "run", "test", "test-fast", "test-full", "check", "bench", "clean")
    assert all(f"  make {target} " in listed for target in wanted)
    assert all(len(line) < 120 for line in listed.splitlines())
