"""Many come at once for a model that isn't in memory: it is loaded once, and all of them are answered."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from headrace.testing.fake_engine import FakeEngine, Refuse, Script
from support.composed import Composed, composed
from support.raw import RawResponse
from support.waiting import until

MANY = 500
UPSTREAM = """
[server]
max_connections = 2000
[[upstreams]]
name = "box"
url = "{url}"
kind = "{kind}"
capacity = 64
"""
LOADING = json.dumps({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})


async def many(service: Composed, model: str) -> asyncio.Task[list[RawResponse]]:
    """So many who ask at once; every other wants a stream."""
    return asyncio.ensure_future(
        asyncio.gather(*(service.ask(model, stream=bool(number % 2)) for number in range(MANY)))
    )


def ends(answers: list[RawResponse]) -> Counter[int]:
    """How often each status, each 200 with its whole answer."""
    for answer in answers:
        if answer.status == 200:
            assert b"tok1" in answer.body
            assert b'"error"' not in answer.body
    return Counter(answer.status for answer in answers)


@pytest.mark.slow
async def test_500_for_a_cold_model_load_it_once_and_are_all_answered(tmp_path: Path) -> None:
    cold = Script(dialect="ollama", models=("cold", "warm"), tokens=2, load_s=1.5, most_loaded=2, slots=64)
    async with (
        FakeEngine(cold) as engine,
        composed(tmp_path, UPSTREAM.format(url=engine.url, kind="ollama")) as service,
    ):
        await service.ready("box")
        asked = await many(service, "cold")
        await engine.until(lambda stats: stats.loads == 1, timeout_s=20)
        control = service.service.inference
        await until(lambda: len(control.active) == MANY)
        assert len(engine.stats.received) == 1, "one loads it, the others aren't sent"
        assert (await service.ask("warm", max_tokens=2)).status == 200, "another model isn't held up by them"
        assert ends(await asked) == {200: MANY}
        assert engine.stats.loads == 2
        assert engine.stats.started == MANY + 1
        assert max(engine.stats.executions.values()) == 1


@pytest.mark.slow
async def test_a_backend_that_says_it_is_loading_is_asked_by_one_at_a_time_until_it_is_done(
    tmp_path: Path,
) -> None:
    busy = Script(tokens=2, slots=64, fault=Refuse(503, LOADING, {"Retry-After": "1"}))
    async with (
        FakeEngine(busy) as engine,
        composed(tmp_path, UPSTREAM.format(url=engine.url, kind="openai")) as service,
    ):
        await service.ready("box")
        asked = await many(service, "fake")
        await engine.until(lambda stats: stats.refused >= 64, timeout_s=20)
        await engine.until(lambda stats: stats.refused >= 66, timeout_s=20)  # some seconds of it
        assert engine.stats.refused <= 64 + 10, (
            "those that were under way before it said so, and then one a second"
        )
        engine.script = Script(tokens=2, slots=64)
        answers = await asked
        assert ends(answers) == {200: MANY}
        assert max(engine.stats.executions.values()) == 1
        record = await service.record(answers[-1].headers["x-request-id"])
        assert record["executions"] == 1, "what was refused before it began is no execution"


@pytest.mark.slow
async def test_who_waits_for_a_model_that_loads_forever_hears_that_in_the_end(tmp_path: Path) -> None:
    limits = '[limits]\nqueue_wait = "1500ms"\nqueue_size = 40\n'
    busy = Script(fault=Refuse(503, LOADING))
    async with (
        FakeEngine(busy) as engine,
        composed(tmp_path, limits + UPSTREAM.format(url=engine.url, kind="openai")) as service,
    ):
        await service.ready("box")
        answers = await (await many(service, "fake"))
        assert ends(answers) == {503: MANY}
        codes = Counter(answer.error["code"] for answer in answers)
        assert set(codes) == {"no_free_slot", "queue_full"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        assert engine.stats.started == 0
