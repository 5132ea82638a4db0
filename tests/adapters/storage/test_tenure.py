"""Of several processes over one PostgreSQL one grants quota: what the others hear, and what becomes of it when it is cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.database import Bounds, Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.adapters.storage.tenure import Taken, Tenure, Watch
from headrace.kernel.clock import SystemClock
from headrace.ports.records import User
from support.journal_contract import NOON, committed, entry, state
from support.servers.postgres import Postgres
from support.storage import opened

BOUNDS = Bounds(patience_s=20.0, statement_s=10.0)
GRANTED = [state(0, 100)]


class Rival:
    """Another session of the server that wants the same tenure."""

    def __init__(self, url: str) -> None:
        self._engine = choose(url, Path()).engine(connections=1, writes=True, limit_s=20.0)
        self._thread = ThreadPoolExecutor(1)
        self._connection = self._thread.submit(self._engine.connect).result()

    async def cut_off_and_overtake(self, *, begin: bool) -> None:
        """End every other session, and have the lock before any of them is back; *begin*: count quota, too."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._overtake, begin)

    async def leave(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._leave)

    def close(self) -> None:
        self._thread.submit(self._leave).result()
        self._thread.shutdown()

    def _overtake(self, begin: bool) -> None:
        connection = self._connection
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if begin:
            Tenure().begin(connection)
        else:
            taken = "SELECT pg_try_advisory_lock(6841697, hashtext(current_schema()))"
            assert connection.exec_driver_sql(taken).scalar() is True
        connection.commit()

    def _leave(self) -> None:
        self._connection.close()
        self._engine.dispose()


@pytest.fixture
def url(server: Postgres) -> str:
    return server.database()


@pytest.fixture
def rival(url: str) -> Iterator[Rival]:
    with contextlib.closing(Rival(url)) as rival:
        yield rival


async def test_a_second_one_is_told_how_to_count_together(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path, BOUNDS) as one, opened(url, tmp_path, BOUNDS) as two:
        first = SqlJournal(one)
        assert await first.open(NOON) == []
        with pytest.raises(Taken, match=r'\[quota\] url = "redis://'):
            await SqlJournal(two, open_tries=1).open(NOON)
        assert await committed(first, [entry("r1", 1)], GRANTED)
        await SqlAccounts(two).save_user(User(user_id="ann"))
        assert [user.user_id for user in await SqlAccounts(one).users()] == ["ann"]


async def test_one_that_has_just_ended_is_waited_for(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path, BOUNDS) as two:
        async with opened(url, tmp_path, BOUNDS) as one:
            await SqlJournal(one).open(NOON)
            waiting = asyncio.create_task(SqlJournal(two).open(NOON))
            await asyncio.sleep(0)
        assert await waiting == []


async def test_one_that_was_cut_off_goes_on(server: Postgres, url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path, BOUNDS) as database:
        journal = SqlJournal(database)
        await journal.open(NOON)
        assert await committed(journal, [entry("r1", 1)], GRANTED)
        await asyncio.to_thread(end_sessions, server, url)
        while not await committed(
            journal, [entry("r2", 1)]
        ):  # the dead session may hold the lock a moment longer
            pass
        assert await journal.open(NOON) == [state(2, 100)]


async def test_one_that_was_cut_off_while_nothing_is_counted_is_soon_the_one_again(
    server: Postgres, url: str, tmp_path: Path
) -> None:
    def holders() -> list[str]:
        query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = "
        return server.ask(
            "postgres", query + f"(SELECT oid FROM pg_database WHERE datname = '{name_of(url)}')"
        )

    async with opened(url, tmp_path, BOUNDS) as database:
        journal = SqlJournal(database)
        watch = Watch(database, journal.tenure, SystemClock(), every_s=0.02)
        await journal.open(NOON)
        first = await asyncio.to_thread(holders)
        assert len(first) == 1
        with contextlib.closing(watch):
            watch.start()
            await asyncio.to_thread(end_sessions, server, url)
            while (now := await asyncio.to_thread(holders)) in (first, []):
                pass
        assert len(now) == 1
        assert await committed(journal, [entry("r1", 1)], GRANTED)


async def test_nothing_is_granted_while_another_may_begin_and_it_goes_on_if_none_did(
    url: str, tmp_path: Path, rival: Rival
) -> None:
    async with opened(url, tmp_path, BOUNDS) as database:
        journal = SqlJournal(database)
        await journal.open(NOON)
        await rival.cut_off_and_overtake(begin=False)
        assert not await committed(journal, [entry("r1", 1)], GRANTED)
        await adds_a_user(database, "ann")
        await rival.leave()
        while not await committed(journal, [entry("r1", 1)], GRANTED):
            pass
        assert await journal.open(NOON) == [state(1, 100)]


async def test_one_that_was_overtaken_grants_nothing_any_more_also_when_the_other_has_gone(
    url: str, tmp_path: Path, rival: Rival
) -> None:
    async with opened(url, tmp_path, BOUNDS) as database:
        journal = SqlJournal(database)
        await journal.open(NOON)
        await rival.cut_off_and_overtake(begin=True)
        with capture_logs() as logs:
            assert not await committed(journal, [entry("r1", 1)], GRANTED)
            await rival.leave()
            assert not await committed(journal, [entry("r1", 1)], GRANTED)
        assert [line["action"] for line in logs].count("ledger.taken") == 1
        await adds_a_user(database, "ann")
        assert await SqlJournal(database).open(NOON) == []


async def adds_a_user(database: Database, name: str) -> None:
    """What has nothing to do with quota goes on."""
    accounts = SqlAccounts(database)
    await accounts.save_user(User(user_id=name))
    assert [user.user_id for user in await accounts.users()] == [name]


def end_sessions(server: Postgres, url: str) -> None:
    server.ask(
        "postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_of(url)}'"
    )


def name_of(url: str) -> str:
    """The database's name."""
    return url.partition("@/")[2].partition("?")[0]
