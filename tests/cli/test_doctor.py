"""The doctor: what it finds in which state, and what it says to do."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from headrace.cli.checks import Doctor, Finding, Level, run_quietly
from headrace.control.access import FIRST_KEY_FILE
from headrace.testing import Script
from support.command_line import Engine, Result

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
        "llama.cpp": "ok",
        "model smollm2": "warn",
        "ollama": "ok",
        "port": "ok",
    }
    assert found.by_name["model smollm2"].advice == "headrace pull demo"
    assert not (tmp_path / "home").exists()


def test_neither_llama_cpp_nor_the_demo_model_to_be_had(tmp_path: Path, port: int) -> None:
    found = examine(tmp_path, port, succeeds=False)
    assert (found.level("llama.cpp"), found.level("model smollm2")) == ("fail", "fail")


def test_wrong_settings_end_the_examination(tmp_path: Path, port: int) -> None:
    found = examine(tmp_path, port, text="[server]\nprot = 1\n")
    assert found.level("settings") == "fail"
    assert "did you mean 'port'" in found.by_name["settings"].detail
    assert set(found.by_name) == {"clock", "settings"}


def test_variables_without_effect_are_told(tmp_path: Path, port: int) -> None:
    assert (examine(tmp_path, port, RELAY_ENABLED="true")).level("environment") == "warn"


@pytest.mark.parametrize("now", [0.0, 1_000_000_000.0, 9e9])
def test_a_clock_that_is_years_off(tmp_path: Path, port: int, now: float) -> None:
    assert (examine(tmp_path, port, now=now)).level("clock") == "fail"


def test_a_data_folder_that_others_can_look_into(tmp_path: Path, port: int) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert (examine(tmp_path, port)).level("data folder") == "ok"
    (home / FIRST_KEY_FILE).write_text("k")
    (home / FIRST_KEY_FILE).chmod(0o644)
    found = examine(tmp_path, port)
    assert found.level("data folder") == "warn"
    assert FIRST_KEY_FILE in found.by_name["data folder"].advice
    assert stat.S_IMODE((home / FIRST_KEY_FILE).stat().st_mode) == 0o644
    (home / FIRST_KEY_FILE).chmod(0o600)
    home.chmod(0o755)
    assert (examine(tmp_path, port)).level("data folder") == "warn"


def test_a_data_folder_that_is_a_file(tmp_path: Path, port: int) -> None:
    (tmp_path / "home").write_text("")
    assert (examine(tmp_path, port)).level("data folder") == "fail"


def test_a_port_that_something_else_has(tmp_path: Path, serve: Serve) -> None:
    engine = serve(Script())
    found = examine(tmp_path, engine.fake.port)
    assert found.level("port") == "fail"
    assert found.level("gateway") is None


@pytest.mark.parametrize(
    ("model", "level"),
    [("hf:o/r/f.gguf", "warn"), ("nowhere.gguf", "fail"), ("ollama:nothing", "fail"), ("here.gguf", "ok")],
)
def test_models_of_engines(tmp_path: Path, port: int, model: str, level: str) -> None:
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    text = f'[[engines]]\nid = "e"\nmodel = "{model}"\n'
    found = examine(tmp_path, port, text=text, OLLAMA_MODELS=str(tmp_path))
    assert found.level("model e") == level


@pytest.mark.parametrize(("kind", "level"), [("openai", "ok"), ("ollama", "warn")])
def test_an_upstream_that_answers(tmp_path: Path, port: int, serve: Serve, kind: str, level: str) -> None:
    text = f'[[upstreams]]\nname = "u"\nurl = "{serve(Script()).url}"\nkind = "{kind}"\n'
    found = examine(tmp_path, port, text=text)
    assert found.level("upstream u") == level
    assert found.level("llama.cpp") is None


def test_an_upstream_that_does_not(tmp_path: Path, port: int) -> None:
    text = f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\n'
    found = examine(tmp_path, port, text=text)
    assert found.level("upstream u") == "fail"
    assert "can't be reached" in found.by_name["upstream u"].detail


@pytest.mark.parametrize("line", ['api_key_file = "nowhere"', 'ca_file = "nowhere"'])
def test_an_upstream_whose_files_are_missing(tmp_path: Path, port: int, line: str) -> None:
    text = f'[[upstreams]]\nname = "u"\nurl = "https://127.0.0.1:{port}"\n{line}\n'
    found = examine(tmp_path, port, text=text)
    assert found.level("upstream u") == "fail"
    assert "nowhere" in found.by_name["upstream u"].detail


def test_commands_that_work_and_that_do_not() -> None:
    assert run_quietly(["true"])
    assert not run_quietly(["false"])
    assert not run_quietly(["/nowhere"])


def test_the_command_ends_with_1_when_something_fails(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("[server]\nprot = 1\n")
    people, scripts = headrace("doctor"), headrace("doctor", "--json")
    assert (people.status, scripts.status) == (1, 1)
    assert "FAIL  settings" in people.out
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
    assert "OK    upstream u" in result.out
