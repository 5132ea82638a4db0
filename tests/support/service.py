"""`headrace up` as its user runs it: a process of its own, with an engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import openai
import platformdirs
import psutil

COMMAND = (sys.executable, "-c", "from headrace.cli.main import run; run()")
PATIENCE_S = 60.0
"""For whatever is waited for: only a hang takes this long."""


def environment(home: Path, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with *home* as the data folder, the machine's one model cache, and *changes* over it."""
    cache = os.environ.get("HEADRACE_CACHE") or platformdirs.user_cache_dir("headrace", appauthor=False)
    return {
        **os.environ,
        "HEADRACE_HOME": str(home),
        "HEADRACE_CACHE": cache,
        "HEADRACE_OLLAMA__PROBE": "false",
        **(changes or {}),
    }


class Said:
    """The lines that a process wrote to one of its pipes; whoever waits for one is woken when it comes."""

    def __init__(self, pipe: IO[str]) -> None:
        self.lines: list[str] = []
        self._over = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines)

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for a line in which *pattern* is found."""
        with self._news:
            self._news.wait_for(lambda: self._over or self._find(pattern) is not None, PATIENCE_S)
            found = self._find(pattern)
        assert found is not None, f"never said {pattern!r}, but:\n{self.text}"
        return found

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(PATIENCE_S)

    def _find(self, pattern: str) -> re.Match[str] | None:
        return next((match for line in self.lines if (match := re.search(pattern, line))), None)

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


class Service:
    """One `headrace up` on a free port, from `with` to its end. *config* is the text of its headrace.toml.

    Leaving the block kills it and everything that it started, if it is still there.
    """

    port: int
    url: str

    def __init__(self, home: Path, config: str = "", environ: Mapping[str, str] | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self._environ = environment(home, environ)
        if config:
            (home / "headrace.toml").write_text(config, encoding="utf-8")

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--port", "0"],
            cwd=self.home,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.console, self.log = Said(self.process.stdout), Said(self.process.stderr)
        try:
            self.url = self.console.until(r"listening on (http://\S+)")[1]
            self.curl = self.console.until("^curl .*")[0]
        except AssertionError as error:
            self._end()
            raise AssertionError(f"{error}\n{self.log.text}") from None
        self.port = int(self.url.rpartition(":")[2])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def __aenter__(self) -> Self:
        """The same, for a test whose own loop has to answer meanwhile: for an engine that it serves."""
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._end)

    @property
    def key(self) -> str:
        """The key that it made at its first start."""
        return (self.home / "first-key").read_text().strip()

    @property
    def auth(self) -> dict[str, str]:
        """Headers that open it."""
        return {"authorization": f"Bearer {self.key}"}

    def client(self) -> openai.OpenAI:
        """OpenAI's client for it, which doesn't hide a failure by trying again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=PATIENCE_S)

    def raw(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )

    def call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
        """One request: the status, and the JSON that came."""
        status, _, answer = self.raw(method, path, body, headers)
        return status, json.loads(answer)

    def engines(self) -> list[psutil.Process]:
        """The engines' processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "headrace.engine.child" in child.cmdline()]

    def slots(self, engine: psutil.Process) -> Any:
        """What an engine says of its slots, asked behind the gateway's back."""
        sockets = {str(connection.laddr) for connection in engine.net_connections("unix")} - {""}
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE_S)
            asking.connect(sockets.pop())
            asking.sendall(b"GET /slots HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with asking.makefile("rb") as answer:
                return json.loads(answer.read().partition(b"\r\n\r\n")[2])

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(signum)

    def ended(self) -> int:
        """Wait for its end; its exit status."""
        status = self.process.wait(PATIENCE_S)
        self.console.join()
        self.log.join()
        return status

    def _end(self) -> None:
        started: list[psutil.Process] = []
        if self.process.poll() is None:
            started = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
        self.process.wait(PATIENCE_S)
        for child in psutil.wait_procs(started, timeout=10)[1]:
            child.kill()
        self.console.join()
        self.log.join()


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end soon."""
    return not psutil.wait_procs(processes, timeout=PATIENCE_S)[1]


def until(reached: Callable[[], bool]) -> None:
    """Wait, with patience, for something that no event tells."""
    over = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if reached():
            return
        over.wait(0.02)
    raise AssertionError("waited in vain")
