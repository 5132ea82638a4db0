"""A PostgreSQL that restarts, stands still, starts late or isn't there: bounded waits, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.checking import check
from headrace.adapters.storage.database import Bounds, Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.adapters.storage.records import SqlRecords
from headrace.adapters.storage.schema_version import Migrations
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import StartupError, Unavailable
from headrace.ports.records import RequestRecord, User
from support.journal_contract import NOON, committed, entry, state
from support.servers import postgres
from support.servers.postgres import Postgres
from support.storage import opened
from support.waiting import until

pytestmark = pytest.mark.slow
PATIENT = Bounds(patience_s=60.0, statement_s=20.0)
HASTY = Bounds(patience_s=1.0, statement_s=0.5, startup_s=0.5)


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """A server that nobody else needs."""
    with postgres.running() as server:
        yield server


@contextlib.asynccontextmanager
async def traffic(database: Database) -> AsyncIterator[list[str]]:
    """Settlements, one after the other, until the context ends; those that were told as durable."""
    journal, durable, stop = SqlJournal(database), list[str](), asyncio.Event()

    async def go_on() -> None:
        number = 0
        while not stop.is_set():
            reservation = f"r{number}"
            while not await committed(journal, [entry(reservation, 1)], [state(0, 100)]):
                pass  # the same again, as a ledger would
            durable.append(reservation)
            number += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(go_on())
        try:
            yield durable
        finally:
            stop.set()


async def more(durable: list[str], than: int) -> None:
    await until(lambda: len(durable) > than, timeout_s=60)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_traffic_goes_on_after_a_restart_and_each_entry_counts_once(
    own: Postgres, tmp_path: Path, mode: str
) -> None:
    url = own.database()
    async with opened(url, tmp_path, PATIENT) as database:
        records, accounts = SqlRecords(database, SystemClock()), SqlAccounts(database)
        async with traffic(database) as durable:
            for _ in range(3):
                await more(durable, len(durable) + 20)
                records.add(record(len(durable)))
                await asyncio.to_thread(own.stop, mode)
                await asyncio.to_thread(own.start)
                await more(durable, len(durable) + 5)
                await accounts.save_user(User(user_id=f"user{len(durable)}"))
        await records.close()
        assert records.dropped == 0
        assert len(await records.recent(99)) == 3
        assert len(await accounts.users()) == 3
        (window,) = await SqlJournal(database).open(NOON)
        assert (window.settled, window.block) == (len(durable), 100)
    backend = choose(url, tmp_path)
    report = await asyncio.to_thread(lambda: check(backend, Migrations(backend), NOON))
    assert report.problems == ()


async def test_one_that_stands_still_is_a_bounded_wait_and_nobody_blocks_the_loop(
    own: Postgres, tmp_path: Path
) -> None:
    async with opened(own.database(), tmp_path, HASTY) as database:
        journal, accounts = SqlJournal(database), SqlAccounts(database)
        await accounts.save_user(User(user_id="ann"))
        with own.frozen():
            async with asyncio.timeout(30):
                results = await asyncio.gather(
                    committed(journal, [entry("frozen", 1)]),
                    accounts.save_user(User(user_id="bob")),
                    accounts.users(),
                    accounts.generation(),
                    return_exceptions=True,
                )
            assert results[0] is False
            assert all(isinstance(result, Unavailable) for result in results[1:])
        async with asyncio.timeout(30):
            while not await committed(journal, [entry("frozen", 1)]):
                pass
            await accounts.save_user(User(user_id="bob"))
            assert [user.user_id for user in await accounts.users()] == ["ann", "bob"]
            assert await journal.open(NOON) == [state(1, 0)]


async def test_a_connection_that_the_server_ended_is_not_noticed_by_anyone(
    own: Postgres, tmp_path: Path
) -> None:
    async with opened(own.database(), tmp_path, PATIENT) as database:
        accounts = SqlAccounts(database)
        await accounts.save_user(User(user_id="ann"))
        assert len(await accounts.users()) == 1
        for number in range(3):
            await asyncio.to_thread(
                own.run,
                *("psql", "-qX", "-h", str(own._folder), "-d", "postgres", "-c"),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headrace'",
            )
            assert len(await accounts.users()) == number + 1
            await accounts.save_user(User(user_id=f"user{number}"))


DIES_AT_THE_FIRST_COMMIT = """
CREATE SEQUENCE deaths;
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('deaths') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5); END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON generations DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
"""


async def test_work_whose_commit_was_lost_is_done_again_only_where_that_does_no_harm(
    own: Postgres, tmp_path: Path
) -> None:
    async with opened(own.database(), tmp_path, PATIENT) as database:
        await database.write(lambda connection: connection.execute(text(DIES_AT_THE_FIRST_COMMIT)).close())
        add = text("INSERT INTO generations VALUES ('x', 1) ON CONFLICT DO NOTHING")
        with pytest.raises(Unavailable, match="nobody knows whether it did"):
            await database.write(lambda connection: connection.execute(add).close())
        await database.write(
            lambda connection: connection.execute(text("ALTER SEQUENCE deaths RESTART")).close()
        )
        await database.write(lambda connection: connection.execute(add).close(), repeatable=True)
        deaths = text("SELECT last_value FROM deaths")
        assert await database.read(lambda connection: connection.execute(deaths).scalar()) == 2
        assert await SqlAccounts(database).generation() == 0


async def test_one_that_starts_a_little_later_is_waited_for(own: Postgres, tmp_path: Path) -> None:
    url = own.database()
    await asyncio.to_thread(own.stop)

    async def open_and_read() -> list[User]:
        async with opened(url, tmp_path, Bounds(startup_s=60.0, patience_s=30.0)) as database:
            return await SqlAccounts(database).users()

    waiting = asyncio.create_task(open_and_read())
    await asyncio.to_thread(own.start)
    assert await waiting == []


async def test_one_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="Is it running") as caught:
        async with opened(f"postgresql://me:sesame@/own?host={tmp_path}", tmp_path, HASTY):
            pass
    assert "sesame" not in caught.value.message


async def test_one_that_stands_still_at_the_start_is_a_bounded_wait(own: Postgres, tmp_path: Path) -> None:
    url = own.database()
    with own.frozen(), pytest.raises(StartupError):
        async with asyncio.timeout(60), opened(url + "&connect_timeout=2", tmp_path, HASTY):
            pass


def record(number: int) -> RequestRecord:
    return RequestRecord(
        request_id=f"req_{number}",
        path="/",
        model="m",
        status="completed",
        http_status=200,
        created_at=NOON + number,
        completed_at=NOON + number,
        latency_ms=1.0,
    )
