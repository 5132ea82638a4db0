"""A server of models that predict, as the settings name it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from headrace.adapters.storage.backend import choose
from headrace.bootstrap.running import running
from headrace.engine.catalog import Catalog
from headrace.gateway.listener import bind
from headrace.kernel.errors import ConfigError
from headrace.settings import Settings, load
from headrace.testing.fake_tf_serving import FakeTfServing
from support.raw import call

AUTH = {"authorization": "Bearer sk-predicts"}
UPSTREAM = '[[upstreams]]\nname = "vision"\nkind = "tf-serving"\nurl = "{}/v1"\n'

pytestmark = pytest.mark.req("B02")


def configured(folder: Path, text: str) -> Settings:
    text = f'[auth]\napi_keys = ["sk-predicts"]\n[ollama]\nprobe = false\n{text}'
    (folder / "headrace.toml").write_text(text)
    return load(folder / "headrace.toml", {"HEADRACE_HOME": str(folder), "HEADRACE_CACHE": str(folder)})


async def test_it_is_served_through_and_an_alias_too(tmp_path: Path) -> None:
    async with FakeTfServing() as server:
        text = UPSTREAM.format(server.url) + 'models = ["half", "gone"]\n'
        text += '[[routes]]\nmodel = "fraction"\ntarget = "half"\n'
        settings = await asyncio.to_thread(configured, tmp_path, text)
        catalog = Catalog.from_environment(settings.cache, os.environ)
        storage = choose("sqlite", settings.home)
        async with running(settings, bind("127.0.0.1", 0), catalog, storage) as service:
            for name in ("half", "fraction"):
                path = f"/v1/models/{name}:predict"
                answer = await call(service.port, "POST", path, AUTH, b'{"instances": [2]}')
                assert (answer.status, answer.json) == (200, {"predictions": [3.0]})
            listed = await call(service.port, "GET", "/v1/models", AUTH)
            assert [model["id"] for model in listed.json["data"]] == ["fraction", "half"]
            body = b'{"model": "half", "messages": [{"role": "user", "content": "hi"}]}'
            refused = await call(service.port, "POST", "/v1/chat/completions", AUTH, body)
            assert refused.error["code"] == "unsupported_operation"
            assert [request.path for request in server.predicted] == ["/v1/models/half:predict"] * 2


async def test_one_without_the_names_of_its_models_stops_the_start(tmp_path: Path) -> None:
    settings = await asyncio.to_thread(configured, tmp_path, UPSTREAM.format("http://localhost:1"))
    catalog = Catalog.from_environment(settings.cache, os.environ)
    with (
        bind("127.0.0.1", 0) as listening,
        pytest.raises(ConfigError, match="'vision' has to name its models"),
    ):
        async with running(settings, listening, catalog, choose("sqlite", settings.home)):
            pass
