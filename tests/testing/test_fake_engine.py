"""The fake engine, through the official client and through a bare socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest
import trustme
from openai.types.chat import ChatCompletionMessageFunctionToolCall, ChatCompletionMessageParam

from headrace.testing import FakeEngine, ManualClock, Script
from headrace.testing.fake_engine import Cut, ErrorEvent, Garbage, Hang, Refuse, Stats, ToolCall

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]


def client(engine: FakeEngine) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="sk-test", max_retries=0)


async def chat(engine: FakeEngine, **more: object) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=10) as http:
        body = {"model": "fake", "messages": HELLO, **more}
        return await http.post(f"{engine.url}/v1/chat/completions", json=body)


async def open_stream(
    engine: FakeEngine, *, stream: bool = True
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a chat request over a bare socket, for tests that leave early."""
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    body = msgspec.json.encode({"model": "fake", "messages": HELLO, "stream": stream})
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return reader, writer


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=3)) as running:
        yield running


async def test_a_whole_chat_answer(engine: FakeEngine) -> None:
    async with client(engine) as api:
        answer = await api.chat.completions.create(model="fake", messages=HELLO)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (
        "tok0 tok1 tok2",
        "assistant",
        "stop",
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        2,
        3,
        5,
    )
    assert (engine.stats.started, engine.stats.finished, engine.stats.active, engine.stats.tokens) == (
        1,
        1,
        0,
        3,
    )


