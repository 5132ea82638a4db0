"""Group commit: one thread writes, each unit for itself, all durable together, and nobody waits without a bound."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from headrace.adapters.storage.database import Bounds, Database
from headrace.adapters.storage.schema import generations
from headrace.kernel.errors import Unavailable
from support.storage import IMPATIENT, Opening, WriteLock


def put(name: str) -> Callable[[Connection], str]:
    """Work that adds a row of that name."""

    def work(connection: Connection) -> str:
        connection.execute(insert(generations).values(name=name))
        return name

    return work


def names(connection: Connection) -> list[str]:
    return sorted(connection.execute(select(generations.c.name)).scalars())


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Work that waits for it keeps the writer busy until the test is done with it."""
    event = threading.Event()
    yield event
    event.set()


async def begun(database: Database, gate: threading.Event) -> asyncio.Future[object]:
    """Keep the writer busy until *gate* is set. Returns once it is; the future hears when it went on."""
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(connection: Connection) -> None:
        loop.call_soon_threadsafe(began.set)
        gate.wait(30)

    done: asyncio.Future[object] = asyncio.ensure_future(database.write(wait))
    await began.wait()
    return done


async def test_what_is_queued_is_committed_together_and_told_in_order(
    database: Database, gate: threading.Event
) -> None:
    first = await begun(database, gate)
    told: list[object] = []
    for number in range(100):
        database.submit(put(f"n{number:02}"), lambda value, error: told.append(value))
    before = database.groups
    gate.set()
    await first
    assert await database.write(names) == [f"n{number:02}" for number in range(100)]
    assert told == [f"n{number:02}" for number in range(100)]
    assert database.groups - before <= 3


async def test_a_unit_that_fails_leaves_no_trace_and_takes_no_other_with_it(
    database: Database, gate: threading.Event
) -> None:
    def half(connection: Connection) -> None:
        connection.execute(insert(generations).values(name="half"))
        raise ValueError("a bug")

    first = await begun(database, gate)
    waiting = asyncio.gather(
        database.write(put("a")),
        database.write(half),
        database.write(put("a")),
        database.write(put("b")),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    gate.set()
    await first
    a, bug, twice, b = await waiting
    assert (a, b) == ("a", "b")
    assert isinstance(bug, ValueError)
    assert isinstance(twice, IntegrityError)
    assert await database.read(names) == ["a", "b"]


async def test_a_unit_that_fails_alone_leaves_no_trace_either(database: Database) -> None:
    def half(connection: Connection) -> None:
        connection.execute(insert(generations).values(name="half"))
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await database.write(half)
    assert await database.write(put("a")) == "a"
    assert await database.read(names) == ["a"]


async def test_nobody_hears_inside_the_call_and_everybody_on_the_loop(database: Database) -> None:
    heard: list[tuple[bool, int]] = []
    done = asyncio.Event()
    inside = True

    def told(value: object, error: Exception | None) -> None:
        heard.append((inside, threading.get_ident()))
        done.set()

    database.submit(names, told)
    inside = False
    await done.wait()
    assert heard == [(False, threading.get_ident())]


async def test_what_is_full_refuses_at_once(opening: Opening, gate: threading.Event) -> None:
    async with opening(Bounds(queued=3, queued_bytes=1000, patience_s=20.0)) as database:
        first = await begun(database, gate)
        left = [asyncio.ensure_future(database.write(put(name))) for name in "ab"]
        await asyncio.sleep(0)
        assert database.queued[0] == 3
        with pytest.raises(Unavailable, match="too slow"):
            await database.write(put("c"))
        gate.set()
        await asyncio.gather(first, *left)
        assert database.queued == (0, 0)
        large = asyncio.get_running_loop().create_future()
        database.submit(names, lambda value, error: large.set_result(error), size_bytes=1001)
        assert isinstance(await large, Unavailable)
        assert await database.read(names) == ["a", "b"]


async def test_whoever_waits_is_told_in_time_and_what_was_given_up_is_not_done(
    opening: Opening, gate: threading.Event
) -> None:
    async with opening(Bounds(patience_s=0.3, statement_s=10.0)) as database:
        first = await begun(database, gate)
        with pytest.raises(Unavailable, match="doesn't answer"):
            await database.write(put("never"))
        with pytest.raises(Unavailable):
            await first
        gate.set()
    async with opening() as database:
        assert await database.read(names) == []


async def test_work_that_was_given_up_while_it_ran_is_taken_back(
    opening: Opening, gate: threading.Event
) -> None:
    async with opening(Bounds(patience_s=0.5, statement_s=10.0)) as database:

        def slow(connection: Connection) -> None:
            connection.execute(insert(generations).values(name="slow"))
            gate.wait(30)

        with pytest.raises(Unavailable):
            await database.write(slow)
        gate.set()
    async with opening() as database:
        assert await database.read(names) == []


async def test_closing_writes_what_is_queued_and_takes_nothing_more(opening: Opening) -> None:
    async with opening() as database:
        waiting = [asyncio.ensure_future(database.write(put(f"n{number}"))) for number in range(50)]
        await asyncio.sleep(0)
        await database.close()
        assert len(await asyncio.gather(*waiting)) == 50
        with pytest.raises(Unavailable, match="closed"):
            await database.write(put("late"))
    async with opening() as database:
        assert len(await database.read(names)) == 50


async def test_readers_change_nothing_and_do_not_wait_for_the_writer(
    database: Database, gate: threading.Event
) -> None:
    first = await begun(database, gate)
    assert await database.read(names) == []
    with pytest.raises(Unavailable):
        await database.read(put("x"))
    gate.set()
    await first
    assert await database.read(names) == []


async def test_a_query_that_takes_too_long_ends(opening: Opening) -> None:
    async with opening(Bounds(patience_s=20.0, statement_s=0.3, readers=1)) as database:
        aliases = ", ".join(f"generations g{number}" for number in range(9))  # ten rows, nine times over
        await asyncio.gather(*(database.write(put(f"n{number}")) for number in range(10)))
        with pytest.raises(Unavailable, match="can't be read"):
            await database.read(
                lambda connection: connection.exec_driver_sql(f"SELECT count(*) FROM {aliases}")
            )
        assert len(await database.read(names)) == 10  # the one reader is back


async def test_another_transaction_in_the_way_is_a_bounded_wait(
    opening: Opening, write_lock: WriteLock
) -> None:
    async with opening(IMPATIENT) as database:
        write_lock.take()

        def write(connection: Connection) -> None:
            connection.exec_driver_sql("DELETE FROM requests")

        with pytest.raises(Unavailable) as caught:
            await database.write(write)
        assert caught.value.code == "database_unavailable"
        assert caught.value.retry_after_s
        write_lock.give_back()
        await database.write(write)


async def test_many_tasks_write_at_once(database: Database) -> None:
    await asyncio.gather(*(database.write(put(f"n{number}")) for number in range(2_000)))
    assert len(await database.read(names)) == 2_000
    assert database.groups < 500
