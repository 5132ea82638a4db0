"""A real PostgreSQL in a temporary folder, reached through a Unix socket there; gone at the end."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from support.live import missing

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
# What a crash of the machine would lose may be lost here; what a crash of the server would, may not.
_FAST = "-c fsync=off -c full_page_writes=off"


class Postgres:
    """One server. `database` makes an empty database in it."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user  # the server refuses to run as root
        self._numbers = itertools.count(1)

    def database(self) -> str:
        """The URL of a new, empty database."""
        return self.create(f"test{next(self._numbers)}")

    def create(self, name: str) -> str:
        """The same under a name of the test's own."""
        self.ask("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def ask(self, database: str, query: str) -> list[str]:
        """The rows that *query* finds, values separated by `|`."""
        arguments = ("-qXAt", "-h", str(self._folder), "-d", database, "-c", query)
        return self.run("psql", *arguments).splitlines()

    def url(self, name: str) -> str:
        """The URL of a database in this server."""
        return f"postgresql://headrace@/{name}?host={self._folder}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = f"-k {self._folder} -c listen_addresses='' -c max_connections=60 {_FAST}"
        self._control("start", "-o", options, "-l", str(self._folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` ends connections, `immediate` is as good as a crash."""
        self._control("stop", "-m", mode)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of it stopped in its tracks: connections stay open, and nothing answers."""
        main = psutil.Process(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]))
        main.send_signal(signal.SIGSTOP)  # first: it makes no others any more
        processes = [*main.children(recursive=True), main]
        try:
            _signal(processes, signal.SIGSTOP)
            yield
        finally:
            _signal(processes, signal.SIGCONT)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of its programs as its user; what it wrote."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            env={"PATH": os.environ["PATH"], "PGUSER": "headrace", "LC_ALL": "C.UTF-8"},
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr or done.stdout}")
        return done.stdout

    def _control(self, verb: str, *arguments: str) -> None:
        # Its output goes to a file: the server inherits it, and a pipe would stay open as long as the server runs.
        with (self._folder / "control").open("wb") as output:
            subprocess.run(
                [
                    self._programs / "pg_ctl", "-w", "-t", "60", "-D", self._folder / "data",
                    *arguments, verb,
                ],
                user=self._user,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=90,
                check=True,
            )  # fmt: skip


@contextmanager
def running() -> Iterator[Postgres]:
    """A server for as long as the context lasts."""
    programs = _programs()
    user = _unprivileged() if os.geteuid() == 0 else None
    # Not below pytest's own folders: those are root's alone, and a socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="hr-pg-", dir="/tmp"))
    if user is not None:
        shutil.chown(folder, user)
    server = Postgres(programs, folder, user)
    try:
        server.run(
            "initdb", "-D", str(folder / "data"), "-U", "headrace", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # one that had just ended
            process.send_signal(number)


def _programs() -> Path:
    found = [
        path for place in _PLACES for path in Path("/").glob(place.lstrip("/")) if (path / "initdb").exists()
    ]
    if not found:
        missing("postgres", "no initdb in the usual places")
    return max(found, key=_version)


def _version(programs: Path) -> list[int]:
    digits = "".join(character if character.isdigit() else " " for character in str(programs.parent))
    return [int(number) for number in digits.split()]


def _unprivileged() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    found = next((name for name in ("postgres", "nobody") if name in known), None)
    return found or missing("postgres", "no user to run it as, instead of root")
