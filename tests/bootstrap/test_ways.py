"""Which way requests go, as clients see it: by tags, routes, aliases, sessions and fallbacks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from headrace.testing.fake_engine import FakeEngine, Script
from support.composed import KEY, Composed, composed

UPSTREAM = """
[[upstreams]]
name = "{name}"
url = "{url}"
tags = {tags}
{more}
"""
NAMES = {"cpu": ["slow"], "gpu": ["gpu"], "eu": ["gpu", "eu"]}
ROUTES = """
[[routes]]
model = "pinned-*"
target = "llama"
selector = "node:eu"
[[routes]]
model = "default"
target = "llama"
selector = "tag:gpu"
strategy = "session"
[[routes]]
model = "share"
target = "llama"
strategy = "weighted"
weights = { cpu = 0, gpu = 3, eu = 1 }
[[routes]]
model = "quick"
target = "llama"
strategy = "latency"
"""


@dataclass
class House:
    """The service, and its backends by name."""

    service: Composed
    engines: dict[str, FakeEngine]

    async def node(self, model: str, headers: dict[str, str] | None = None) -> str:
        """Who answers."""
        answer = await self.service.ask(model, headers)
        assert answer.status == 200, answer
        return answer.headers["x-headrace-node"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Three backends with one model, and routes."""
    engines = {name: FakeEngine(Script(models=("llama", "qwen"), checks_model=True)) for name in NAMES}
    for engine in engines.values():
        await engine.start()
    text = ROUTES + "".join(
        UPSTREAM.format(name=name, url=engine.url, tags=json.dumps(NAMES[name]), more="")
        for name, engine in engines.items()
    )
    async with composed(tmp_path, text) as service:
        await service.ready(*NAMES)
        yield House(service, engines)
    for engine in engines.values():
        await engine.stop()


@pytest.mark.req("C14", "D41")
async def test_requests_are_shared_among_all_that_have_the_model(house: House) -> None:
    assert {await house.node("llama") for _ in range(9)} == set(NAMES)
    assert [engine.stats.started for engine in house.engines.values()] == [3, 3, 3]


@pytest.mark.req("C16")
async def test_tags_choose_by_header_by_suffix_and_by_both(house: House) -> None:
    assert {await house.node("llama", {"x-headrace-tags": "gpu"}) for _ in range(6)} == {"gpu", "eu"}
    assert {await house.node("llama@gpu") for _ in range(6)} == {"gpu", "eu"}
    assert {await house.node("llama@gpu+eu") for _ in range(3)} == {"eu"}
    assert {await house.node("llama@gpu", {"x-headrace-tags": "eu"}) for _ in range(3)} == {"eu"}
    nobody = await house.service.ask("llama", {"x-headrace-tags": "mars"})
    assert (nobody.status, nobody.error["code"]) == (404, "model_not_found")
    assert "llama@mars" in nobody.error["message"]
    wrong = await house.service.ask("llama", {"x-headrace-tags": "a b"})
    assert (wrong.status, wrong.error["param"]) == (400, "x-headrace-tags")


@pytest.mark.req("C19", "C35")
async def test_patterns_pin_and_aliases_rename(house: House) -> None:
    assert {await house.node(f"pinned-{number}") for number in range(6)} == {"eu"}
    answer = await house.service.ask("default")
    assert answer.json["model"] == "llama", "the answer says which model gave it, as OpenAI's do"
    used = house.engines[answer.headers["x-headrace-node"]]
    assert used.stats.last is not None
    assert used.stats.last.json()["model"] == "llama"


@pytest.mark.req("C18")
async def test_weights_divide_the_work(house: House) -> None:
    for _ in range(80):
        assert (await house.service.ask("share")).status == 200
    started = {name: engine.stats.started for name, engine in house.engines.items()}
    assert started["cpu"] == 0
    assert started["gpu"] > started["eu"] > 0


@pytest.mark.slow
@pytest.mark.req("C17")
async def test_latency_sends_most_to_those_that_are_quick(house: House) -> None:
    house.engines["gpu"].script = replace(house.engines["gpu"].script, delay_s=0.5)
    for _ in range(40):
        assert (await house.service.ask("quick", stream=True)).status == 200
    slow = house.engines["gpu"].stats.started
    assert 1 <= slow <= 10, "it is found out, and looked at again now and then"


