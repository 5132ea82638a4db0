"""A real Redis for tests: on a free port, with its files in a folder of the test's; frozen, killed and restarted at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.live import missing

START_WITHIN_S = 20.0


class RedisServer:
    """Our own `redis-server`, listening on 127.0.0.1 only. It keeps everything over a restart (`appendonly`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            TimeoutError: it didn't in 20 s.
        """
        arguments = [
            "redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning",
            "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        with (self._folder / "redis.log").open("ab") as out:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            with contextlib.suppress(OSError):
                if self.command("PING").startswith(b"+PONG"):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError((self._folder / "redis.log").read_text())
            time.sleep(0.02)

    def command(self, *words: str) -> bytes:
        """One command over a connection of its own: the first bytes of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(65_536)

    def get(self, key: str) -> str | None:
        """The string at *key*; None where there is none."""
        head, _, rest = self.command("GET", key).partition(b"\r\n")
        return None if head == b"$-1" else rest.removesuffix(b"\r\n").decode()

    def ttl_s(self, key: str) -> int:
        """How long *key* lives on; negative where it isn't there, or for good."""
        return int(self.command("TTL", key)[1:])

    def freeze(self) -> None:
        """It is there, takes connections, and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on, with what was sent to it meanwhile."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, as a machine that fails."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A running server; gone at the end. Where there is no `redis-server`, the test is skipped, or fails (`support.live`)."""
    if shutil.which("redis-server") is None:
        missing("redis", "there is no redis-server; scripts/require-apt redis-server installs it")
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
