"""Going down in order: who is being answered gets the rest of the answer, or at the deadline an error that says why."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.adapters.storage.backend import choose
from headrace.bootstrap.running import Service, running
from headrace.engine.catalog import Catalog
from headrace.gateway.listener import bind
from headrace.settings import Settings, load
from headrace.testing.fake_engine import FakeEngine, Hang, Script
from support.raw import RawClient, call
from support.strict import check_chat_stream

CHAT = "/v1/chat/completions"
AUTH = {"authorization": "Bearer sk-shutdown"}
STREAM = json.dumps(
    {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
).encode()
CLIENTS = 200


def configured(folder: Path, url: str, drain: str, delay: str) -> Settings:
    (folder / "headrace.toml").write_text(
        f'[server]\nport = 0\ndrain = "{drain}"\nshutdown_delay = "{delay}"\n[auth]\napi_keys = ["sk-shutdown"]\n'
        f'[ollama]\nprobe = false\n[[upstreams]]\nname = "up"\nurl = "{url}"\ncapacity = 500\n'
    )
    return load(folder / "headrace.toml", {"HEADRACE_HOME": str(folder), "HEADRACE_CACHE": str(folder)})


@contextlib.asynccontextmanager
async def service(
    engine: FakeEngine, folder: Path, *, drain: str, delay: str = "0s"
) -> AsyncIterator[Service]:
    settings = await asyncio.to_thread(configured, folder, engine.url, drain, delay)
    listening = bind("127.0.0.1", 0)
    catalog = Catalog.from_environment(settings.cache, os.environ)
    async with running(settings, listening, catalog, choose("sqlite", settings.home)) as service:
        yield service


@contextlib.asynccontextmanager
async def streams(port: int, engine: FakeEngine) -> AsyncIterator[list[RawClient]]:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(port)) for _ in range(CLIENTS)]
        for client in clients:
            client.request("POST", CHAT, AUTH, STREAM)
        for client in clients:
            assert (await client.head())[0] == 200
        await engine.until(lambda stats: stats.active == CLIENTS, timeout_s=20)
        yield clients


async def refused(port: int) -> None:
    """Wait until new connections are no longer taken."""
    async with asyncio.timeout(20):
        with contextlib.suppress(OSError, EOFError):
            while True:
                await call(port, "GET", "/health")


async def rest_of(client: RawClient) -> bytes:
    return b"".join([part async for part in client._chunks()])


@pytest.mark.slow
@pytest.mark.req("D02", "D25")
async def test_no_stream_is_cut_before_the_deadline(tmp_path: Path) -> None:
    script = Script(tokens=5, slots=500, fault=Hang(3))
    async with (
        FakeEngine(script) as engine,
        service(engine, tmp_path, drain="60s") as gateway,
        streams(gateway.port, engine) as clients,
    ):
        going_down = asyncio.create_task(gateway.shut_down(asyncio.Event()))
        await engine.until(lambda stats: stats.active == CLIENTS)
        await refused(gateway.port)
        engine.release()
        for client in clients:
            check_chat_stream(await rest_of(client), usage=False)
        await going_down
        assert engine.stats.aborted == 0


@pytest.mark.slow
@pytest.mark.req("D25")
async def test_at_the_deadline_every_stream_gets_its_error_event(tmp_path: Path) -> None:
    script = Script(tokens=5, slots=500, fault=Hang(3))
    async with (
        FakeEngine(script) as engine,
        service(engine, tmp_path, drain="0.2s") as gateway,
        streams(gateway.port, engine) as clients,
    ):
        await gateway.shut_down(asyncio.Event())
        for client in clients:
            last = (await rest_of(client)).rstrip().split(b"\n\n")[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
        await engine.until(lambda stats: stats.aborted == CLIENTS)


async def test_before_the_door_closes_health_says_so(tmp_path: Path) -> None:
    async with FakeEngine() as engine, service(engine, tmp_path, drain="1s", delay="30s") as gateway:
        assert (await call(gateway.port, "GET", "/health")).status == 200
        force = asyncio.Event()
        going_down = asyncio.create_task(gateway.shut_down(force))
        await asyncio.sleep(0)
        response = await call(gateway.port, "GET", "/health")
        assert (response.status, response.json["status"]) == (503, "shutting down")
        assert (await call(gateway.port, "GET", "/v1/models", AUTH)).status == 200
        force.set()
        await going_down