async def test_a_session_stays_with_its_backend(house: House) -> None:
    homes = {
        session: {await house.node("default", {"x-headrace-session": session}) for _ in range(4)}
        for session in "abcdefgh"
    }
    assert all(len(home) == 1 for home in homes.values())
    assert set.union(*homes.values()) == {"gpu", "eu"}


@pytest.mark.req("C14", "C15")
async def test_a_name_that_nobody_has_is_told_with_those_that_are_near(house: House) -> None:
    unknown = await house.service.ask("lama")
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    assert "'llama'" in unknown.error["message"]


@pytest.mark.slow
@pytest.mark.req("C14")
async def test_where_nobody_is_left_it_is_told_who_is_away_and_since_when(house: House) -> None:
    for engine in house.engines.values():
        await engine.stop()
    moved = await house.service.ask("qwen@eu")
    assert (moved.status, moved.error["code"]) == (503, "no_healthy_backend")
    for _ in range(2):  # each finds one of the others gone, and goes on
        gone = await house.service.ask("qwen")
    message = gone.error["message"]
    assert gone.status == 503
    for name in NAMES:
        assert re.search(rf"\b{name} can't be reached since \d\d:\d\d:\d\d UTC \(\d+ s\)", message), message
    assert int(gone.headers["retry-after"]) > 0
    await house.engines["cpu"].start()
    async with asyncio.timeout(30):
        while (await house.service.ask("qwen")).status != 200:  # noqa: ASYNC110 - it is looked for by and by
            await asyncio.sleep(0.1)


FALLBACK = """
[[routes]]
model = "assistant"
selector = "node:own"
target = "small"
[[routes.fallbacks]]
selector = "node:hosted"
model = "big"
tokens_per_day = 100
[[routes.fallbacks]]
selector = "node:spare"
model = "tiny"
"""


@pytest.mark.slow
@pytest.mark.req("R03")
async def test_who_falls_back_to_a_hosted_provider_does_so_within_its_daily_allowance(tmp_path: Path) -> None:
    async with (
        FakeEngine(Script(models=("small",), checks_model=True, tokens=2)) as own,
        FakeEngine(Script(models=("big",), checks_model=True, tokens=20, api_key="sk-hosted")) as hosted,
        FakeEngine(Script(models=("tiny",), checks_model=True, tokens=2)) as spare,
    ):
        upstreams = (("own", own, ""), ("hosted", hosted, 'api_key = "sk-hosted"'), ("spare", spare, ""))
        text = FALLBACK + "".join(
            UPSTREAM.format(name=name, url=engine.url, tags=[], more=more) for name, engine, more in upstreams
        )
        async with composed(tmp_path, text) as service:
            await service.ready("own", "hosted", "spare")
            usual = await service.ask("assistant", max_tokens=20)
            assert (usual.headers["x-headrace-node"], usual.headers["x-headrace-attempts"]) == ("own", "1")
            await own.stop()
            answers = [await service.ask("assistant", max_tokens=30) for _ in range(5)]
            ways = [answer.headers["x-headrace-node"] for answer in answers]
            assert ways == sorted(ways, key=["hosted", "spare"].index)
            assert 3 <= ways.count("hosted") <= 4, "of 100 tokens some 22 each, and 31 have to be left"
            assert answers[0].headers["x-headrace-attempts"] == "2", "its own backend was found gone"
            assert [answer.json["model"] for answer in answers] == [
                {"hosted": "big", "spare": "tiny"}[way] for way in ways
            ]
            assert hosted.stats.last is not None
            assert hosted.stats.last.json()["model"] == "big"
            assert hosted.stats.last.header("authorization") == "Bearer sk-hosted"
            assert all(KEY.encode() not in value for _, value in hosted.stats.last.headers)
            used = sum(
                answer.json["usage"]["total_tokens"]
                for answer, way in zip(answers, ways, strict=True)
                if way == "hosted"
            )
            assert used <= 100
            refused = await service.ask("assistant", max_tokens=5)
            assert refused.headers["x-headrace-node"] == "spare", "it is left alone until the day is over"
