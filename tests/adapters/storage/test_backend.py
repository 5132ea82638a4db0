"""Which database a URL means, and how one process keeps others from its file."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.postgresql import Postgresql
from headrace.adapters.storage.sqlite import Sqlite
from headrace.kernel.errors import ConfigError, StartupError
from headrace.ports.records import User
from support.servers.postgres import Postgres
from support.storage import opened


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite", "{home}/headrace.db"),
        ("sqlite:///./x.db", "x.db"),
        ("sqlite:///data/x.db?mode=rwc", "data/x.db"),
        ("sqlite:////var/lib/x.db", "/var/lib/x.db"),
        ("sqlite+aiosqlite:///./x.db", "x.db"),
    ],
)
def test_a_file(url: str, path: str, tmp_path: Path) -> None:
    backend = choose(url, tmp_path)
    assert isinstance(backend, Sqlite)
    assert backend.file == Path(path.format(home=tmp_path))


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]
)
@pytest.mark.parametrize(
    "rest",
    [
        "me:sesame@db.example:5433/own?ssl=require",
        "me:sesame@h1:1,h2:2/own",
        "/own?host=/run/pg&password=sesame",
        "me@[::1]/own",
    ],
)
def test_a_server_whose_password_is_never_shown(scheme: str, rest: str, tmp_path: Path) -> None:
    backend = choose(f"{scheme}://{rest}", tmp_path)
    assert isinstance(backend, Postgresql)
    assert backend.file is None
    assert backend.shown.startswith("own of PostgreSQL at ")
    assert "sesame" not in backend.shown + repr(backend)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://me:sesame@h/d",
        "postgresql://",
        "postgresql://me:sesame@h:port/x?nonsense=1",
        "sesame",
    ],
)
def test_what_is_none_is_told_without_quoting_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(url, tmp_path)
    assert "sesame" not in caught.value.message
    assert "storage" in caught.value.message


def test_a_missing_driver_is_named_with_its_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pathlib import Path; from headrace.adapters.storage.backend import choose\n"
        "from headrace.kernel.errors import ConfigError\n"
        "try: choose('postgresql://h/d', Path('/'))\n"
        "except ConfigError as error: print(error.message)\n"
        "choose('sqlite', Path('/'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'headrace[postgresql]'" in done.stdout


async def test_the_file_and_its_folder_are_the_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    async with opened("sqlite", home) as database:
        await SqlAccounts(database).save_user(User(user_id="ann"))
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        names = {path.name for path in home.iterdir()}
        assert names == {"headrace.db", "headrace.db-wal", "headrace.db-shm", "headrace.db.lock"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


async def test_a_second_service_on_the_same_file_is_told_who_has_it(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path):
        code = (
            "from pathlib import Path; from headrace.adapters.storage.backend import choose\n"
            "from headrace.kernel.errors import StartupError\n"
            f"try: choose('sqlite', Path({str(tmp_path)!r})).hold()\n"
            "except StartupError as error: print(error.message)\n"
        )
        done = await asyncio.to_thread(python, code)
        assert f"(process {os.getpid()})" in done.stdout
        with pytest.raises(StartupError, match="HEADRACE_HOME"):
            async with opened("sqlite", tmp_path):
                pass
    async with opened("sqlite", tmp_path):  # and nobody, once it is closed
        pass


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from headrace.adapters.storage.backend import choose\n"
        f"choose('sqlite', Path({str(tmp_path)!r})).hold(); print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StartupError, match=f"process {holder.pid}"):
            choose("sqlite", tmp_path).hold()
        holder.kill()
    backend = choose("sqlite", tmp_path)
    backend.hold()
    backend.let_go()


@pytest.mark.req("C36")
async def test_several_gateways_share_one_server(server: Postgres, tmp_path: Path) -> None:
    url = server.database()
    async with opened(url, tmp_path) as one, opened(url, tmp_path) as two:
        added = text("INSERT INTO generations VALUES ('x', 1)")
        await one.write(lambda connection: connection.execute(added).close())
        seen = await two.read(
            lambda connection: connection.exec_driver_sql("SELECT value FROM generations").scalar()
        )
        assert seen == 1
