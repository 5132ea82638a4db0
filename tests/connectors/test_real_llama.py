"""The real llama.cpp server behind the kind `openai`: what it was seen to do, so that the double can't drift from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest

from headrace.connectors import openai
from headrace.ports.backend import BackendSpec, Opened, Report, Unwell
from headrace.ports.connector import Loading, UpstreamRequest
from support.backend_contract import JSON, look, opened, unwell
from support.house import gateway
from support.llama_server import llama_server
from support.raw import call
from support.recorder import Recorder
from support.strict import check_chat_stream

pytestmark = [pytest.mark.slow, pytest.mark.may_block("a process is started inside the test's own loop")]

ASK: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


async def refusal(way: Opened) -> object:
    """What a chat's sink hears as failure; None where it is answered."""
    sink = Recorder()
    request = UpstreamRequest("POST", "/v1/chat/completions", JSON, json.dumps(ASK).encode())
    way.connector.start(request, sink)
    return (await sink.last()).failure


async def loaded(way: Opened) -> list[Report]:
    """What it says until it is ready; the last says that it is."""
    reports: list[Report] = []
    async with asyncio.timeout(60):
        while not reports or reports[-1].ready_in_s is not None:
            with contextlib.suppress(Unwell):  # it doesn't listen yet
                reports.append(await way.prober.look())
            await asyncio.sleep(0.01)
    return reports


@pytest.mark.req("C27")
async def test_it_loads_then_lists_its_model_and_tells_its_slots(port: int) -> None:
    spec = BackendSpec("b", f"http://127.0.0.1:{port}")
    async with llama_server(port, slots=3), opened(openai.KIND, spec) as way:
        async with asyncio.timeout(60):
            while not isinstance(failure := await refusal(way), Loading):
                assert failure is not None, "it answered before it was seen to load"
                await asyncio.sleep(0.01)
        *loading, ready = await loaded(way)
        assert all(report.ready_in_s == 0.0 for report in loading)
        assert [info.id for info in ready.models or ()] == ["smollm2"]
        assert ready.slots == 3
        assert ready.product.startswith("llama.cpp ")
        async with gateway(engines={"smollm2": way.connector}) as house:
            body = json.dumps(ASK).encode()
            whole = await call(house.port, "POST", "/v1/chat/completions", house.auth, body)
            assert whole.status == 200, whole.body
            assert 1 <= whole.json["usage"]["completion_tokens"] <= 8
            body = json.dumps(ASK | {"stream": True, "stream_options": {"include_usage": True}}).encode()
            streamed = await call(house.port, "POST", "/v1/chat/completions", house.auth, body)
            said = check_chat_stream(streamed.body, usage=True, choices=1)
            assert said[0]["content"] == whole.json["choices"][0]["message"]["content"]


@pytest.mark.req("C27")
async def test_it_refuses_a_wrong_key(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    async with (
        llama_server(port, key="sk-right"),
        opened(openai.KIND, BackendSpec("b", url, api_key="sk-right")) as way,
    ):
        await loaded(way)
        assert await refusal(way) is None
        for key in ("", "sk-wrong"):
            trouble = await unwell(openai.KIND, BackendSpec("b", url, api_key=key))
            assert trouble.refused_key
        assert (await look(openai.KIND, BackendSpec("b", url, api_key="sk-right"))).slots == 3
