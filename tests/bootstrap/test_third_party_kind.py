"""A kind of backends that another package brings: installed by being there, and served through by name."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.ports.backend import GROUP
from support.raw import call

KEY = "sk-third"
KIND = """
import asyncio

from headrace.domain.fleet import ModelInfo
from headrace.ports.backend import Opened, Report
from headrace.ports.connector import Traits

ANSWER = (b'{"id":"x","object":"chat.completion","created":1,"model":"echo","choices":[{"index":0,"finish_reason":"stop",'
          b'"message":{"role":"assistant","content":"an echo from %b"}}],'
          b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}')


class Exchange:
    def pause(self): ...
    def resume(self): ...
    def cancel(self): ...


class Echo:
    traits = Traits(cancels_unstreamed=True)

    def __init__(self, name):
        self.name = name

    def start(self, request, sink):
        def answer():
            sink.head(200, [(b"content-type", b"application/json")])
            sink.data(ANSWER % self.name.encode())
            sink.end()

        asyncio.get_running_loop().call_soon(answer)
        return Exchange()

    async def close(self): ...


class Prober:
    async def look(self):
        return Report(models=(ModelInfo("echo"),), loaded=frozenset({"echo"}), slots=2)


class Kind:
    name = "echo"
    title = "An echo"

    def open(self, spec, clock):
        return Opened(Echo(spec.name), Prober())


KIND = Kind()
"""
SERVE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from headrace.cli.main import run
run()
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with an installed package: one kind that works, and one that is broken."""
    folder = tmp_path / "site"
    info = folder / "headrace_echo-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: headrace-echo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\necho = headrace_echo:KIND\nbroken = headrace_gone:KIND\n"
    )
    (folder / "headrace_echo.py").write_text(KIND)
    return folder


def configured(folder: Path, kind: str) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = folder / "headrace.toml"
    path.write_text(
        textwrap.dedent(f"""
            [server]
            port = {port}
            [auth]
            api_keys = ["{KEY}"]
            [ollama]
            probe = false
            [[upstreams]]
            name = "theirs"
            url = "http://localhost:1"
            kind = "{kind}"
        """)
    )
    return path


def command(packages: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", SERVE, str(packages), *arguments]


@contextmanager
def serving(packages: Path, settings: Path, log: Path) -> Iterator[None]:
    environ = os.environ | {"HEADRACE_HOME": str(settings.parent), "HEADRACE_LOG__FORMAT": "json"}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command(packages, "up", "--config", str(settings)),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("Headrace is listening on "), log.read_text()
            yield
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.req("C27")
async def test_a_kind_of_another_package_is_served_through_and_a_broken_one_is_told(
    packages: Path, tmp_path: Path
) -> None:
    settings = configured(tmp_path, "echo")
    port = int(settings.read_text().partition("port = ")[2].split()[0])
    with serving(packages, settings, tmp_path / "log"):
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        auth = {"authorization": f"Bearer {KEY}"}
        response = await call(port, "POST", "/v1/chat/completions", auth, json.dumps(body).encode())
        assert response.status == 200, response.body
        assert response.json["choices"][0]["message"]["content"] == "an echo from theirs"
    told = (tmp_path / "log").read_text().splitlines()
    (line,) = [line for line in told if "kind.broken" in line]
    assert "'broken' of the package headrace-echo can't be loaded" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("broken", "can't be loaded: ModuleNotFoundError"),
        ("ecco", "nothing here speaks; did you mean 'echo'?"),
    ],
)
async def test_who_uses_a_broken_or_unknown_kind_is_told_at_the_start(
    packages: Path, tmp_path: Path, kind: str, said: str
) -> None:
    settings = configured(tmp_path, kind)
    done = await asyncio.to_thread(
        subprocess.run,
        command(packages, "up", "--config", str(settings)),
        env=os.environ | {"HEADRACE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
