"""A flood of one key before a whole gateway: the other keys hardly notice."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from headrace.testing.fake_engine import FakeEngine, Hang, Script
from support.house import gateway
from support.raw import RawClient, RawResponse, call
from support.waiting import until

CHAT = "/v1/chat/completions"
CALM = {"authorization": "Bearer sk-calm-0123456789"}
FLOOD = 300
SLOTS = 2
QUEUE = 64


def body(content: str = "hi") -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "fake", "messages": messages, "max_tokens": 8, "stream": True}).encode()


@pytest.mark.parametrize("asgi", [False, True], ids=["token lane", "asgi lane"])
async def test_ten_requests_of_one_key_pass_through_a_flood_of_another(asgi: bool) -> None:
    """A flood of 300 fills two slots and the queue of 64. Ten of another key come in all the same, and are served in turn with it."""
    async with (
        FakeEngine(Script(tokens=3)) as engine,
        gateway(engine.url, capacity=SLOTS, queue_wait_s=60, asgi=asgi) as house,
        asyncio.TaskGroup() as group,
    ):
        house.keys.add(CALM["authorization"].removeprefix("Bearer "))
        for _ in range(SLOTS):
            engine.once(Script(tokens=3, fault=Hang(0)))
        finished: list[tuple[str, RawResponse]] = []

        async def ask(whose: str, headers: dict[str, str]) -> None:
            finished.append((whose, await call(house.port, "POST", CHAT, headers, body())))

        for _ in range(FLOOD):
            group.create_task(ask("flood", house.auth))
        await until(lambda: len(finished) == FLOOD - SLOTS - QUEUE)
        assert {(r.status, r.error["code"]) for _, r in finished} == {(503, "queue_full")}
        assert all(int(r.headers["retry-after"]) >= 1 for _, r in finished)
        assert house.control.waiting == QUEUE

        for _ in range(10):
            group.create_task(ask("calm", CALM))
        await until(lambda: len(finished) == FLOOD - SLOTS - QUEUE + 10)
        assert all(whose == "flood" and r.status == 503 for whose, r in finished), "the flood gives way"
        assert house.control.waiting == QUEUE
        del finished[:]

        engine.release()
        await until(lambda: len(finished) == SLOTS + QUEUE)
        assert all(r.status == 200 for _, r in finished)
        order = [whose for whose, _ in finished]
        last_calm = max(place for place, whose in enumerate(order) if whose == "calm")
        # One of the flood for each of its own, those that ran already, and who overtakes whom on the way back to the client.
        assert last_calm < 2 * 10 + 2 * SLOTS + 4
        assert house.control.totals.refusals == {"queue_full": FLOOD - SLOTS - QUEUE + 10}


async def test_who_leaves_the_queue_is_not_sent_to_an_engine() -> None:
    async with FakeEngine(Script(tokens=3)) as engine, gateway(engine.url, capacity=1) as house:
        engine.once(Script(tokens=3, fault=Hang(0)))
        async with RawClient(house.port) as first:
            first.request("POST", CHAT, house.auth, body())
            await engine.until(lambda stats: stats.active == 1)
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(20):
                    leaver = await stack.enter_async_context(RawClient(house.port))
                    leaver.request("POST", CHAT, house.auth, body())
                await until(lambda: house.control.waiting == 20)
            await until(lambda: house.control.waiting == 0)
            engine.release()
            assert (await first.response()).status == 200
            assert (await call(house.port, "POST", CHAT, house.auth, body())).status == 200
        assert house.control.totals.executions == 2
        assert house.control.totals.withdrawn == 20
