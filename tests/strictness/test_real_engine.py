"""The real llama.cpp behind the gateway: strict streams, and whole answers that equal those it gives itself."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import platformdirs
import pytest

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint
from headrace.core.fetch import fetch
from headrace.domain.fleet import NodeState
from headrace.engine.catalog import Catalog
from headrace.engine.local import LocalEngine
from headrace.engine.spec import EngineSpec
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Connector, UpstreamRequest
from support.house import KEY, House, gateway
from support.raw import RawClient, call
from support.strict import check_chat_stream
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.may_block("the engine starts inside the test's own loop")]

CHAT = "/v1/chat/completions"
MODEL = "smollm2"
ASK = [{"role": "user", "content": "Name three colours, in one line."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "colour",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 10}, "warm": {"type": "boolean"}},
            "required": ["name", "warm"],
            "additionalProperties": False,
        },
    },
}


def direct(socket: str) -> Connector:
    return DirectConnector(Endpoint.unix(socket), clock=SystemClock(), limits=Limits(idle=0))


class Stage:
    """The engine, the gateway before it, and a way around the gateway."""

    def __init__(self, engine: LocalEngine, house: House, around: Connector) -> None:
        self.engine = engine
        self.house = house
        self._around = around

    async def itself(self, path: str, body: dict[str, Any]) -> Any:
        """What the engine answers when it is asked directly."""
        headers = [(b"content-type", b"application/json")]
        request = UpstreamRequest("POST", path, headers=headers, body=json.dumps(body).encode())
        return json.loads((await fetch(self._around, request)).body)

    async def through(self, path: str, body: dict[str, Any]) -> Any:
        """What the gateway answers."""
        return (await call(self.house.port, "POST", path, self.house.auth, json.dumps(body).encode())).json


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    cache = os.environ.get("HEADRACE_CACHE") or platformdirs.user_cache_dir("headrace", appauthor=False)
    catalog = Catalog.from_environment(Path(cache), os.environ)
    engine = LocalEngine(
        EngineSpec(id=MODEL, model="demo", n_ctx=4096, parallel=4, prompt_cache_mib=0, threads=1),
        catalog=catalog,
        make_direct=direct,
        clock=SystemClock(),
        on_state=lambda _state: None,
    )
    await engine.start()
    try:
        await until(lambda: engine.current.state is NodeState.READY, timeout_s=90)
        around = direct(engine.socket)
        async with gateway(engines={MODEL: engine.connector}) as house:
            yield Stage(engine, house, around)
        await around.close()
    finally:
        await engine.close()


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": (CHAT, {"messages": ASK, "max_tokens": 24}),
    "stop": (CHAT, {"messages": ASK, "max_tokens": 60, "stop": [","]}),
    "length": (CHAT, {"messages": ASK, "max_tokens": 3}),
    "two choices": (CHAT, {"messages": ASK, "max_tokens": 12, "n": 2}),
    "log probabilities": (CHAT, {"messages": ASK, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}),
    "json schema": (CHAT, {"messages": ASK, "max_tokens": 60, "response_format": SCHEMA}),
    "json object": (CHAT, {"messages": ASK, "max_tokens": 60, "response_format": {"type": "json_object"}}),
    "a tool that must be called": (
        CHAT,
        {"messages": ASK, "max_tokens": 80, "tools": [WEATHER], "tool_choice": "required"},
    ),
    "a tool that is there": (CHAT, {"messages": ASK, "max_tokens": 20, "tools": [WEATHER]}),
    "special characters": (
        CHAT,
        {"messages": [{"role": "user", "content": 'Repeat: "a\\b"\n\té 😀'}], "max_tokens": 24},
    ),
    "completion": ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 16}),
    "completion with log probabilities": (
        "/v1/completions",
        {"prompt": "Once upon a time", "max_tokens": 4, "logprobs": 2},
    ),
}


def comparable(answer: Any) -> Any:
    """An answer without what differs between any two runs."""
    kept = {
        name: value for name, value in answer.items() if name not in ("id", "created", "timings", "usage")
    }
    if len(answer["choices"]) == 1:  # of several, the engine counts one only
        kept["usage"] = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    kept["choices"] = [
        {name: value for name, value in choice.items() if value is not None} for choice in answer["choices"]
    ]
    for choice in kept["choices"]:
        for tool in choice.get("message", {}).get("tool_calls", ()):
            tool.pop("id")
    return kept


@pytest.mark.req("D20")
@pytest.mark.compliance("O12", "O16", "O22", "O30")
async def test_an_assembled_answer_equals_the_engines_own(stage: Stage) -> None:
    differences = {}
    for name, (path, members) in CASES.items():
        body = {"model": MODEL, "temperature": 0, "seed": 1, **members}
        expected, found = (
            comparable(await stage.itself(path, body)),
            comparable(await stage.through(path, body)),
        )
        if expected != found:
            differences[name] = (expected, found)
    assert differences == {}


@pytest.mark.req("D18", "D19", "D20")
@pytest.mark.compliance("O02", "O10", "O11", "O12", "O13", "O15", "O17", "O18", "O23")
async def test_every_stream_is_strict_and_says_what_the_whole_answer_says(stage: Stage) -> None:
    for name, (path, members) in CASES.items():
        if path != CHAT:
            continue
        body = {"model": MODEL, "temperature": 0, "seed": 1, **members}
        whole = await stage.through(path, body)
        for usage in (True, False):
            options = {"stream_options": {"include_usage": True}} if usage else {}
            raw = json.dumps({**body, "stream": True, **options}).encode()
            response = await call(stage.house.port, "POST", path, stage.house.auth, raw)
            said = check_chat_stream(response.body, usage=usage, choices=members.get("n", 1))
            for choice in whole["choices"]:
                assert said[choice["index"]]["content"] == (choice["message"]["content"] or ""), name
                assert said[choice["index"]]["finish_reason"] == choice["finish_reason"], name


@pytest.mark.compliance("O14", "O15")
async def test_the_tokens_of_every_choice_are_counted(stage: Stage) -> None:
    answer = await stage.through(CHAT, {"model": MODEL, "temperature": 0, **CASES["two choices"][1]})
    assert answer["usage"]["completion_tokens"] == 2 * 12
    assert stage.house.control.totals.completion_tokens == 2 * 12


@pytest.mark.compliance("O30")
async def test_strict_output_validates(stage: Stage) -> None:
    shaped = await stage.through(CHAT, {"model": MODEL, "temperature": 0, **CASES["json schema"][1]})
    assert set(json.loads(shaped["choices"][0]["message"]["content"])) == {"name", "warm"}


@pytest.mark.compliance("O40", "O41")
async def test_errors_of_the_engine_have_openais_shape(stage: Stage) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stage.house.url}/v1", api_key=KEY, max_retries=0) as client:
        anything: Any = client.chat.completions
        with pytest.raises(openai.BadRequestError) as overflow:
            await anything.create(model=MODEL, messages=[{"role": "user", "content": "word " * 5000}])
        assert overflow.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            await anything.create(model=MODEL, messages=ASK, response_format={"type": "nonsense"})
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model=MODEL, input="x")
        nul = await anything.create(model=MODEL, messages=[{"role": "user", "content": "a\0b"}], max_tokens=2)
        assert nul.choices[0].finish_reason == "length"


@pytest.mark.req("D25")
@pytest.mark.parametrize(
    "half_closes",
    [
        pytest.param(False, marks=pytest.mark.compliance("O95")),
        pytest.param(True, marks=pytest.mark.compliance("O96")),
    ],
)
async def test_a_client_that_leaves_frees_the_engines_slots(stage: Stage, half_closes: bool) -> None:
    for path, prompt in ((CHAT, {"messages": ASK}), ("/v1/completions", {"prompt": "Once upon a time"})):
        for stream in (True, False):
            await leave(stage, path, {**prompt, "stream": stream}, half_closes=half_closes)


async def leave(stage: Stage, path: str, members: dict[str, Any], *, half_closes: bool) -> None:
    """Leave as soon as the engine works, and see it stop."""
    body = {"model": MODEL, "max_tokens": 900, "ignore_eos": True, **members}
    before = stage.house.control.totals.completion_tokens

    async def busy_slots() -> int:
        response = await fetch(stage._around, UpstreamRequest("GET", "/slots"))
        return sum(slot["is_processing"] for slot in json.loads(response.body))

    async with asyncio.timeout(60), RawClient(stage.house.port) as client:
        client.request("POST", path, stage.house.auth, json.dumps(body).encode())
        while await busy_slots() == 0:  # noqa: ASYNC110 - the engine tells no events
            await asyncio.sleep(0.01)
        if half_closes:
            client.writer.write_eof()
            await until(lambda: stage.house.control.running == 0)
    async with asyncio.timeout(20):
        while await busy_slots():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await until(lambda: stage.house.control.running == 0)
    assert stage.house.control.totals.completion_tokens - before < 900, "it was stopped"
