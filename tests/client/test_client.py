"""The client against a connector that is told what to say, and against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from headrace.client import ClientError, HeadraceClient
from headrace.client.credentials import is_loopback, kept_key
from headrace.control.access import FIRST_KEY_FILE
from headrace.domain.inference import Usage
from headrace.kernel.errors import ConfigError
from headrace.ports.connector import (
    Busy,
    Connector,
    Exchange,
    Failure,
    Headers,
    Lost,
    NotSent,
    Sink,
    Traits,
    UpstreamRequest,
)
from headrace.testing import FakeEngine, Script
from headrace.testing.fake_engine import Cut, ErrorEvent, Garbage, Hang, Refuse

STREAM: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"req_1")]
JSON: Headers = [(b"content-type", b"application/json"), (b"x-request-id", b"req_1")]
HELLO = [{"role": "user", "content": "hello"}]
Step = Callable[[Sink], None]


class Told(Connector, Exchange):
    """A connector that plays steps to the sink, one a turn of the loop, and stops while it is paused."""

    traits = Traits()

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[UpstreamRequest] = []
        self.paused = False
        self.was_paused = asyncio.Event()
        self.cancelled = False
        self.closed = False

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        self.requests.append(request)
        self.sink = sink
        asyncio.get_running_loop().call_soon(self._step)
        return self

    def _step(self) -> None:
        if self.steps and not self.paused and not self.cancelled:
            self.steps.pop(0)(self.sink)
            asyncio.get_running_loop().call_soon(self._step)

    def pause(self) -> None:
        self.paused = True
        self.was_paused.set()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            asyncio.get_running_loop().call_soon(self._step)

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            asyncio.get_running_loop().call_soon(self.sink.fail, Lost("cancelled"))

    async def close(self) -> None:
        self.closed = True


def head(status: int = 200, headers: Headers = STREAM) -> Step:
    return lambda sink: sink.head(status, headers)


def data(chunk: bytes) -> Step:
    return lambda sink: sink.data(chunk)


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"model": "m", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event(delta={"content": text})


def end(sink: Sink) -> None:
    sink.end()


def fail(failure: Failure) -> Step:
    return lambda sink: sink.fail(failure)


DONE = b"data: [DONE]\n\n"


def client(*steps: Step) -> tuple[HeadraceClient, Told]:
    told = Told(*steps)
    return HeadraceClient(connector=told), told


class TestChat:
    async def test_text_comes_in_pieces_and_the_rest_is_known_afterwards(self) -> None:
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"estimated":true}}\n\n'
        ours, told = client(
            head(),
            data(event(delta={"role": "assistant"}) + delta("Hel")),
            data(b": keep-alive\n\n" + delta("lo")[:20]),
            data(delta("lo")[20:] + event(delta={}, finish_reason="stop") + usage),
            data(DONE),
            end,
        )
        answer = ours.chat(HELLO, model="m", temperature=0)
        assert [text async for text in answer] == ["Hel", "lo"]
        assert (answer.model, answer.finish_reason, answer.request_id) == ("m", "stop", "req_1")
        assert answer.usage == Usage(3, 2, estimated=True)
        sent = json.loads(told.requests[0].body)
        assert sent == {
            "messages": HELLO,
            "stream": True,
            "temperature": 0,
            "model": "m",
            "stream_options": {"include_usage": True},
        }
        assert (told.requests[0].method, told.requests[0].path) == ("POST", "/v1/chat/completions")

    async def test_an_answer_that_is_not_streamed_is_one_piece(self) -> None:
        body = json.dumps(
            {
                "model": "m",
                "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
                "usage": None,
            }
        ).encode()
        ours, told = client(head(200, JSON), data(body[:9]), data(body[9:]), end)
        answer = ours.chat(HELLO, stream=False)
        assert await answer.text() == "Hello"
        assert answer.finish_reason == "stop"
        assert "stream_options" not in json.loads(told.requests[0].body)

    async def test_nothing_is_sent_before_it_is_iterated_over_and_it_is_read_once(self) -> None:
        ours, told = client(head(), data(DONE), end)
        answer = ours.chat(HELLO)
        await asyncio.sleep(0)
        assert told.requests == []
        assert await answer.text() == ""
        with pytest.raises(RuntimeError, match="once"):
            await answer.text()

    async def test_closing_the_iterator_cancels(self) -> None:
        ours, told = client(head(), data(delta("a")))
        async with aclosing(aiter(ours.chat(HELLO))) as texts:
            assert await anext(texts) == "a"
            assert not told.cancelled
        assert told.cancelled

    async def test_cancelling_the_reader_cancels(self) -> None:
        ours, told = client(head(), data(delta("a")))
        read: list[str] = []
        first = asyncio.Event()

        async def reader() -> None:
            async for text in ours.chat(HELLO):
                read.append(text)
                first.set()

        task = asyncio.ensure_future(reader())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told.cancelled
        assert read == ["a"]

    async def test_a_slow_reader_makes_the_sender_wait(self) -> None:
        piece = delta("x" * 100_000)
        ours, told = client(head(), *[data(piece)] * 10, data(DONE), end)
        texts = aiter(ours.chat(HELLO))
        await anext(texts)
        await asyncio.wait_for(told.was_paused.wait(), 5)
        left = len(told.steps)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(told.steps) == left > 0
        assert len([text async for text in texts]) == 9

    @pytest.mark.parametrize(
        ("steps", "code", "status"),
        [
            ([fail(NotSent("can't connect to http://x"))], "unreachable", None),
            ([fail(Busy("all connections are in use"))], "busy", None),
            ([fail(Lost("the connection was closed"))], "connection_lost", None),
            ([fail(Lost("too slow", timed_out=True))], "timeout", None),
            ([head(), data(delta("a")), fail(Lost("the connection was closed"))], "incomplete", None),
            ([head(), data(delta("a")), end], "incomplete", None),
            ([head(), data(b"data: {\n\n")], "invalid_answer", None),
            ([head(), data(b"data: []\n\n")], "invalid_answer", None),
            ([head(), data(b"data: " + b"x" * 2_000_000)], "invalid_answer", None),
            ([head(), data(b'data: {"error": {"message": "it broke", "code": "upstream_failed"}}\n\n')], "upstream_failed", None),
            ([head(404, JSON), data(b'{"error": {"message": "no such model", "code": "model_not_found"}}'), end], "model_not_found", 404),
            ([head(502, JSON), data(b"<html>"), end], None, 502),
            ([head(200, JSON), data(b"x" * 9_000_000)], "invalid_answer", None),
        ],
    )  # fmt: skip
    async def test_every_bad_end_is_one_error(
        self, steps: list[Step], code: str | None, status: int | None
    ) -> None:
        ours, told = client(*steps)
        with pytest.raises(ClientError) as caught:
            await ours.chat(HELLO).text()
        assert (caught.value.code, caught.value.status) == (code, status)
        assert caught.value.message.endswith((".", "?", "broke", "model"))
        assert caught.value.request_id == ("req_1" if told.sink.status else None)  # type: ignore[attr-defined]
        assert told.cancelled

    @pytest.mark.parametrize(
        "piece",
        [
            b'{"choices": 3}',
            b'{"choices": [3]}',
            b'{"choices": [{"delta": 3}]}',
            b'{"choices": [{"delta": {"content": 3}}]}',
        ],
    )
    async def test_members_of_odd_types_are_no_text(self, piece: bytes) -> None:
        ours, _ = client(head(), data(b"data: " + piece + b"\n\n" + delta("a") + DONE), end)
        assert await ours.chat(HELLO).text() == "a"


class TestQuestions:
    async def test_health(self) -> None:
        body = b'{"status":"ok","mode":"gateway","default_model":"m","detail":"runtimes=1"}'
        found = await client(head(200, JSON), data(body), end)[0].health()
        assert (found.ok, found.default_model, found.detail) == (True, "m", "runtimes=1")

    async def test_a_gateway_that_shuts_down_is_not_well(self) -> None:
        body = b'{"status":"shutting down","mode":"gateway","default_model":null}'
        found = await client(head(503, JSON), data(body), end)[0].health()
        assert (found.ok, found.default_model) == (False, None)

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"status": "ok"}'])
    async def test_something_else_is_told_apart(self, body: bytes) -> None:
        with pytest.raises(ClientError, match="not a Headrace gateway"):
            await client(head(200, JSON), data(body), end)[0].health()

    async def test_version(self) -> None:
        assert await client(head(200, JSON), data(b'{"version":"1.2"}'), end)[0].version() == "1.2"

    async def test_models(self) -> None:
        body = b'{"data": [{"id": "a", "created": 7, "owned_by": "b"}, {"id": "c"}, {"id": 3}, 4]}'
        found = await client(head(200, JSON), data(body), end)[0].models()
        assert [(item.id, item.created, item.owned_by) for item in found] == [("a", 7, "b"), ("c", 0, "")]

    async def test_a_refusal(self) -> None:
        body = b'{"error": {"message": "Invalid API key", "code": "invalid_api_key"}}'
        with pytest.raises(ClientError, match="Invalid API key") as caught:
            await client(head(401, JSON), data(body), end)[0].models()
        assert (caught.value.status, caught.value.code, caught.value.request_id) == (
            401,
            "invalid_api_key",
            "req_1",
        )

    async def test_closing_closes_the_connector(self) -> None:
        ours, told = client()
        async with ours:
            pass
        assert told.closed


class TestOverSockets:
    async def test_an_answer_with_its_key(self) -> None:
        async with (
            FakeEngine(Script(tokens=3, api_key="k")) as engine,
            HeadraceClient(f"{engine.url}/v1", "k") as ours,
        ):
            answer = ours.chat(HELLO, model="fake")
            assert await answer.text() == "tok0 tok1 tok2"
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 3
            assert [item.id for item in await ours.models()] == ["fake"]

    async def test_the_engine_stops_when_the_iterator_is_closed(self) -> None:
        async with (
            FakeEngine(Script(tokens=10_000, interval_s=0.005)) as engine,
            HeadraceClient(engine.url) as ours,
        ):
            async for text in ours.chat(HELLO, model="fake"):
                assert text == "tok0"
                break
            await engine.until(lambda stats: stats.aborted == 1)
            assert engine.stats.finished == 0

    @pytest.mark.parametrize(
        ("script", "code"),
        [
            (Script(fault=Refuse(503)), None),
            (Script(fault=Cut(1)), "incomplete"),
            (Script(fault=Cut()), "connection_lost"),
            (Script(fault=Garbage(1)), "invalid_answer"),
            (Script(fault=ErrorEvent(1)), None),
            (Script(api_key="other"), None),
        ],
    )
    async def test_what_goes_wrong(self, script: Script, code: str | None) -> None:
        async with FakeEngine(script) as engine, HeadraceClient(engine.url, "k") as ours:
            with pytest.raises(ClientError) as caught:
                await ours.chat(HELLO, model="fake").text()
        assert code is None or caught.value.code == code

    async def test_nobody_there(self) -> None:
        async with FakeEngine() as engine:
            url = engine.url
        async with HeadraceClient(url) as ours:
            with pytest.raises(ClientError, match="Can't connect") as caught:
                await ours.health()
        assert caught.value.code == "unreachable"

    async def test_a_hanging_answer_can_be_left(self) -> None:
        async with FakeEngine(Script(fault=Hang())) as engine, HeadraceClient(engine.url) as ours:
            task = asyncio.ensure_future(ours.chat(HELLO, model="fake").text())
            await engine.until(lambda stats: stats.active == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.until(lambda stats: stats.active == 0)


@pytest.mark.parametrize("key", ["", "two words", "ключ", "a\r\nb"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ConfigError, match="A key is one word") as caught:
        HeadraceClient("http://127.0.0.1:1", key)
    assert not key or key not in caught.value.message


class TestKeptKey:
    def test_it_is_read_from_the_data_folder(self, tmp_path: Path) -> None:
        (tmp_path / FIRST_KEY_FILE).write_text("sk-hr-x\n")
        assert kept_key(tmp_path) == "sk-hr-x"

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9"]
    )
    def test_this_machine(self, url: str) -> None:
        assert is_loopback(url)

    @pytest.mark.parametrize(
        "url",
        [
            "http://10.0.0.1:1",
            "http://127.0.0.1.evil.com",
            "http://localhost.evil.com",
            "http://127.0.0.1@evil.com",
            "x",
            "http://[",
        ],
    )
    def test_any_other(self, url: str) -> None:
        assert not is_loopback(url)

    def test_no_file_is_no_key_and_a_broken_one_is_an_error(self, tmp_path: Path) -> None:
        assert kept_key(tmp_path) is None
        (tmp_path / FIRST_KEY_FILE).mkdir()
        with pytest.raises(ConfigError, match="can't be read"):
            kept_key(tmp_path)
