"""Background tasks have an owner, and end with it."""

from __future__ import annotations

import asyncio

import pytest

from headrace.kernel.aio import Tasks


async def for_ever(started: asyncio.Event) -> None:
    started.set()
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("boom")


async def test_leaving_the_owner_cancels_and_awaits_its_tasks() -> None:
    started = asyncio.Event()
    async with Tasks() as tasks:
        task = tasks.spawn(for_ever(started), name="t")
        await started.wait()
        assert len(tasks) == 1
    assert task.cancelled()
    assert len(tasks) == 0


async def test_the_owner_hears_of_a_task_that_died() -> None:
    heard: list[BaseException] = []
    async with Tasks(heard.append) as tasks:
        task = tasks.spawn(fail(), name="t")
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert [str(error) for error in heard] == ["boom"]


async def test_a_closed_owner_starts_nothing() -> None:
    tasks = Tasks()
    await tasks.close()
    with pytest.raises(RuntimeError, match="after its owner closed"):
        tasks.spawn(fail(), name="t")


async def test_a_task_that_starts_another_while_closing_leaves_none_behind() -> None:
    tasks = Tasks()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)

    started = asyncio.Event()
    tasks.spawn(stubborn(), name="stubborn")
    tasks.spawn(for_ever(started), name="t")
    await started.wait()
    await tasks.close()
    assert len(tasks) == 0
