"""The command line, run in this process against an engine double."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from headrace.cli.main import main
from headrace.testing import Script
from support.command_line import Engine, Result


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, a data folder and a cache of their own, and none of the variables of this machine."""
    for name in list(os.environ):
        if name.startswith("HEADRACE_") or name in (
            "API_KEYS",
            "DATABASE_URL",
            "DEFAULT_MODEL",
            "RATE_LIMIT",
            "MODE",
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """A command that sets up the log sets it up for its process, which here is the one of all tests, and to a stream that is
    closed when the test is over."""
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**config)
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def headrace(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """Runs a command in this process, with nothing on its standard input."""
    with open(os.devnull) as nothing:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", nothing)

        def run(*arguments: str) -> Result:
            capfd.readouterr()
            status = main(arguments)
            out, err = capfd.readouterr()
            return Result(status, out, err)

        yield run


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Engine]]:
    """Starts engines, and stops them at the end of the test."""
    engines: list[Engine] = []

    def start(script: Script) -> Engine:
        engines.append(Engine(script))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
