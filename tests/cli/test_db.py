"""`headrace db`: check, backup, upgrade."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command_line import Result
from support.servers import postgres

Command = Callable[..., Result]


@pytest.fixture
def made(headrace: Command, home: Path) -> Path:
    """The file of a database that is up to date."""
    assert headrace("db", "upgrade").status == 0
    return home / "headrace.db"


def execute(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_upgrade_makes_the_database_and_does_nothing_the_second_time(headrace: Command, home: Path) -> None:
    first, second = headrace("db", "upgrade"), headrace("db", "upgrade")
    assert (first.status, first.out) == (0, f"{home / 'headrace.db'} has schema 0003 now (before: none).\n")
    assert (second.status, second.out) == (0, f"{home / 'headrace.db'} has schema 0003 already.\n")
    assert (first.err, second.err) == ("", "")


def test_check_says_that_all_is_right(headrace: Command, made: Path) -> None:
    assert headrace("db", "check").out == f"{made} (schema 0003)\nAll right.\n"
    result = headrace("db", "check", "--json")
    assert (result.status, result.err) == (0, "")
    assert result.json() == {
        "ok": True,
        "database": str(made),
        "schema": "0003",
        "newest": "0003",
        "problems": [],
    }


def test_check_makes_no_database(headrace: Command, home: Path) -> None:
    result = headrace("db", "check", "--json")
    assert (result.status, result.json()["ok"], result.json()["schema"]) == (1, False, None)
    assert "no database yet" in result.json()["problems"][0]
    assert not (home / "headrace.db").exists()


def test_check_finds_quota_that_does_not_add_up_in_windows_that_have_not_ended(
    headrace: Command, made: Path
) -> None:
    far = 4_102_444_800
    execute(
        made,
        f"INSERT INTO windows (subject, measure, period, starts_at, ends_at, settled, block) VALUES ('key:a', 'tokens', 'day', {far - 86400}, {far}, 5, 100)",
        f"INSERT INTO journal VALUES ('r', 'key:a', 'tokens', 'day', {far - 86400}, {far}, 5, 1)",
        f"INSERT INTO windows (subject, measure, period, starts_at, ends_at, settled, block) VALUES ('key:empty', 'tokens', 'day', {far - 86400}, {far}, 0, 100)",
        "INSERT INTO windows (subject, measure, period, starts_at, ends_at, settled, block) VALUES ('key:old', 'tokens', 'day', 0, 86400, 7, 0)",
    )
    assert headrace("db", "check").status == 0
    execute(made, "UPDATE windows SET settled = 6 WHERE subject = 'key:a'")
    result = headrace("db", "check", "--json")
    assert result.status == 1
    (problem,) = result.json()["problems"]
    assert "key:a" in problem
    assert "says 6 settled, its journal adds up to 5" in problem


def test_check_finds_damage(headrace: Command, made: Path) -> None:
    content = bytearray(made.read_bytes())
    content[5 * 4096 : 12 * 4096] = b"\xff" * (7 * 4096)
    made.write_bytes(content)
    result = headrace("db", "check")
    assert result.status == 1
    assert "All right" not in result.out


def test_check_finds_a_newer_schema_and_upgrade_leaves_it_alone(headrace: Command, made: Path) -> None:
    execute(made, "UPDATE headrace_schema SET version_num = '0042'")
    assert "a newer Headrace has used it" in headrace("db", "check").out
    result = headrace("db", "upgrade")
    assert result.status == 1
    assert "schema 0042" in result.err


def test_backup_writes_one_whole_file_and_never_over_another(
    headrace: Command, made: Path, tmp_path: Path
) -> None:
    execute(made, "INSERT INTO users (user_id, created_at) VALUES ('ann', 0)")
    target = tmp_path / "copy.db"
    with sqlite3.connect(made) as writing:  # somebody is in the middle of a transaction
        writing.execute("INSERT INTO users (user_id, created_at) VALUES ('unfinished', 0)")
        result = headrace("db", "backup", str(target))
        writing.rollback()
    writing.close()
    assert (result.status, result.out) == (0, f"{made} was copied to {target}.\n")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    copy = sqlite3.connect(target)
    assert copy.execute("SELECT user_id FROM users").fetchall() == [("ann",)]
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()
    content = target.read_bytes()
    again = headrace("db", "backup", str(target))
    assert (again.status, "File exists" in again.err) == (1, True)
    assert target.read_bytes() == content
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy.db"]


def test_backup_of_nothing_leaves_nothing(headrace: Command, tmp_path: Path) -> None:
    result = headrace("db", "backup", str(tmp_path / "copy.db"))
    assert (result.status, len(result.err.splitlines())) == (1, 1)
    assert list(tmp_path.glob("copy*")) == []


def test_another_database_is_named_in_the_settings_or_by_the_founding_documents_variable(
    headrace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "headrace.toml").write_text('[storage]\nurl = "sqlite:///data/own.db"\n')
    assert headrace("db", "upgrade", "--config", "etc/headrace.toml").status == 0
    assert (tmp_path / "etc" / "data" / "own.db").exists()
    monkeypatch.setenv("DATABASE_URL", "sqlite:///./x.db")
    assert headrace("db", "upgrade").status == 0
    assert (tmp_path / "x.db").exists()


@pytest.mark.req("C36")
def test_postgresql(headrace: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres.running() as server:
        monkeypatch.setenv("DATABASE_URL", server.database().replace("postgresql:", "postgresql+asyncpg:"))
        assert "Its schema is empty" in headrace("db", "check").out
        assert headrace("db", "upgrade").out.endswith("has schema 0003 now (before: none).\n")
        assert headrace("db", "check", "--json").json()["ok"]
        result = headrace("db", "backup", "copy.db")
        assert (result.status, result.out) == (2, "")
        assert "pg_dump" in result.err
    result = headrace("db", "check")
    assert (result.status, "can't be asked" in result.out) == (1, True)
