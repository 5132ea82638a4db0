"""The way to Anthropic's API on real sockets: what is asked, what comes back, and every trouble on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anthropic
import pytest

from headrace.connectors.anthropic import KIND, LARGEST_DEFAULT_MAX_TOKENS, SURE_MAX_TOKENS
from headrace.connectors.kinds import Kinds
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.backend import BackendSpec, Opened, Unwell
from headrace.ports.connector import (
    MAX_AFTER_PAUSE,
    Busy,
    Connector,
    Exchange,
    Failure,
    Lost,
    NotSent,
    UpstreamRequest,
)
from headrace.testing.fake_anthropic import FakeAnthropic
from headrace.testing.fake_anthropic_messages import AnthropicScript
from headrace.testing.fake_engine import ToolCall
from support.recorder import Recorder
from support.strict import check_chat_stream

KEY = "sk-ant-secret"
HI: Any = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
SAID = AnthropicScript(api_key=KEY, text="Good morning to you.", thinking="Hm, so", cache_read=4)


@pytest.fixture
async def server() -> AsyncIterator[FakeAnthropic]:
    async with FakeAnthropic(SAID) as server:
        yield server


@pytest.fixture
async def opened(server: FakeAnthropic) -> AsyncIterator[Opened]:
    opened = open_at(server.url)
    yield opened
    await opened.connector.close()


@pytest.fixture
def connector(opened: Opened) -> Connector:
    return opened.connector


def open_at(url: str, **members: Any) -> Opened:
    return KIND.open(BackendSpec("far", url, **{"api_key": KEY, "capacity": 4, **members}), SystemClock())


def begin(connector: Connector, sink: Recorder, path: str = CHAT, **members: Any) -> Exchange:
    body = json.dumps({"model": "claude-fake", "messages": HI, **members}).encode()
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"r1")]
    with sink.quiet():
        return connector.start(UpstreamRequest("POST", path, headers, body), sink)


async def answer(connector: Connector, path: str = CHAT, **members: Any) -> Recorder:
    sink = Recorder()
    begin(connector, sink, path, **members)
    return await sink.last()


class Halting(Recorder):
    """Pauses at the first data, and at the next after each `go_on`. `after`: bytes that came nevertheless."""

    exchange: Exchange

    def __init__(self) -> None:
        super().__init__(self._halt)
        self.halted = False
        self.after = 0

    def go_on(self) -> None:
        self.halted = False
        self.after = 0
        with self.quiet():
            self.exchange.resume()

    def _halt(self, chunk: bytes) -> None:
        if self.halted:
            self.after += len(chunk)
        else:
            self.halted = True
            self.exchange.pause()


def refusal(sink: Recorder) -> Any:
    assert sink.ended
    assert (b"content-type", b"application/json") in sink.headers
    return json.loads(sink.body)["error"]


@pytest.mark.req("C27")
def test_the_kind_is_installed() -> None:
    assert Kinds.installed().get("anthropic") is KIND


@pytest.mark.req("C27")
async def test_a_whole_answer(server: FakeAnthropic, connector: Connector) -> None:
    told = json.loads((await answer(connector)).body)
    assert told["choices"][0]["message"]["content"] == "Good morning to you."
    assert told["choices"][0]["message"]["reasoning_content"] == "Hm, so"
    assert told["usage"]["prompt_tokens"] == 15
    assert told["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    [request] = server.received
    assert request.target == "/v1/messages"
    assert request.header("x-api-key") == KEY
    assert request.header("anthropic-version") == "2023-06-01"
    assert request.header("authorization") is None
    assert request.header("x-request-id") == "r1"


@pytest.mark.req("C27")
@pytest.mark.parametrize("piece_bytes", [0, 1, 7])
@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream(server: FakeAnthropic, connector: Connector, usage: bool, piece_bytes: int) -> None:
    server.script = replace(
        SAID, tool_calls=(ToolCall("look", '{"a":[1,"é"]}'), ToolCall("g")), piece_bytes=piece_bytes
    )
    sink = await answer(connector, stream=True, stream_options={"include_usage": usage})
    said = check_chat_stream(bytes(sink.body), usage=usage)[0]
    assert (b"content-type", b"text/event-stream") in sink.headers
    assert said == {
        "role": "assistant",
        "content": "Good morning to you.",
        "reasoning": "Hm, so",
        "calls": [
            {"id": "toolu_fake0", "name": "look", "arguments": '{"a":[1,"é"]}'},
            {"id": "toolu_fake1", "name": "g", "arguments": "{}"},
        ],
        "finish_reason": "tool_calls",
    }


async def test_the_connection_is_used_again(server: FakeAnthropic, connector: Connector) -> None:
    for _ in range(3):
        assert (await answer(connector)).ended
    assert len(server._connections) == 1


# -- what isn't asked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/other"])
async def test_what_is_no_chat_is_not_asked(server: FakeAnthropic, connector: Connector, path: str) -> None:
    sink = await answer(connector, path)
    assert sink.status == 501
    assert refusal(sink)["code"] == "unsupported"
    assert not server.received


async def test_what_cannot_be_translated_is_not_asked(server: FakeAnthropic, connector: Connector) -> None:
    sink = await answer(connector, seed=1)
    assert (sink.status, refusal(sink)["param"]) == (400, "seed")
    assert not server.received


async def test_a_refusal_can_be_cancelled(connector: Connector) -> None:
    early, late = Recorder(), Recorder()
    first, second = begin(connector, early, seed=1), begin(connector, late, seed=1)
    with early.quiet():
        first.cancel()
        first.cancel()
    assert isinstance((await early.last()).failure, NotSent)
    assert early.status is None
    await late.last()
    with late.quiet():
        second.cancel()
    await answer(connector, seed=1)
    assert late.violations == []
    assert late.ended


async def test_a_paused_refusal_comes_after_all(connector: Connector) -> None:
    sink = Recorder()
    exchange = begin(connector, sink, seed=1)
    exchange.pause()
    await sink.headed()
    assert not sink.over
    with sink.quiet():
        exchange.resume()
    assert refusal(await sink.last())["param"] == "seed"


async def test_a_paused_refusal_can_be_cancelled(connector: Connector) -> None:
    sink = Recorder()
    exchange = begin(connector, sink, seed=1)
    exchange.pause()
    await sink.headed()
    with sink.quiet():
        exchange.cancel()
    await sink.last()
    assert (sink.chunks, type(sink.failure)) == (0, NotSent)


# -- trouble -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "type_", "expected"),
    [
        (429, "rate_limit_error", Busy("The backend is overloaded, or its limit for us is reached.", 7.0)),
        (529, "overloaded_error", Busy("The backend is overloaded, or its limit for us is reached.", 7.0)),
        (402, "billing_error", NotSent("The backend doesn't work for our account: it is out of credit, or its limit is reached.")),
        (500, "api_error", Lost("The backend answered 500: org-secret")),
        (504, "timeout_error", Lost("The backend answered 504: org-secret")),
    ],
)  # fmt: skip
async def test_errors_that_are_failures(
    server: FakeAnthropic, connector: Connector, stream: bool, status: int, type_: str, expected: Failure
) -> None:
    server.script = replace(SAID, refuse=status, error=(type_, "org-secret"), retry_after=7)
    sink = await answer(connector, stream=stream)
    assert sink.failure == expected
    assert (sink.status, sink.chunks) == (None, 0)


async def test_a_refusal_of_the_request_reaches_the_client(
    server: FakeAnthropic, connector: Connector
) -> None:
    server.script = replace(SAID, refuse=404, error=("not_found_error", "model: claude-0"))
    sink = await answer(connector, stream=True)
    assert sink.status == 404
    assert refusal(sink) == {
        "message": "model: claude-0",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_a_refused_key_says_nothing_of_it(server: FakeAnthropic) -> None:
    opened = open_at(server.url, api_key="sk-ant-wrong")
    sink = await answer(opened.connector)
    assert sink.status == 401
    assert b"sk-ant" not in sink.body
    with pytest.raises(Unwell) as unwell:
        await opened.prober.look()
    assert unwell.value.refused_key
    assert "sk-ant" not in unwell.value.message
    await opened.connector.close()


@pytest.mark.parametrize(
    ("after", "type_", "expected"),
    [
        (0, "overloaded_error", Busy),
        (2, "overloaded_error", Busy),
        (2, "api_error", Lost),
        (6, "overloaded_error", Lost),
        (6, "api_error", Lost),
    ],
)
async def test_an_error_in_a_stream(
    server: FakeAnthropic, connector: Connector, after: int, type_: str, expected: type[Failure]
) -> None:
    server.script = replace(SAID, error_after=after, error=(type_, "It broke."))
    sink = await answer(connector, stream=True)
    assert type(sink.failure) is expected
    assert (sink.chunks == 0) == (after < 6)
    if expected is Lost:
        assert sink.failure == Lost("The backend broke off: It broke.")
    server.script = SAID
    assert (await answer(connector, stream=True)).ended


@pytest.mark.parametrize("after", [0, 2, 6])
async def test_a_stream_that_is_cut_is_lost(server: FakeAnthropic, connector: Connector, after: int) -> None:
    server.script = replace(SAID, cut_after=after)
    assert isinstance((await answer(connector, stream=True)).failure, Lost)


async def test_a_stream_without_its_last_event_is_complete(
    server: FakeAnthropic, connector: Connector
) -> None:
    server.script = replace(SAID, bare_end=True)
    sink = await answer(connector, stream=True)
    assert sink.ended
    check_chat_stream(bytes(sink.body), usage=False)


async def test_an_answer_of_the_wrong_type_is_lost(server: FakeAnthropic, connector: Connector) -> None:
    server.script = replace(SAID, refuse=200)
    sink = await answer(connector, stream=True)
    assert sink.failure == Lost("The backend answered with application/json.")
    assert sink.status is None
    assert (await answer(connector)).failure == Lost("The backend's answer is not a message.")


# -- control of the flow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hang_after", [-1, 2, 6])
async def test_a_cancel_reaches_the_backend(
    server: FakeAnthropic, connector: Connector, hang_after: int
) -> None:
    server.script = replace(SAID, hang_after=hang_after)
    sink = Recorder()
    exchange = begin(connector, sink, stream=True)
    await server.until(lambda: len(server.received) == 1 and server.sent == max(0, hang_after))
    with sink.quiet():
        exchange.cancel()
    await server.until(lambda: server.left == 1)
    assert isinstance((await sink.last()).failure, Lost)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_pause_holds_what_was_translated(
    server: FakeAnthropic, connector: Connector, stream: bool
) -> None:
    """One word to an event: the translation is longer than what is read."""
    server.script = replace(SAID, text="words " * 15_000)
    sink = Halting()
    sink.exchange = begin(connector, sink, stream=stream, max_tokens=50_000)
    halts = 0
    while True:
        await sink.until(lambda: sink.halted or sink.over)
        if sink.over:
            break
        await answer(connector, seed=1)  # some turns of the loop
        assert sink.after <= MAX_AFTER_PAUSE
        halts += 1
        sink.go_on()
    await sink.last()
    assert sink.ended
    assert halts >= 2
    if stream:
        assert check_chat_stream(bytes(sink.body), usage=False)[0]["content"] == server.script.text
    else:
        assert json.loads(sink.body)["choices"][0]["message"]["content"] == server.script.text


async def test_a_slow_reader_holds_the_backend_back(server: FakeAnthropic, connector: Connector) -> None:
    server.script = replace(SAID, text="w " * 300_000)
    sink = Recorder()
    exchange = begin(connector, sink, stream=True, max_tokens=400_000)
    await sink.headed()
    exchange.pause()
    await server.until(lambda: any(connection.held for connection in server._connections))
    assert server.sent < 300_000
    assert not sink.over
    exchange.cancel()
    await server.until(lambda: server.left == 1)
    await sink.last()


async def halted(server: FakeAnthropic, connector: Connector) -> Halting:
    """A whole answer of which the first piece was taken, and the rest is held."""
    server.script = replace(SAID, text="words " * 15_000)
    sink = Halting()
    sink.exchange = begin(connector, sink, max_tokens=50_000)
    await sink.grown()
    assert sink.chunks == 1
    return sink


async def test_what_is_held_when_all_is_closed_fails(server: FakeAnthropic, connector: Connector) -> None:
    refused = Recorder()
    begin(connector, refused, seed=1).pause()
    held = await halted(server, connector)
    await connector.close()
    for sink, chunks in ((held, 1), (refused, 0)):
        assert sink.failure == Lost("the connector was closed")
        assert sink.chunks == chunks
        await sink.last()


@pytest.mark.parametrize("resumed", [True, False])
async def test_a_complete_answer_that_is_held_can_be_cancelled(
    server: FakeAnthropic, connector: Connector, resumed: bool
) -> None:
    sink = await halted(server, connector)
    if resumed:
        sink.go_on()
    with sink.quiet():
        sink.exchange.cancel()
        sink.exchange.resume()
        sink.exchange.cancel()
    await sink.last()
    assert isinstance(sink.failure, Lost)
    assert sink.chunks == 1
    await connector.close()
    assert sink.violations == []


# -- models ------------------------------------------------------------------------------------------------------------


async def test_models_are_listed_page_by_page(server: FakeAnthropic, opened: Opened) -> None:
    models = [(f"claude-{number}", 1000) for number in range(5)]
    server.script = replace(SAID, models=(*models, ("claude-retired", 1)), pages=2)
    report = await opened.prober.look()
    assert report.models is not None
    assert [info.id for info in report.models] == [name for name, _ in models]
    assert {(info.created, info.owned_by) for info in report.models} == {(1767323045, "anthropic")}
    assert not server.received, "no inference is spent on it"


@pytest.mark.parametrize("status", [404, 429, 529])
async def test_a_backend_that_will_not_list_lives(server: FakeAnthropic, opened: Opened, status: int) -> None:
    server.script = replace(SAID, list_status=status)
    assert (await opened.prober.look()).models is None
    server.script = SAID
    known = await opened.prober.look()
    assert known.models
    server.script = replace(SAID, list_status=status)
    assert await opened.prober.look() == known


async def test_a_backend_in_trouble_is_unwell(server: FakeAnthropic, opened: Opened) -> None:
    server.script = replace(SAID, list_status=500)
    with pytest.raises(Unwell) as unwell:
        await opened.prober.look()
    assert not unwell.value.refused_key
    await opened.connector.close()
    with pytest.raises(Unwell):
        await opened.prober.look()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-a", 1000),
        ("claude-large", LARGEST_DEFAULT_MAX_TOKENS),
        ("claude-dated", 2000),
        ("claude-unheard-of", SURE_MAX_TOKENS),
    ],
)
async def test_a_request_without_a_limit_gets_the_models_own(
    server: FakeAnthropic, opened: Opened, model: str, expected: int
) -> None:
    server.script = replace(
        SAID, models=(("claude-a", 1000), ("claude-large", 200_000), ("claude-dated-20260102", 2000))
    )
    await opened.prober.look()
    assert (await answer(opened.connector, model=model)).ended
    assert server.asked["max_tokens"] == expected


async def test_the_list_can_be_asked_for_through_the_connector(connector: Connector) -> None:
    sink = Recorder()
    connector.start(UpstreamRequest("GET", "/v1/models"), sink)
    assert json.loads((await sink.last()).body)["data"][0]["id"] == "claude-fake"


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/", "/v1", "/v1/"])
async def test_the_base_may_end_with_the_version(server: FakeAnthropic, prefix: str) -> None:
    opened = open_at(server.url + prefix)
    assert (await opened.prober.look()).models
    assert (await answer(opened.connector)).ended
    await opened.connector.close()


def test_a_key_that_cannot_be_sent_is_an_error_of_the_settings() -> None:
    with pytest.raises(ConfigError) as error:
        open_at("http://127.0.0.1:1", api_key="two\r\nlines")
    assert "two" not in error.value.message


@pytest.mark.parametrize(("setting", "expected"), [(None, False), (False, False), (True, True)])
def test_traits(setting: bool | None, expected: bool) -> None:
    traits = open_at("http://127.0.0.1:1", cancels_unstreamed=setting).connector.traits
    assert (traits.cancels_unstreamed, traits.slots, traits.stream_options) == (expected, 4, True)
    assert [operation.path for operation in traits.streamed] == [CHAT]


# -- the fake ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [0, 3])
async def test_the_official_library_understands_the_fake(server: FakeAnthropic, piece_bytes: int) -> None:
    server.script = replace(SAID, tool_calls=(ToolCall("f", '{"a":1}'),), piece_bytes=piece_bytes)
    ask: Any = {"model": "claude-fake", "max_tokens": 99, "messages": HI}
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        whole = await client.messages.create(**ask)
        async with client.messages.stream(**ask) as stream:
            streamed = await stream.get_final_message()
        assert whole.to_dict() == streamed.to_dict()
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
        assert [model.id async for model in client.models.list()] == ["claude-fake"]
        server.script = replace(SAID, refuse=529, error=("overloaded_error", "Overloaded"))
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.create(**ask)
        server.script = replace(SAID, error_after=4)
        with pytest.raises(anthropic.APIStatusError):
            async with client.messages.stream(**ask) as stream:
                await stream.get_final_message()
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(**{**ask, "messages": [{"role": "user", "content": ""}]})
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="x").messages.create(**ask)
