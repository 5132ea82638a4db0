"""Commands: what they print, where, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import __version__
from headrace.cli import reference as commands
from headrace.cli.access import gateway_url, own_key
from headrace.control.access import FIRST_KEY_FILE
from headrace.settings import Settings, load
from headrace.settings import reference as settings
from headrace.testing import Script
from headrace.testing.fake_engine import Refuse
from support.command_line import COMMAND, Engine, Result, run_apart

ROOT = Path(__file__).parents[2]
SECRET = "sk-hunter2"
Command = Callable[..., Result]
Serve = Callable[[Script], Engine]


class TestVersion:
    def test_for_people_and_for_scripts(self, headrace: Command) -> None:
        assert headrace("version").out == f"headrace {__version__}\n"
        assert headrace("version", "--json").json()["version"] == __version__

    def test_it_pays_for_nothing_heavy(self) -> None:
        code = (
            "import sys; from headrace.cli.main import main; main(['version']);"
            "print(sorted({name.partition('.')[0] for name in sys.modules}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        loaded = set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))
        assert "typer" in loaded
        heavy = {"rich", "uvloop", "httptools", "starlette", "uvicorn", "structlog", "msgspec", "xllamacpp"}
        assert heavy & loaded == set()


class TestErrors:
    def test_a_wrong_call_ends_with_2_and_names_the_help(self, headrace: Command) -> None:
        for arguments in (("nonsense",), ("up", "--prot", "1"), ("up", "--port", "99999"), ("pull",)):
            result = headrace(*arguments)
            assert (result.status, result.out) == (2, "")
            assert "--help" in result.err or "-h" in result.err

    def test_a_mistake_in_the_settings_is_a_sentence(self, headrace: Command, tmp_path: Path) -> None:
        (tmp_path / "headrace.toml").write_text("[server]\nprot = 1\n")
        for command in (
            ["up"],
            ["models"],
            ["chat", "x"],
            ["pull", "demo"],
            ["config", "check"],
            ["config", "show"],
        ):
            result = headrace(*command)
            expected = "headrace: Unknown key 'prot' in [server] of headrace.toml; did you mean 'port'?\n"
            assert (result.status, result.out, result.err) == (1, "", expected)

    def test_the_traceback_comes_when_asked_for(self) -> None:
        result = run_apart("config", "check", "--config", "nowhere", environ={"HEADRACE_DEBUG": "1"})
        assert result.status == 1
        assert "Traceback" in result.err
        assert "Traceback" not in run_apart("config", "check", "--config", "nowhere").err

    def test_no_arguments_show_the_help(self, headrace: Command) -> None:
        result = headrace()
        assert result.status == 2
        assert "headrace up" in result.out + result.err


class TestConfig:
    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path) -> None:
        (tmp_path / "headrace.toml").write_text(
            f'[auth]\napi_keys = ["{SECRET}"]\n[[upstreams]]\nname = "a"\nurl = "http://h:1"\napi_key = "{SECRET}"\n'
        )

    def test_check(self, headrace: Command) -> None:
        assert headrace("config", "check").out == "headrace.toml. All right.\n"
        assert headrace("config", "check", "--json").json() == {
            "ok": True,
            "source": "headrace.toml",
            "warnings": [],
        }

    def test_check_of_a_wrong_one_as_json(self, headrace: Command) -> None:
        result = headrace("config", "check", "--json", "--config", "nowhere.toml")
        assert result.status == 1
        assert result.json() == {"ok": False, "error": "The configuration file nowhere.toml does not exist."}

    @pytest.mark.parametrize("arguments", [["show"], ["show", "--json"], ["check"], ["schema"]])
    def test_secrets_are_never_shown(self, headrace: Command, arguments: list[str]) -> None:
        result = headrace("config", *arguments)
        assert result.status == 0
        assert SECRET not in result.out + result.err

    def test_show_says_what_is_in_force(self, headrace: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEADRACE_SERVER__PORT", "8000")
        assert "port = 8000\n" in headrace("config", "show").out
        assert headrace("config", "show", "--json").json()["server"]["port"] == 8000

    def test_schema_is_json(self, headrace: Command) -> None:
        assert "server" in headrace("config", "schema").json()["properties"]

    @pytest.mark.req("C41", "C42")
    def test_what_has_no_effect_is_told(self, headrace: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_ENABLED", "true")
        monkeypatch.setenv("OBRIDGE_NODE_ID", "n")
        for command in ("check", "show"):
            err = headrace("config", command).err
            assert "warning: RELAY_ENABLED is set" in err
            assert "warning: OBRIDGE_NODE_ID is set" in err


class TestModels:
    def test_for_people_and_for_scripts(self, headrace: Command, serve: Serve) -> None:
        engine = serve(Script(models=("a", "longer")))
        lines = headrace("models", "--url", engine.url).out.splitlines()
        assert [line.split()[0] for line in lines] == ["a", "longer"]
        listed = headrace("models", "--url", engine.url, "--json").json()
        assert [item["id"] for item in listed] == ["a", "longer"]

    def test_nobody_there(self, headrace: Command, serve: Serve) -> None:
        engine = serve(Script())
        url = engine.url
        engine.stop()
        result = headrace("models", "--url", url)
        assert result.status == 1
        assert "Start the gateway with 'headrace up'" in result.err
        assert result.err.count("\n") == 1

    @pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://"])
    def test_a_url_that_is_none(self, headrace: Command, url: str) -> None:
        result = headrace("models", "--url", url)
        assert result.status == 1
        assert "URL" in result.err


class TestKeys:
    @pytest.fixture
    def engine(self, serve: Serve) -> Engine:
        return serve(Script(api_key=SECRET))

    def test_without_one_the_way_out_is_told(self, headrace: Command, engine: Engine) -> None:
        result = headrace("chat", "--url", engine.url, "-m", "fake", "hello")
        assert (result.status, result.out) == (1, "")
        assert result.err.endswith(" Give a key with --key or HEADRACE_API_KEY.\n")

    def test_the_given_one_is_presented(self, headrace: Command, engine: Engine) -> None:
        assert headrace("chat", "--url", engine.url, "-m", "fake", "--key", SECRET, "hello").status == 0

    def test_the_one_of_the_environment_is_presented(
        self, headrace: Command, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADRACE_API_KEY", SECRET)
        monkeypatch.setenv("HEADRACE_URL", engine.url)
        assert headrace("chat", "-m", "fake", "hello").status == 0

    def test_the_kept_one_opens_this_machines_gateway(
        self, headrace: Command, engine: Engine, home: Path
    ) -> None:
        home.mkdir()
        (home / FIRST_KEY_FILE).write_text(f"{SECRET}\n")
        assert headrace("chat", "--url", engine.url, "-m", "fake", "hello").status == 0


class TestAccess:
    def settings(self, tmp_path: Path, **environ: str) -> Settings:
        return load(None, {"HEADRACE_HOME": str(tmp_path), **environ})

    @pytest.mark.parametrize(
        ("host", "port", "url"),
        [
            ("127.0.0.1", "11435", "http://127.0.0.1:11435"),
            ("0.0.0.0", "80", "http://127.0.0.1:80"),
            ("::", "80", "http://[::1]:80"),
            ("10.0.0.7", "80", "http://10.0.0.7:80"),
            ("127.0.0.1", "0", "http://127.0.0.1:11435"),
        ],
    )
    def test_where_this_machines_gateway_is(self, tmp_path: Path, host: str, port: str, url: str) -> None:
        found = self.settings(tmp_path, HEADRACE_SERVER__HOST=host, HEADRACE_SERVER__PORT=port)
        assert gateway_url(found) == url

    def test_our_key_goes_to_this_machine_only(self, tmp_path: Path) -> None:
        (tmp_path / FIRST_KEY_FILE).write_text("kept")
        found = self.settings(tmp_path)
        assert own_key(found, "http://127.0.0.1:1") == "kept"
        assert own_key(found, "http://evil.example") is None
        configured = self.settings(tmp_path, API_KEYS="given,other")
        assert own_key(configured, "http://localhost:1") == "given"
        assert own_key(configured, "http://evil.example") is None


class TestPull:
    def test_a_model_that_is_here_is_told_with_its_place(self, headrace: Command, tmp_path: Path) -> None:
        model = tmp_path / "m.gguf"
        model.write_bytes(b"GGUF")
        assert headrace("pull", str(model)).out == f"{model}\n"
        (tmp_path / "headrace.toml").write_text('[[engines]]\nid = "mine"\nmodel = "m.gguf"\n')
        told = headrace("pull", "mine", "--json").json()
        assert (Path(told["path"]).resolve(), told["size_bytes"]) == (model.resolve(), 4)

    def test_one_that_is_nowhere(self, headrace: Command) -> None:
        result = headrace("pull", "nowhere.gguf")
        assert result.status == 1
        assert "There is no model file" in result.err


class TestChatOnce:
    def test_a_question_is_answered_on_standard_output(self, headrace: Command, serve: Serve) -> None:
        engine = serve(Script(tokens=3))
        result = headrace("chat", "--url", engine.url, "--model", "fake", "--system", "be brief", "hello")
        assert (result.status, result.out, result.err) == (0, "tok0 tok1 tok2\n", "")
        last = engine.fake.stats.last
        assert last is not None
        assert last.json()["messages"] == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
        ]

    def test_as_json(self, headrace: Command, serve: Serve) -> None:
        told = headrace("chat", "--url", serve(Script(tokens=2)).url, "-m", "fake", "hello", "--json").json()
        assert (told["text"], told["completion_tokens"]) == ("tok0 tok1", 2)

    def test_without_a_model_the_servers_first_is_taken(self, headrace: Command, serve: Serve) -> None:
        engine = serve(Script(models=("first", "second"), tokens=1))
        assert headrace("chat", "--url", engine.url, "hello").status == 0
        last = engine.fake.stats.last
        assert last is not None
        assert last.json()["model"] == "first"

    def test_what_is_piped_in_belongs_to_the_question(self, serve: Serve) -> None:
        engine = serve(Script(tokens=1))
        arguments = ("chat", "--url", engine.url, "--key", "k", "-m", "fake")
        assert run_apart(*arguments, piped="from the pipe\n").out == "tok0\n"
        assert run_apart(*arguments, "explain", piped="from the pipe\n").out == "tok0\n"
        asked = [received.json()["messages"][0]["content"] for received in engine.fake.stats.received]
        assert asked == ["from the pipe", "explain\n\nfrom the pipe"]

    @pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
    def test_what_is_no_text_is_refused(self, locale: str) -> None:
        done = subprocess.run(
            [*COMMAND, "chat", "--url", "http://127.0.0.1:1", "--key", "k"],
            input=b"\xff\xfe\x00",
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, "LC_ALL": locale},
        )
        assert (done.returncode, done.stderr) == (1, b"headrace: What was piped in is not text.\n")

    def test_no_question_at_all(self, headrace: Command) -> None:
        result = headrace("chat", "--url", "http://127.0.0.1:1", "--key", "k")
        assert (result.status, result.err) == (
            1,
            "headrace: There is no question: give one, or pipe one in.\n",
        )

    def test_a_refusal_is_a_sentence(self, headrace: Command, serve: Serve) -> None:
        body = json.dumps({"error": {"message": "No such model.", "code": "model_not_found"}})
        engine = serve(Script(fault=Refuse(404, body)))
        result = headrace("chat", "--url", engine.url, "-m", "x", "hello")
        assert (result.status, result.err) == (1, "headrace: No such model.\n")


class TestReference:
    @pytest.mark.parametrize(
        ("name", "page"), [("configuration.md", settings.configuration_page), ("cli.md", commands.page)]
    )
    def test_it_is_what_the_code_says(self, name: str, page: Callable[[], str]) -> None:
        written = (ROOT / "docs" / "reference" / name).read_text("utf-8")
        assert written == page(), "run scripts/generate_reference.py"

    def test_every_command_has_an_example_or_needs_none(self) -> None:
        sections = commands.page().split("\n## ")[1:]
        without = [section.splitlines()[0] for section in sections if "```sh" not in section]
        assert without == ["headrace version"]

    @pytest.mark.parametrize("variable", ["COLUMNS", "TERMINAL_WIDTH"])
    def test_the_terminal_has_no_say_in_it(self, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, "40")
        assert os.environ[variable] == "40"
        self.test_it_is_what_the_code_says("cli.md", commands.page)