async def test_a_streamed_chat_answer(engine: FakeEngine) -> None:
    async with client(engine) as api:
        stream = await api.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:4]] == ["tok0", " tok1", " tok2"]
    assert chunks[4].choices[0].finish_reason == "stop"
    assert chunks[5].choices == []
    assert chunks[5].usage is not None
    assert chunks[5].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_bytes_of_a_stream(engine: FakeEngine) -> None:
    answer = await chat(engine, stream=True)
    events = answer.text.split("\n\n")
    assert answer.headers["content-type"] == "text/event-stream"
    assert events[-2:] == ["data: [DONE]", ""]
    assert msgspec.json.decode(events[0].removeprefix("data: "))["choices"] == [
        {"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}
    ]
    assert '"usage"' not in answer.text  # it wasn't asked for


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    return [
        msgspec.json.decode(event[6:]) for event in answer.text.split("\n\n") if event.startswith("data: {")
    ]


async def test_the_two_dialects_report_usage_differently() -> None:
    async with FakeEngine(Script(tokens=2)) as engine:
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        own, own_unasked = events_of(await chat(engine, **asked)), events_of(await chat(engine, stream=True))
        engine.script = Script(tokens=2, dialect="openai")
        strict, strict_unasked = (
            events_of(await chat(engine, **asked)),
            events_of(await chat(engine, stream=True)),
        )
    assert [event.get("usage", "absent") for event in own[:-1]] == ["absent"] * 4
    assert [event["usage"] for event in strict[:-1]] == [None] * 4
    assert own[-1]["usage"] == strict[-1]["usage"]
    assert (own[-1]["choices"], strict[-1]["choices"]) == ([], [])
    assert ["timings" in events[-1] for events in (own, own_unasked, strict, strict_unasked)] == [
        True,
        True,
        False,
        False,
    ]
    assert not any("usage" in event for event in own_unasked + strict_unasked)


async def test_llama_cpp_reports_a_completions_usage_in_its_last_chunk_unasked(engine: FakeEngine) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{engine.url}/v1/completions", json={"prompt": "a b", "stream": True})
    *before, last = events_of(answer)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == 5
    assert not any("usage" in event for event in before)


async def test_usage_can_be_off() -> None:
    async with FakeEngine(Script(usage=False)) as engine:
        streamed = await chat(engine, stream=True, stream_options={"include_usage": True})
        assert '"usage"' not in streamed.text
        assert "usage" not in (await chat(engine)).json()


async def test_text_completions_whole_and_streamed(engine: FakeEngine) -> None:
    async with client(engine) as api:
        answer = await api.completions.create(model="fake", prompt="say it")
        stream = await api.completions.create(model="fake", prompt="say it", stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
    assert answer.choices[0].text == "".join(pieces) == "tok0 tok1 tok2"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_is_as_short_as_asked(engine: FakeEngine, stream: bool) -> None:
    answer = await chat(engine, max_tokens=2, stream=stream)
    assert '"finish_reason":"length"' in answer.text
    assert "tok1" in answer.text
    assert "tok2" not in answer.text


async def test_several_choices(engine: FakeEngine) -> None:
    async with client(engine) as api:
        answer = await api.chat.completions.create(model="fake", messages=HELLO, n=2)
        stream = await api.chat.completions.create(model="fake", messages=HELLO, n=2, stream=True)
        texts = {0: "", 1: ""}
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert texts == {0: "tok0 tok1 tok2", 1: "tok0 tok1 tok2"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


async def test_tool_calls_whole_and_streamed() -> None:
    calls = (ToolCall("weather", '{"city": "Oslo"}'), ToolCall("time"))
    async with FakeEngine(Script(tool_calls=calls)) as engine, client(engine) as api:
        answer = await api.chat.completions.create(model="fake", messages=HELLO)
        async with api.chat.completions.stream(model="fake", messages=HELLO) as stream:
            final = await stream.get_final_completion()
    for completion in (answer, final):
        choice = completion.choices[0]
        made = [
            (call.id, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or ()
            if isinstance(call, ChatCompletionMessageFunctionToolCall)
        ]
        assert made == [("call_0", "weather", '{"city": "Oslo"}'), ("call_1", "time", "{}")]
        assert choice.finish_reason == "tool_calls"


async def test_scripted_text_reasoning_and_logprobs() -> None:
    script = Script(text='{"answer": 42}', reasoning="let me think")
    async with FakeEngine(script) as engine:
        whole = (await chat(engine, logprobs=True)).json()["choices"][0]
        streamed = await chat(engine, stream=True, logprobs=True)
    events = [
        msgspec.json.decode(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")
    ]
    deltas = [event["choices"][0] for event in events]
    assert whole["message"]["content"] == '{"answer": 42}'
    assert "".join(delta["delta"].get("content") or "" for delta in deltas) == '{"answer": 42}'
    assert "".join(delta["delta"].get("reasoning_content", "") for delta in deltas) == "let me think"
    assert whole["message"]["reasoning_content"] == "let me think"
    told = [entry["token"] for delta in deltas for entry in delta.get("logprobs", {}).get("content", ())]
    assert told == [entry["token"] for entry in whole["logprobs"]["content"]] == ['{"answer":', " 42}"]


async def test_embeddings_are_the_same_in_both_encodings(engine: FakeEngine) -> None:
    async with client(engine) as api:
        packed = await api.embeddings.create(model="fake", input=["one", "three"], dimensions=5)
        plain = await api.embeddings.create(
            model="fake", input=["one", "three"], dimensions=5, encoding_format="float"
        )
        tokens = await api.embeddings.create(model="fake", input=[1, 2, 3])
    assert (
        engine.stats.received[0].json()["encoding_format"] == "base64"
    )  # what the client asks for by itself
    assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data]
    assert [item.index for item in plain.data] == [0, 1]
    assert len(plain.data[0].embedding) == 5
    assert plain.data[0].embedding != plain.data[1].embedding
    assert (len(tokens.data), tokens.usage.total_tokens) == (1, 3)


async def test_models_and_health() -> None:
    async with FakeEngine(Script(models=("a", "b")), by_model={"slow": Script()}) as engine:
        async with client(engine) as api:
            listed = await api.models.list()
        async with httpx2.AsyncClient() as http:
            health = await http.get(f"{engine.url}/health")
            engine.script = replace(engine.script, loading=True)
            loading = await http.get(f"{engine.url}/health")
            nowhere = await http.get(f"{engine.url}/nowhere")
    assert [model.id for model in listed.data] == ["a", "b", "slow"]
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (loading.status_code, loading.json()["error"]["message"]) == (503, "Loading model")
    assert nowhere.status_code == 503


async def test_a_script_by_model_and_one_for_the_next_request() -> None:
    async with FakeEngine(Script(text="plain"), by_model={"other": Script(text="special")}) as engine:
        engine.once(Script(text="first"), Script(fault=Refuse(500)))
        answers = [
            await chat(engine),
            await chat(engine),
            await chat(engine),
            await chat(engine, model="other"),
        ]
    texts = [
        answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.status_code == 200
    ]
    assert texts == ["first", "plain", "special"]
    assert engine.stats.refused == 1


@pytest.mark.parametrize(
    ("script", "status", "more"),
    [
        (Script(loading=True), 503, {}),
        (Script(api_key="sk-node"), 401, {}),
        (Script(checks_model=True), 404, {"model": "unknown"}),
        (Script(stream_options=False), 400, {"stream": True, "stream_options": {"include_usage": True}}),
        (Script(fault=Refuse(429, headers={"Retry-After": "3"})), 429, {}),
    ],
)
async def test_what_is_turned_away_is_not_executed(
    script: Script, status: int, more: dict[str, object]
) -> None:
    async with FakeEngine(script) as engine:
        answer = await chat(engine, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
        assert (engine.stats.refused, engine.stats.started) == (1, 0)
        assert answer.headers.get("retry-after") == ("3" if status == 429 else None)


async def test_a_body_that_is_not_json_is_refused(engine: FakeEngine) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{engine.url}/v1/chat/completions", content=b"{")
    assert answer.status_code == 400
    assert engine.stats.last is not None
    assert engine.stats.last.body == b"{"


async def test_what_came_is_remembered_as_it_came(engine: FakeEngine) -> None:
    async with httpx2.AsyncClient(headers={"X-Request-Id": "req_1", "X-Odd": "yes"}) as http:
        for _ in range(2):
            await http.post(f"{engine.url}/v1/completions?a=b", json={"prompt": "x"})
    last = engine.stats.last
    assert last is not None
    assert (last.method, last.path, last.target) == ("POST", "/v1/completions", "/v1/completions?a=b")
    assert (last.header("x-odd"), last.header("absent")) == ("yes", None)
    assert last.json() == {"prompt": "x"}
    assert engine.stats.executions == {"req_1": 2}
    assert engine.stats.connections == 1  # kept alive


async def test_a_streamed_request_stops_when_the_client_leaves() -> None:
    async with FakeEngine(Script(fault=Hang(after_events=2))) as engine:
        reader, writer = await open_stream(engine)
        await reader.readuntil(b"tok0")
        assert (engine.stats.active, engine.stats.aborted) == (1, 0)
        writer.close()
        await engine.until(lambda stats: stats.aborted == 1 and stats.active == 0)
        assert engine.stats.tokens == 1


@pytest.mark.parametrize(("cancels", "counted"), [(False, "wasted"), (True, "aborted")])
async def test_an_unstreamed_request_runs_on_unless_scripted(cancels: bool, counted: str) -> None:
    clock = ManualClock()
    script = Script(tokens=4, interval_s=1, cancels_unstreamed=cancels)
    async with FakeEngine(script, clock=clock) as engine:
        _, writer = await open_stream(engine, stream=False)
        await clock.until_pending()
        writer.close()
        await engine.until(lambda stats: stats.connected == 0)
        for _ in range(0 if cancels else 3):
            await clock.until_pending()
            clock.advance(1)
        await engine.until(lambda stats: stats.active == 0)
        assert getattr(engine.stats, counted) == 1
        assert engine.stats.tokens == (1 if cancels else 4)


async def test_tokens_come_at_the_scripted_pace() -> None:
    clock = ManualClock()
    async with FakeEngine(Script(tokens=3, delay_s=5, interval_s=2), clock=clock) as engine:
        reader, writer = await open_stream(engine)
        await clock.until_pending()
        assert engine.stats.tokens == 0
        clock.advance(5)
        await reader.readuntil(b"tok0")
        for token in (b"tok1", b"tok2"):
            await clock.until_pending()
            clock.advance(2)
            await reader.readuntil(token)
        await reader.readuntil(b"[DONE]")
        writer.close()


def stands_at(started: int, active: int, stats: Stats) -> bool:
    return (stats.started, stats.active) == (started, active)


async def test_more_requests_than_slots_wait_their_turn() -> None:
    async with FakeEngine(Script(slots=2, fault=Hang())) as engine, asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(chat(engine))
        await engine.until(lambda stats: stats.active == 2 and stats.queued == 3)
        for started, active in ((2, 2), (4, 2), (5, 1)):
            await engine.until(partial(stands_at, started, active))
            engine.release()
        await engine.until(lambda stats: stats.finished == 5)
        assert (engine.stats.max_active, engine.stats.queued) == (2, 0)


async def test_who_leaves_while_waiting_for_a_slot_was_never_started() -> None:
    async with FakeEngine(Script(slots=1, fault=Hang())) as engine:
        _, first = await open_stream(engine)
        await engine.until(lambda stats: stats.active == 1)
        _, second = await open_stream(engine)
        await engine.until(lambda stats: stats.queued == 1)
        second.close()
        await engine.until(lambda stats: stats.queued == 0)
        first.close()
        await engine.until(lambda stats: stats.aborted == 1)
        assert engine.stats.started == 1
        engine.script = Script(slots=1)
        assert (await chat(engine)).status_code == 200  # the slot is free again


async def test_full_slots_can_refuse() -> None:
    async with FakeEngine(Script(slots=1, when_full="refuse", fault=Hang())) as engine:
        _, writer = await open_stream(engine)
        await engine.until(lambda stats: stats.active == 1)
        assert (await chat(engine)).status_code == 503
        assert engine.stats.refused == 1
        writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hanging_request_goes_on_when_released(stream: bool) -> None:
    async with FakeEngine(Script(fault=Hang())) as engine, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(chat(engine, stream=stream))
        await engine.until(lambda stats: stats.active == 1)
        engine.release()
        assert "tok7" in (await asked).text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Cut(-1), Cut(2)])
async def test_a_cut_connection(fault: Cut, stream: bool) -> None:
    async with FakeEngine(Script(fault=fault)) as engine:
        with pytest.raises(httpx2.RemoteProtocolError):
            await chat(engine, stream=stream)
        assert (engine.stats.broken, engine.stats.finished) == (1, 0)
        if stream:
            assert engine.stats.tokens == (0 if fault.after_events < 0 else 1)


async def test_garbage_and_error_events() -> None:
    async with FakeEngine(Script(fault=Garbage(1))) as engine:
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode((await chat(engine)).content)
        streamed = (await chat(engine, stream=True)).content.split(b"\n\n")
        assert msgspec.json.decode(streamed[0][6:])
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(streamed[1][6:])
        engine.script = Script(fault=ErrorEvent(2, "out of memory"))
        async with client(engine) as api:
            stream = await api.chat.completions.create(model="fake", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError, match="out of memory"):
                _ = [chunk async for chunk in stream]
            with pytest.raises(openai.InternalServerError, match="out of memory"):
                await api.chat.completions.create(model="fake", messages=HELLO)
        assert engine.stats.broken == 4


async def test_a_slow_reader_holds_the_engine_back() -> None:
    async with FakeEngine(Script(tokens=200_000)) as engine:
        reader, writer = await open_stream(engine)
        await engine.until(lambda stats: stats.held == 1)  # nobody has read yet
        held_at = engine.stats.tokens
        assert 0 < held_at < 200_000
        while engine.stats.tokens == held_at:
            assert await reader.read(65536)
        writer.close()
        await engine.until(lambda stats: stats.aborted == 1)


async def test_requests_on_one_connection_are_answered_in_order(engine: FakeEngine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    everything = await reader.read()
    writer.close()
    assert everything.index(b'{"status":"ok"}') < everything.index(b'"object":"list"')


async def test_keep_alive_can_be_off() -> None:
    async with FakeEngine(Script(keep_alive=False)) as engine, httpx2.AsyncClient() as http:
        for _ in range(2):
            await http.get(f"{engine.url}/health")
        assert engine.stats.connections == 2


async def test_stopping_drops_everyone_and_it_can_start_again() -> None:
    engine = FakeEngine(Script(fault=Hang(after_events=1)))
    await engine.start()
    reader, writer = await open_stream(engine)
    await reader.readuntil(b"assistant")
    await engine.stop()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readuntil(b"[DONE]")
    writer.close()
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", engine.port)
    before = engine.url
    engine.script = Script()
    async with engine:
        assert engine.url == before
        assert (await chat(engine)).status_code == 200


async def test_waiting_for_what_does_not_come_says_what_was_seen(engine: FakeEngine) -> None:
    await chat(engine)
    with pytest.raises(TimeoutError, match="'finished': 1"):
        await engine.until(lambda stats: stats.finished == 2, timeout_s=0.001)


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with FakeEngine(socket_path=path) as engine:
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport) as http:
            answer = await http.get(f"{engine.url}/health")
    assert answer.status_code == 200


async def test_tls() -> None:
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)
    async with FakeEngine(tls=server) as engine, httpx2.AsyncClient(verify=trusting) as http:
        answer = await http.get(f"{engine.url}/v1/models")
    assert engine.url.startswith("https://")
    assert answer.json()["data"][0]["id"] == "fake"
