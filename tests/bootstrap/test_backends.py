"""The service as the settings ask for it: upstreams, and an Ollama on this machine that comes and goes."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from headrace.adapters.storage.backend import choose
from headrace.bootstrap.running import running
from headrace.engine.catalog import Catalog
from headrace.gateway.listener import bind
from headrace.settings import Settings, load
from headrace.testing.fake_engine import FakeEngine, Script
from support.raw import call
from support.waiting import until

AUTH = {"authorization": "Bearer sk-backends"}


def configured(folder: Path, text: str) -> Settings:
    (folder / "headrace.toml").write_text('[auth]\napi_keys = ["sk-backends"]\n' + text)
    return load(folder / "headrace.toml", {"HEADRACE_HOME": str(folder), "HEADRACE_CACHE": str(folder)})


async def models(port: int) -> list[str]:
    return [model["id"] for model in (await call(port, "GET", "/v1/models", AUTH)).json["data"]]


@pytest.mark.req("C26")
async def test_a_local_ollama_is_found_at_the_start_and_used_beside_upstreams(tmp_path: Path) -> None:
    async with (
        FakeEngine(Script(models=("a",))) as upstream,
        FakeEngine(Script(models=("llama3:8b",), dialect="ollama", cancels_unstreamed=True)) as ollama,
    ):
        text = f'[ollama]\nurl = "{ollama.url}"\n[[upstreams]]\nname = "up"\nurl = "{upstream.url}"\n'
        settings = await asyncio.to_thread(configured, tmp_path, text)
        catalog = Catalog.from_environment(settings.cache, os.environ)
        async with running(
            settings, bind("127.0.0.1", 0), catalog, choose("sqlite", settings.home)
        ) as service:
            assert await models(service.port) == ["a", "llama3:8b"]
            body = {"model": "llama3:8b", "messages": [{"role": "user", "content": "hi"}]}
            response = await call(
                service.port, "POST", "/v1/chat/completions", AUTH, json.dumps(body).encode()
            )
            assert response.status == 200
            assert ollama.stats.last is not None
            assert ollama.stats.last.json()["stream"] is False, "Ollama stops whole answers by itself"
            assert upstream.stats.started == 0


async def test_an_upstream_called_ollama_is_the_one_that_counts(tmp_path: Path) -> None:
    async with (
        FakeEngine(Script(models=("mine",))) as mine,
        FakeEngine(Script(models=("local",), dialect="ollama")) as local,
    ):
        text = f'[ollama]\nurl = "{local.url}"\n[[upstreams]]\nname = "ollama"\nurl = "{mine.url}"\n'
        settings = await asyncio.to_thread(configured, tmp_path, text)
        catalog = Catalog.from_environment(settings.cache, os.environ)
        async with running(
            settings, bind("127.0.0.1", 0), catalog, choose("sqlite", settings.home)
        ) as service:
            assert await models(service.port) == ["mine"]


@pytest.mark.slow
async def test_an_upstream_that_comes_up_later_is_used_then(tmp_path: Path) -> None:
    late = FakeEngine(Script(models=("late",)))
    await late.start()
    await late.stop()
    text = f'[ollama]\nprobe = false\n[[upstreams]]\nname = "late"\nurl = "{late.url}"\napi_key = "sk-up"\n'
    settings = await asyncio.to_thread(configured, tmp_path, text)
    catalog = Catalog.from_environment(settings.cache, os.environ)
    async with running(settings, bind("127.0.0.1", 0), catalog, choose("sqlite", settings.home)) as service:
        body = json.dumps({"model": "late", "messages": [{"role": "user", "content": "hi"}]}).encode()
        early = await call(service.port, "POST", "/v1/chat/completions", AUTH, body)
        assert (early.status, early.error["code"]) == (503, "no_healthy_backend")
        assert int(early.headers["retry-after"]) > 0
        late.script = Script(models=("late",), api_key="sk-up")
        await late.start()
        async with asyncio.timeout(30):
            while (await call(service.port, "POST", "/v1/chat/completions", AUTH, body)).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await until(lambda: not service.inference.active)
    await late.stop()
