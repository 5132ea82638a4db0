"""A fresh database is a migrated one; a newer or a stranger's is left alone."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from headrace.adapters.storage import migrations, reference, schema
from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import Backend, choose
from headrace.adapters.storage.schema_version import VERSION_TABLE, Migrations
from headrace.kernel.errors import StartupError
from headrace.ports.records import User
from support.servers.postgres import Postgres
from support.storage import Opening

ROOT = Path(__file__).parents[3]
NEWEST = "0003"
NEXT = "0004"
LATER = f"""
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "{NEXT}", "{NEWEST}", None, None
def upgrade():
    op.add_column("users", sa.Column("nickname", sa.Text))
    {{then}}
"""


def structure(backend: Backend) -> dict[str, object]:
    """Everything that the database itself says about its tables."""
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)
    with engine.begin() as connection:
        looking = inspect(connection)
        found: dict[str, object] = {}
        for table in looking.get_table_names():
            if table == VERSION_TABLE:
                continue
            columns = [
                {key: str(value) for key, value in column.items() if key != "comment"}
                for column in looking.get_columns(table)
            ]
            found[table] = (
                columns,
                looking.get_pk_constraint(table) | {"comment": None},
                sorted(looking.get_foreign_keys(table), key=str),
                sorted(looking.get_indexes(table), key=str),
                sorted(
                    (dict(each) | {"comment": None} for each in looking.get_unique_constraints(table)),
                    key=str,
                ),
                sorted((each["name"], each["sqltext"]) for each in looking.get_check_constraints(table)),
            )
    engine.dispose()
    return found


def made(backend: Backend) -> Backend:
    """With the tables as schema.py has them, made without a migration."""
    backend.hold()
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)
    with engine.begin() as connection:
        schema.METADATA.create_all(connection)
    engine.dispose()
    backend.let_go()
    return backend


def upgraded(backend: Backend, folder: Path | None = None) -> tuple[str | None, str]:
    backend.hold()
    try:
        return Migrations(backend, startup_s=5.0, folder=folder).upgrade()
    finally:
        backend.let_go()


@pytest.fixture
def other(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Backend:
    """A second empty database of the same kind."""
    if url.startswith("sqlite"):
        return choose(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    server: Postgres = request.getfixturevalue("server")
    return choose(server.database(), tmp_path)


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The steps of a later release: one more."""
    return steps(tmp_path / "newer", LATER.format(then="pass"))


def steps(folder: Path, later: str) -> Path:
    shutil.copytree(Path(migrations.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / f"v{NEXT}_later.py").write_text(later)
    return folder


def test_fresh_is_migrated(backend: Backend, other: Backend) -> None:
    assert upgraded(backend) == (None, NEWEST)
    assert structure(backend) == structure(made(other))
    assert set(schema.METADATA.tables) == set(structure(backend))


def test_alembic_sees_no_difference_either(backend: Backend) -> None:
    upgraded(backend)
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_server_default": True}
        )
        found = [each for each in compare_metadata(context, schema.METADATA) if "comment" not in str(each[0])]
    engine.dispose()
    assert found == []


def test_upgrading_again_changes_nothing(backend: Backend) -> None:
    assert upgraded(backend) == (None, NEWEST)
    assert upgraded(backend) == (NEWEST, NEWEST)


async def test_an_older_schema_is_brought_up_to_date_and_keeps_its_rows(
    backend: Backend, opening: Opening, newer: Path
) -> None:
    async with opening() as database:
        await SqlAccounts(database).save_user(User(user_id="ann"))
    assert await asyncio.to_thread(upgraded, backend, newer) == (NEWEST, NEXT)
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)

    def look() -> list[tuple[object, ...]]:
        with engine.begin() as connection:
            return [tuple(row) for row in connection.execute(text("SELECT user_id, nickname FROM users"))]

    assert await asyncio.to_thread(look) == [("ann", None)]
    engine.dispose()
    with pytest.raises(StartupError, match=f"schema {NEXT}, and this program knows none above {NEWEST}"):
        async with opening():
            pass


@pytest.mark.req("C35")
def test_a_database_of_the_first_schema_gets_what_came_later_and_keeps_its_rows(
    backend: Backend, other: Backend, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    source, later = Path(migrations.__file__).parent, shutil.ignore_patterns("__pycache__", "v000[2-9]*")
    shutil.copytree(source, first, ignore=later)
    assert upgraded(backend, first) == (None, "0001")
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO users (user_id, created_at) VALUES ('ann', 0)"))
    assert upgraded(backend) == ("0001", NEWEST)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT user_id FROM users")).all() == [("ann",)]
    engine.dispose()
    assert structure(backend) == structure(made(other))


def test_a_file_is_copied_before_its_schema_changes(tmp_path: Path, newer: Path) -> None:
    backend = choose("sqlite", tmp_path)
    upgraded(backend)
    assert list(tmp_path.glob("*.bak")) == []  # there was nothing to lose
    upgraded(backend, newer)
    (copy,) = tmp_path.glob(f"headrace.db.{NEWEST}.*.bak")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with sqlite3.connect(copy) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(users)")]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert "nickname" not in columns
    assert "user_id" in columns


def test_a_step_that_fails_changes_nothing(backend: Backend, tmp_path: Path) -> None:
    broken = steps(tmp_path / "broken", LATER.format(then="op.execute('SELECT no_such_thing FROM users')"))
    upgraded(backend)
    before = structure(backend)
    with pytest.raises(StartupError, match=rf"can't be brought to schema {NEXT}: .*no_such_thing.* Nothing"):
        upgraded(backend, broken)
    assert structure(backend) == before
    assert upgraded(backend) == (NEWEST, NEWEST)


def test_another_programs_tables_are_left_alone(backend: Backend) -> None:
    backend.hold()
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE users (id INTEGER)"))
    engine.dispose()
    backend.let_go()
    before = structure(backend)
    with pytest.raises(StartupError, match=r"tables of another program \(users\)"):
        upgraded(backend)
    assert structure(backend) == before


def test_several_gateways_that_start_at_once_make_one_schema(server: Postgres, tmp_path: Path) -> None:
    url = server.database()
    gathered = threading.Barrier(6)

    def start(_: int) -> tuple[str | None, str]:
        backend = choose(url, tmp_path)
        gathered.wait(20)
        return upgraded(backend)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(start, range(6)))
    assert {now for _, now in found} == {NEWEST}
    assert structure(choose(url, tmp_path)).keys() == set(schema.METADATA.tables)


def test_the_reference_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "reference" / "database.md").read_text("utf-8")
    assert written == reference.page(), "run scripts/generate_reference.py"


def test_every_table_and_column_is_documented() -> None:
    for table in schema.METADATA.tables.values():
        assert table.comment
        assert [column.name for column in table.columns if not column.comment] == []
