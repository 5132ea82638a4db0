"""The doctor: what it finds in which state, and what it says to do."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.schema_version import VERSION_TABLE, Migrations
from headrace.cli import checks_keeping, checks_machine
from headrace.cli.checks import Doctor, run_quietly
from headrace.cli.checks_finding import Finding, Level
from headrace.cli.checks_gateway import listens_on
from headrace.control.access import FIRST_KEY_FILE
from headrace.settings import Settings
from headrace.testing import Script
from support.command_line import Engine, Result
from support.servers import postgres
from support.servers.redis import redis_server

NOW = 1_800_000_000.0
Command = Callable[..., Result]
Serve = Callable[[Script], Engine]


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


class Examined:
    """The findings, by name of the check."""

    def __init__(self, findings: list[Finding]) -> None:
        self.by_name = {finding.check: finding for finding in findings}

    def level(self, check: str) -> Level | None:
        found = self.by_name.get(check)
        return found.level if found else None


def examine(
    tmp_path: Path, port: int, *, succeeds: bool = True, now: float = NOW, text: str = "", **environ: str
) -> Examined:
    config = tmp_path / "given.toml"
    config.write_text(text)
    here = {
        "HEADRACE_HOME": str(tmp_path / "home"),
        "HEADRACE_CACHE": str(tmp_path / "cache"),
        "HEADRACE_SERVER__PORT": str(port),
        "HEADRACE_OLLAMA__URL": f"http://127.0.0.1:{port}",
        **environ,
    }

    def answer(command: Sequence[str]) -> bool:
        return succeeds

    return Examined(Doctor(here, now, config, answer).examine())


def test_a_machine_that_is_ready(tmp_path: Path, port: int) -> None:
    found = examine(tmp_path, port)
    assert {name: finding.level for name, finding in found.by_name.items()} == {
        "clock": "ok",
        "settings": "ok",
        "data folder": "ok",
        "disk space": found.level("disk space"),
        "open files": found.level("open files"),
        "database": "ok",
        "llama.cpp": "ok",
        "model smollm2": "warning",
        "ollama": "ok",
        "port": "ok",
    }
    assert found.by_name["model smollm2"].advice == "headrace pull demo"
    assert not (tmp_path / "home").exists()


def test_neither_llama_cpp_nor_the_demo_model_to_be_had(tmp_path: Path, port: int) -> None:
    found = examine(tmp_path, port, succeeds=False)
    assert (found.level("llama.cpp"), found.level("model smollm2")) == ("failed", "failed")


def test_wrong_settings_end_the_examination(tmp_path: Path, port: int) -> None:
    found = examine(tmp_path, port, text="[server]\nprot = 1\n")
    assert found.level("settings") == "failed"
    assert "did you mean 'port'" in found.by_name["settings"].detail
    assert set(found.by_name) == {"clock", "settings"}


def test_variables_without_effect_are_told(tmp_path: Path, port: int) -> None:
    assert (examine(tmp_path, port, RELAY_ENABLED="true")).level("environment") == "warning"


@pytest.mark.parametrize("now", [0.0, 1_000_000_000.0, 9e9])
def test_a_clock_that_is_years_off(tmp_path: Path, port: int, now: float) -> None:
    assert (examine(tmp_path, port, now=now)).level("clock") == "failed"


def test_a_data_folder_that_others_can_look_into(tmp_path: Path, port: int) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert (examine(tmp_path, port)).level("data folder") == "ok"
    (home / FIRST_KEY_FILE).write_text("k")
    (home / FIRST_KEY_FILE).chmod(0o644)
    found = examine(tmp_path, port)
    assert found.level("data folder") == "warning"
    assert FIRST_KEY_FILE in found.by_name["data folder"].advice
    assert stat.S_IMODE((home / FIRST_KEY_FILE).stat().st_mode) == 0o644
    (home / FIRST_KEY_FILE).chmod(0o600)
    home.chmod(0o755)
    assert (examine(tmp_path, port)).level("data folder") == "warning"


def test_a_data_folder_that_is_a_file(tmp_path: Path, port: int) -> None:
    (tmp_path / "home").write_text("")
    assert (examine(tmp_path, port)).level("data folder") == "failed"


def test_a_port_that_something_else_has(tmp_path: Path, serve: Serve) -> None:
    engine = serve(Script())
    found = examine(tmp_path, engine.fake.port)
    assert found.level("port") == "failed"
    assert found.level("gateway") is None


@pytest.mark.parametrize(
    ("model", "level"),
    [
        ("hf:o/r/f.gguf", "warning"),
        ("nowhere.gguf", "failed"),
        ("ollama:nothing", "failed"),
        ("here.gguf", "ok"),
    ],
)
def test_models_of_engines(tmp_path: Path, port: int, model: str, level: str) -> None:
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    text = f'[[engines]]\nid = "e"\nmodel = "{model}"\n'
    found = examine(tmp_path, port, text=text, OLLAMA_MODELS=str(tmp_path))
    assert found.level("model e") == level


@pytest.mark.parametrize(
    ("hard", "level"),
    [(20_128, "ok"), (20_127, "warning"), (1024, "warning"), (None, "ok")],
)
def test_open_files(hard: int | None, level: str) -> None:
    found = checks_machine.open_files(10_000, hard)
    assert found.level == level
    assert ("LimitNOFILE=20128" in found.advice) == (level == "warning")


def test_clocks_that_differ() -> None:
    assert list(checks_machine.clocks({})) == []
    (agreed,) = checks_machine.clocks({"a": 4.9, "b": -4.9})
    assert agreed.level is Level.OK
    (one,) = checks_machine.clocks({"a": 0.1, "b": -3600.0})
    assert (one.level, "b -3600 s" in one.detail, "those clocks" in one.advice) == (Level.WARNING, True, True)
    (ours,) = checks_machine.clocks({"a": 60.0, "b": 60.2})
    assert "Set this machine's clock" in ours.advice


def test_a_database_of_a_newer_program(tmp_path: Path, port: int) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    path = home / "headrace.db"
    backend = choose("sqlite", home)
    backend.hold()
    Migrations(backend).upgrade()
    backend.let_go()
    assert examine(tmp_path, port).level("database") == "ok"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        connection.commit()
    newer = examine(tmp_path, port).by_name["database"]
    assert (newer.level, "a newer Headrace" in newer.detail) == (Level.FAILED, True)
    path.write_bytes(b"no database, but more than a few bytes of something else" * 100)
    assert examine(tmp_path, port).level("database") == "failed"


def test_a_database_and_a_redis_that_are_not_there(tmp_path: Path, port: int) -> None:
    text = f'[storage]\nurl = "postgresql://u:secret@127.0.0.1:{port}/d"\n'
    text += f'[quota]\nurl = "redis://:secret@127.0.0.1:{port}/0"\n'
    found = examine(tmp_path, port, text=text)
    assert (found.level("database"), found.level("quota")) == ("failed", "failed")
    assert not any("secret" in finding.detail + finding.advice for finding in found.by_name.values())


@pytest.mark.slow
def test_a_postgresql_that_is_there(tmp_path: Path, port: int) -> None:
    with postgres.running() as server:
        text = f'[storage]\nurl = "{server.database()}"\n'
        found = examine(tmp_path, port, text=text)
    assert (found.level("database"), found.level("clocks")) == ("ok", "ok")
    assert "has schema none; the next start" in found.by_name["database"].detail


def test_a_redis_that_is_there_and_one_that_wants_a_password(tmp_path: Path, port: int) -> None:
    with redis_server(tmp_path / "redis") as server:
        text = f'[quota]\nurl = "{server.url}"\n'
        found = examine(tmp_path, port, text=text)
        assert (found.level("quota"), found.level("clocks")) == ("ok", "ok")
        server.command("CONFIG", "SET", "requirepass", "other")
        found = examine(tmp_path, port, text=text)
    assert (found.level("quota"), "password" in found.by_name["quota"].detail) == ("failed", True)


def test_extras_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate(
        {
            "home": "/nowhere",
            "cache": "/nowhere",
            "storage": {"url": "postgresql://h/d"},
            "quota": {"url": "redis://h"},
        }
    )
    assert list(checks_keeping.extras(settings)) == []
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "redis", None)
    found = list(checks_keeping.extras(settings))
    assert [finding.check for finding in found] == ["extra postgresql", "extra redis"]
    assert "'headrace[redis]'" in found[1].advice


def test_who_listens_on_a_port(port: int) -> None:
    assert listens_on(port) is None
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        who = listens_on(mine.getsockname()[1])
    assert who is not None
    assert f"pid {os.getpid()}" in who


def test_commands_that_work_and_that_do_not() -> None:
    assert run_quietly(["true"])
    assert not run_quietly(["false"])
    assert not run_quietly(["/nowhere"])


def test_the_command_ends_with_1_when_something_fails(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("[server]\nprot = 1\n")
    people, scripts = headrace("doctor"), headrace("doctor", "--json")
    assert (people.status, scripts.status) == (1, 1)
    assert "failed   settings" in people.out
    assert {"check", "level", "detail", "advice"} == set(scripts.json()[0])


def test_the_command_ends_with_0_when_nothing_does(
    headrace: Command, serve: Serve, tmp_path: Path, port: int
) -> None:
    engine = serve(Script())
    (tmp_path / "headrace.toml").write_text(
        f'[server]\nport = {port}\n[ollama]\nprobe = false\n[[upstreams]]\nname = "u"\nurl = "{engine.url}"\n'
    )
    result = headrace("doctor")
    assert result.status == 0
    assert "ok       upstream u" in result.out
