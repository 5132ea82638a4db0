"""Limits as a client of the whole service meets them, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from headrace.testing.fake_engine import FakeEngine, Script
from support.servers.redis import redis_server
from support.service import PATIENCE_S, Service

ASK: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
DURATION = re.compile(r"(?:\d+h)?(?:\d+m)?\d+s")


def config(url: str, limits: str) -> str:
    return (
        f'[auth]\napi_keys = ["sk-one", "sk-two"]\n[limits]\n{limits}\n'
        f'[[upstreams]]\nname = "fake"\nurl = "{url}"\ncapacity = 256\nmodels = ["fake"]\n'
    )


def client_of(service: Service, key: str = "sk-one", retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=key, max_retries=retries, timeout=PATIENCE_S
    )


@pytest.mark.slow
@pytest.mark.req("E07", "C09")
@pytest.mark.compliance("O41", "O42", "O51")
async def test_a_quota_that_is_spent_is_not_tried_again(tmp_path: Path) -> None:
    async with (
        FakeEngine(Script(tokens=2)) as engine,
        Service(tmp_path, config(engine.url, "requests_per_month = 2")) as service,
    ):
        async with client_of(service, retries=2) as client:
            for remaining in (1, 0):
                raw = await client.chat.completions.with_raw_response.create(model="fake", messages=ASK)
                assert raw.headers["x-ratelimit-limit-requests"] == "2"
                assert raw.headers["x-ratelimit-remaining-requests"] == str(remaining)
                assert DURATION.fullmatch(raw.headers["x-ratelimit-reset-requests"])
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="fake", messages=ASK)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert "2 requests per month" in refused.value.message
        assert engine.stats.started == 2, "what is refused reaches no backend, and isn't tried again"
        async with client_of(service, "sk-two") as other:
            answer = await other.chat.completions.create(model="fake", messages=ASK)
            assert answer.choices[0].finish_reason == "stop"


@pytest.mark.slow
@pytest.mark.req("E03", "E15")
@pytest.mark.compliance("O41", "O51")
async def test_tokens_are_counted_in_streams_too_and_the_default_limit_is_told_the_backend(
    tmp_path: Path,
) -> None:
    limits = "tokens_per_day = 100\ndefault_max_tokens = 60"
    async with (
        FakeEngine(Script(tokens=40)) as engine,
        Service(tmp_path, config(engine.url, limits)) as service,
    ):
        async with client_of(service) as client:
            raw = await client.chat.completions.with_raw_response.create(
                model="fake", messages=ASK, stream=True
            )
            assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 100 - 60
            async for _ in raw.parse():
                pass
            assert json.loads(engine.stats.received[-1].body)["max_tokens"] == 60
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="fake", messages=ASK, max_tokens=90)
        assert refused.value.code == "insufficient_quota"
        assert int(refused.value.response.headers["x-ratelimit-remaining-tokens"]) > 0


@pytest.fixture(params=["embedded", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the quota is counted."""
    if request.param == "embedded":
        yield "embedded"
        return
    with redis_server(tmp_path / "redis") as server:
        yield server.url


@pytest.mark.slow
@pytest.mark.req("E07", "C09")
async def test_of_three_hundred_at_once_fifty_get_through_a_limit_of_fifty(
    tmp_path: Path, ledger: str
) -> None:
    async with FakeEngine(Script(tokens=2, slots=256)) as engine:
        text = config(engine.url, "requests_per_day = 50") + f'[quota]\nurl = "{ledger}"\n'
        async with Service(tmp_path / "home", text) as service:
            async with client_of(service) as client:
                answers = await asyncio.gather(
                    *(client.chat.completions.create(model="fake", messages=ASK) for _ in range(300)),
                    return_exceptions=True,
                )
            refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
            assert len(refused) == 250
            assert {error.code for error in refused} == {"insufficient_quota"}
            assert sum(not isinstance(answer, BaseException) for answer in answers) == 50
            assert engine.stats.started == 50


@pytest.mark.slow
@pytest.mark.req("E39")
async def test_looking_costs_nothing_of_what_asking_is_limited_to(tmp_path: Path) -> None:
    async with (
        FakeEngine(Script(tokens=2)) as engine,
        Service(tmp_path, config(engine.url, "requests_per_day = 2\nconcurrency = 1")) as service,
        client_of(service) as client,
    ):
        for _ in range(10):
            assert [model.id async for model in await client.models.list()] == ["fake"]
            assert (await client.models.retrieve("fake")).id == "fake"
        for _ in range(2):
            await client.chat.completions.create(model="fake", messages=ASK)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="fake", messages=ASK)
        assert [model.id async for model in await client.models.list()] == ["fake"]


@pytest.mark.slow
@pytest.mark.req("C06", "C08", "C34")
async def test_each_request_leaves_a_record_that_outlives_the_service(tmp_path: Path) -> None:
    async with FakeEngine(Script(tokens=3)) as engine:
        text = config(engine.url, "requests_per_day = 2").replace(
            "[limits]", 'admin_keys = ["sk-root"]\n[limits]'
        )
        async with Service(tmp_path, text) as service:
            async with client_of(service) as client:
                await client.chat.completions.create(model="fake", messages=ASK)
                async for _ in await client.chat.completions.create(model="fake", messages=ASK, stream=True):
                    pass
                with pytest.raises(openai.RateLimitError):
                    await client.chat.completions.create(model="fake", messages=ASK)
            service.send(signal.SIGTERM)
            assert await asyncio.to_thread(service.ended) == 0
        async with Service(tmp_path, text) as service:
            root = {"authorization": "Bearer sk-root"}
            status, answer = await asyncio.to_thread(service.call, "GET", "/admin/recent", b"", root)
            assert status == 200
            refused, streamed, plain = answer["data"]
            assert [row["status"] for row in (refused, streamed, plain)] == [
                "refused",
                "completed",
                "completed",
            ]
            assert (refused["http_status"], refused["error"]) == (429, "insufficient_quota")
            assert (streamed["streamed"], plain["streamed"]) == (True, False)
            assert all(
                row["model"] == "fake" and row["node"] == "fake" and row["total_tokens"] > 0
                for row in (streamed, plain)
            )
            assert all(row["latency_ms"] > 0 for row in answer["data"])
            status, _ = await asyncio.to_thread(
                service.call, "GET", "/admin/recent", b"", {"authorization": "Bearer sk-one"}
            )
            assert status == 403
