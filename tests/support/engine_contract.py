"""What our engine doubles promise: to answer as llama.cpp does. One suite, run over the double and over the real thing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headrace.core.fetch import Response, fetch
from headrace.ports.connector import Connector, UpstreamRequest
from support.recorder import Recorder
from support.waiting import until

ASK = [{"role": "user", "content": "Count to twenty."}]
CHAT = "/v1/chat/completions"


class EngineContract:
    """Give the fixture `engine`: a connector to an engine of at least two slots that serves any model name."""

    @pytest.fixture
    def engine(self) -> Connector:
        """The engine under test."""
        raise NotImplementedError("a subclass gives it")

    async def ask(self, engine: Connector, path: str, **members: Any) -> Response:
        body = json.dumps({"model": "m", "max_tokens": 4, **members}).encode()
        request = UpstreamRequest("POST", path, [(b"content-type", b"application/json")], body)
        async with asyncio.timeout(60):
            return await fetch(engine, request)

    async def stream(self, engine: Connector, path: str, **members: Any) -> list[Any]:
        response = await self.ask(engine, path, stream=True, **members)
        assert response.status == 200
        assert dict(response.headers)[b"content-type"].startswith(b"text/event-stream")
        assert response.body.endswith(b"data: [DONE]\n\n")
        events = [event.removeprefix(b"data: ") for event in response.body.split(b"\n\n") if event]
        return [json.loads(event) for event in events[:-1]]

    async def test_it_lists_its_model(self, engine: Connector) -> None:
        response = await fetch(engine, UpstreamRequest("GET", "/v1/models"))
        listing = json.loads(response.body)
        assert listing["object"] == "list"
        assert all(model["object"] == "model" and model["id"] for model in listing["data"])

    async def test_a_whole_chat(self, engine: Connector) -> None:
        answer = json.loads((await self.ask(engine, CHAT, messages=ASK)).body)
        assert answer["object"] == "chat.completion"
        [choice] = answer["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"]
        assert choice["finish_reason"] == "length"
        usage = answer["usage"]
        assert usage["completion_tokens"] == 4
        assert usage["total_tokens"] == usage["prompt_tokens"] + 4

    @pytest.mark.parametrize("usage", [True, False])
    async def test_a_streamed_chat(self, engine: Connector, usage: bool) -> None:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        chunks = await self.stream(engine, CHAT, messages=ASK, **options)
        told = [chunk for chunk in chunks if chunk["choices"]]
        deltas = [chunk["choices"][0]["delta"] for chunk in told]
        assert deltas[0]["role"] == "assistant"
        assert not any("role" in delta for delta in deltas[1:])
        assert "".join(delta.get("content") or "" for delta in deltas)
        assert [chunk["choices"][0]["finish_reason"] for chunk in told][-2:] == [None, "length"]
        assert [chunk["choices"] == [] for chunk in chunks] == [False] * len(told) + [True] * usage
        assert ("usage" in chunks[-1]) is usage

    async def test_a_text_completion(self, engine: Connector) -> None:
        answer = json.loads((await self.ask(engine, "/v1/completions", prompt="Once upon a time")).body)
        assert answer["choices"][0]["text"]
        chunks = await self.stream(engine, "/v1/completions", prompt="Once upon a time")
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert "usage" in chunks[-1], "llama.cpp tells it in the last chunk, asked or not"

    async def test_a_wrong_request_is_a_400_with_a_message(self, engine: Connector) -> None:
        for members in ({"messages": 5}, {}):
            response = await self.ask(engine, CHAT, **members)
            assert response.status == 400
            assert json.loads(response.body)["error"]["message"]

    async def test_a_client_that_leaves_a_stream_frees_its_slot(self, engine: Connector) -> None:
        body = {"model": "m", "messages": ASK, "max_tokens": 500, "stream": True, "ignore_eos": True}
        for _ in range(6):  # more than there are slots
            sink = Recorder()
            request = UpstreamRequest(
                "POST", CHAT, [(b"content-type", b"application/json")], json.dumps(body).encode()
            )
            exchange = engine.start(request, sink)
            await until(lambda sink=sink: sink.chunks > 1, timeout_s=60)  # type: ignore[misc]
            exchange.cancel()
            await until(lambda sink=sink: sink.over, timeout_s=60)  # type: ignore[misc]
        assert (await self.ask(engine, CHAT, messages=ASK)).status == 200
