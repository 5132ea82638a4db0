"""A database file that is damaged, can't be written or grow, and processes that are killed while they write it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import support.crashing
import support.full_disk
from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.checking import check
from headrace.adapters.storage.schema_version import Migrations
from headrace.kernel.errors import StartupError, Unavailable
from headrace.ports.records import User
from support.storage import IMPATIENT, opened


def run(module: str | None, *arguments: str, timeout_s: float = 110) -> list[dict[str, object]]:
    """Run one of our programs; the JSON lines that it wrote."""
    assert module is not None
    done = subprocess.run(
        [sys.executable, module, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_what_was_told_as_durable_survives_kill_at_any_moment(tmp_path: Path) -> None:
    rounds = run(support.crashing.__file__, str(tmp_path), "25")
    assert len(rounds) == 25
    assert all(found["said"] for found in rounds)
    assert [found["lost"] for found in rounds] == [[]] * 25
    assert [found["problems"] for found in rounds] == [[]] * 25


@pytest.mark.slow
def test_a_full_disk_refuses_what_it_cannot_keep_and_works_again_once_there_is_room(tmp_path: Path) -> None:
    (found,) = run(support.full_disk.__file__, str(tmp_path))
    assert found["full"]
    assert found["failures"]
    assert "refuses to write" in str(found["failure"])
    assert found["readable"]
    assert found["after"] == 20
    assert found["kept"]


def nonsense(path: Path) -> None:
    path.write_bytes(b"this is no database at all " * 200)


def torn(path: Path) -> None:
    """The first page is whole, what comes behind it isn't."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))


@pytest.mark.parametrize("damage", [nonsense, torn])
async def test_a_damaged_file_is_told_at_the_start_with_what_to_do(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with opened("sqlite", tmp_path) as database:
        await SqlAccounts(database).save_user(User(user_id="ann"))
    damage(tmp_path / "headrace.db")
    before = (tmp_path / "headrace.db").read_bytes()
    backend = choose("sqlite", tmp_path)
    report = await asyncio.to_thread(lambda: check(backend, Migrations(backend)))
    assert report.problems
    with pytest.raises(StartupError, match=r"headrace.db can't be used: .*last backup"):
        async with opened("sqlite", tmp_path):
            pass
    assert (tmp_path / "headrace.db").read_bytes() == before


async def test_damage_that_is_met_later_is_an_error_of_whoever_meets_it(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as database:
        accounts = SqlAccounts(database)
        for number in range(200):
            await accounts.save_user(User(user_id=f"u{number}", name="x" * 500))
    path = tmp_path / "headrace.db"
    with sqlite3.connect(path) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'users'").fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = os.urandom(4096)
    path.write_bytes(content)
    async with opened("sqlite", tmp_path, IMPATIENT) as database:
        accounts = SqlAccounts(database)
        with pytest.raises(Unavailable, match=r"^The database can't be read\.$") as read:
            await accounts.users()
        assert "malformed" in str(read.value.__cause__)
        with pytest.raises(Unavailable, match=r"^The database refuses to write\.$"):
            await accounts.save_user(User(user_id="new"))
        assert await accounts.keys() == []  # what is whole still works
    backend = choose("sqlite", tmp_path)
    report = await asyncio.to_thread(lambda: check(backend, Migrations(backend)))
    assert report.problems


def test_a_file_that_may_not_be_written_is_told_at_the_start() -> None:
    with tempfile.TemporaryDirectory() as outside:  # of pytest's folders, which only their owner enters
        Path(outside).chmod(0o755)
        folder = Path(outside) / "home"
        backend = choose("sqlite", folder)
        backend.hold()
        Migrations(backend).upgrade()
        backend.let_go()
        folder.chmod(0o755)
        for name in ("headrace.db", "headrace.db.lock"):
            (folder / name).chmod(0o444)
        code = (
            "import os; from pathlib import Path; from headrace.adapters.storage.sqlite import Sqlite\n"
            "from headrace.kernel.errors import StartupError\n"
            "os.setuid(65534) if os.geteuid() == 0 else None\n"
            f"try: Sqlite(Path({str(folder / 'headrace.db')!r})).hold()\n"
            "except StartupError as error: print(error.message)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
    assert "headrace.db can't be used: Permission denied." in done.stdout, done.stderr


def test_a_folder_that_is_a_file_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StartupError, match=r"can't be used: (Not a directory|File exists)\."):
        choose("sqlite", tmp_path / "home").hold()
