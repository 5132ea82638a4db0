"""Tool calls, shapes and refusals, as OpenAI's client puts them together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Traits
from headrace.testing.fake_engine import FakeEngine, Refuse, Script, ToolCall
from support.canned import Canned, Json, chunk, stream, whole
from support.house import KEY, House, gateway
from support.openai_contract import put_together
from support.raw import call
from support.strict import check_chat_stream

ASK: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("weather", "time")
]
ROLE = chunk({"role": "assistant", "content": None})
Site = tuple[Canned, House, openai.AsyncOpenAI]


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with (
        Canned(stream(ROLE, chunk({}, "stop"))) as backend,
        gateway(backend.url, asgi=request.param) as house,
        openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield backend, house, client


def piece(arguments: Any, name: str | None = None, **members: Any) -> Json:
    """A piece of a tool call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"function": function, **members}


def calls(*pieces: Json) -> Json:
    """A chunk with these pieces."""
    return chunk({"tool_calls": list(pieces)})


FUNCTION: Json = {"type": "function"}
CASES: dict[str, list[Json]] = {
    "as OpenAI sends them": [
        calls(piece("", "weather", index=0, id="1", **FUNCTION)),
        *[calls(piece(part, index=0)) for part in ('{"ci', 'ty":"Bern"}')],
        calls(piece("", "time", index=1, id="2", **FUNCTION)),
        calls(piece("{}", index=1)),
    ],
    "id, type and name in every piece": [
        *[calls(piece(part, "weather", index=0, id="1", **FUNCTION)) for part in ('{"ci', 'ty":"Bern"}')],
        *[calls(piece(part, "time", index=1, id="2", **FUNCTION)) for part in ("{", "}")],
    ],
    "no index": [
        calls(piece('{"city"', "weather", id="1", **FUNCTION)),
        calls(piece(':"Bern"}')),
        calls(piece("{}", "time", id="2", **FUNCTION)),
    ],
    "all of index 0": [
        calls(piece('{"city":"Bern"}', "weather", index=0, id="1", **FUNCTION)),
        calls(piece("{}", "time", index=0, id="2", **FUNCTION)),
    ],
    "indexes from 1": [
        calls(piece('{"city":"Bern"}', "weather", index=1, id="1", **FUNCTION)),
        calls(piece("{}", "time", index=2, id="2", **FUNCTION)),
    ],
    "both at once, their arguments as objects": [
        calls(
            piece({"city": "Bern"}, "weather", index=0, id="1", **FUNCTION),
            piece({}, "time", index=1, id="2", **FUNCTION),
        )
    ],
    "no ids": [calls(piece('{"city":"Bern"}', "weather", index=0)), calls(piece("{}", "time", index=1))],
    "arguments null": [
        calls(piece(None, "weather", index=0, id="1")),
        calls(piece('{"city":"Bern"}', index=0)),
        calls(piece("{}", "time", index=1, id="2")),
    ],
}  # fmt: skip


def check(answer: Any) -> None:
    """Both calls, whole, each under an id of its own."""
    [choice] = answer.choices
    found = choice.message.tool_calls
    assert [(call.type, call.function.name) for call in found] == [
        ("function", "weather"),
        ("function", "time"),
    ]
    assert [json.loads(call.function.arguments) for call in found] == [{"city": "Bern"}, {}]
    assert len({call.id for call in found}) == 2
    assert all(found)
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert choice.message.role == "assistant"


@pytest.mark.compliance("O20", "O21", "O22")
@pytest.mark.parametrize("finish", ["tool_calls", "stop", None])
@pytest.mark.parametrize("case", CASES)
async def test_tool_calls_are_put_together_however_they_come(
    site: Site, case: str, finish: str | None
) -> None:
    backend, house, client = site
    backend.reply = stream(ROLE, *CASES[case], *([chunk({}, finish)] if finish else []))
    body = json.dumps({"model": "canned", "messages": ASK, "tools": TOOLS, "stream": True}).encode()
    response = await call(house.port, "POST", "/v1/chat/completions", house.auth, body)
    check_chat_stream(response.body, usage=False)
    ask: Any = {"model": "canned", "messages": ASK}
    check(await put_together(client, **ask, tools=TOOLS))
    check(await client.chat.completions.create(**ask, tools=TOOLS))


@pytest.mark.compliance("O22")
@pytest.mark.parametrize("dialect", ["llama.cpp", "openai"])
@pytest.mark.parametrize("stops", [True, False])
async def test_whole_answers_with_tool_calls_pass_and_are_assembled(dialect: Any, stops: bool) -> None:
    script = Script(
        tool_calls=(ToolCall("weather", '{"city":"Bern"}'), ToolCall("time", "{}")),
        dialect=dialect,
        cancels_unstreamed=stops,
    )
    async with FakeEngine(script) as engine:
        direct = DirectConnector(
            Endpoint.parse(engine.url), clock=SystemClock(), traits=Traits(cancels_unstreamed=stops)
        )
        async with (
            gateway(engines={"fake": direct}) as house,
            openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client,
        ):
            check(await client.chat.completions.create(model="fake", messages=ASK, tools=TOOLS))
            check(await put_together(client, model="fake", messages=ASK, tools=TOOLS))
        assert engine.stats.last is not None


@pytest.mark.compliance("O20", "O21", "O22")
async def test_a_careless_whole_answer_with_tool_calls_is_put_right() -> None:
    message = {"tool_calls": [piece({"city": "Bern"}, "weather"), piece("{}", "time", id="2")]}
    async with Canned(whole({"choices": [{"message": message, "finish_reason": "stop"}]})) as backend:
        direct = DirectConnector(
            Endpoint.parse(backend.url), clock=SystemClock(), traits=Traits(cancels_unstreamed=True)
        )
        async with (
            gateway(engines={"canned": direct}) as house,
            openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client,
        ):
            check(await client.chat.completions.create(model="canned", messages=ASK, tools=TOOLS))


@pytest.mark.compliance("O23")
@pytest.mark.parametrize(
    "choice", ["none", "auto", "required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_what_is_asked_of_tools_reaches_the_backend(site: Site, choice: Any) -> None:
    backend, _, client = site
    await client.chat.completions.create(
        model="canned", messages=ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False
    )
    assert backend.bodies[-1]["tools"] == TOOLS
    assert backend.bodies[-1]["tool_choice"] == choice
    assert backend.bodies[-1]["parallel_tool_calls"] is False


@pytest.mark.compliance("O23")
@pytest.mark.parametrize(
    "members", [{"tool_choice": 5}, {"tools": "weather"}, {"tools": [5]}, {"parallel_tool_calls": "no"}]
)
async def test_wrong_types_for_tools_are_refused(site: Site, members: dict[str, Any]) -> None:
    backend, _, client = site
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="canned", messages=ASK, **members)
    assert refused.value.param == next(iter(members))
    assert backend.bodies == []


@pytest.mark.compliance("O22", "O23")
async def test_the_result_of_a_tool_goes_back_under_the_id_of_its_call(site: Site) -> None:
    backend, _, client = site
    backend.reply = stream(ROLE, *CASES["as OpenAI sends them"], chunk({}, "tool_calls"))
    asked = await put_together(client, model="canned", messages=ASK, tools=TOOLS)
    message = asked.choices[0].message
    assert message.content is None
    said: Any = {
        "role": "assistant",
        "content": message.content,
        "tool_calls": [call.to_dict(exclude_unset=True) for call in message.tool_calls],
    }
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    backend.reply = stream(ROLE, chunk({"content": "It is sunny."}), chunk({}, "stop"))
    told: Any = [*ASK, said, *results]
    answer = await client.chat.completions.create(model="canned", messages=told, tools=TOOLS)
    assert answer.choices[0].message.content == "It is sunny."
    assert backend.bodies[-1]["messages"] == told


class Colour(pydantic.BaseModel):
    name: str


@pytest.mark.compliance("O30")
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_refusal_reaches_the_client_as_one(site: Site, streamed: bool) -> None:
    backend, _, client = site
    backend.reply = stream(
        ROLE, chunk({"refusal": "I can't "}), chunk({"refusal": "say."}), chunk({}, "stop")
    )
    if streamed:
        async with client.chat.completions.stream(
            model="canned", messages=ASK, response_format=Colour
        ) as streaming:
            answer = await streaming.get_final_completion()
    else:
        answer = await client.chat.completions.parse(model="canned", messages=ASK, response_format=Colour)
    assert answer.choices[0].message.refusal == "I can't say."
    assert answer.choices[0].message.parsed is None


@pytest.mark.compliance("O30")
async def test_the_shape_reaches_the_backend_as_the_client_wrote_it(site: Site) -> None:
    backend, _, client = site
    backend.reply = stream(ROLE, chunk({"content": '{"name":"blue"}'}), chunk({}, "stop"))
    answer = await client.chat.completions.parse(model="canned", messages=ASK, response_format=Colour)
    assert answer.choices[0].message.parsed == Colour(name="blue")
    sent = backend.bodies[-1]["response_format"]
    assert sent["json_schema"]["strict"] is True
    assert sent["json_schema"]["name"] == "Colour"
    assert sent["json_schema"]["schema"]["required"] == ["name"]


@pytest.mark.compliance("O30")
@pytest.mark.parametrize("stream_", [True, False])
async def test_a_schema_that_the_backend_does_not_know_is_a_400_that_names_the_member(stream_: bool) -> None:
    refusal = json.dumps({"error": {"code": 400, "message": "JSON schema error at #: unrecognized type x"}})
    async with (
        FakeEngine(Script(fault=Refuse(400, refusal))) as engine,
        gateway(engine.url) as house,
        openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        shape: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}
        with pytest.raises(openai.BadRequestError, match="unrecognized type") as refused:
            await client.chat.completions.create(
                model="fake", messages=ASK, response_format=shape, stream=stream_
            )
        assert refused.value.param == "response_format"


@pytest.mark.compliance("O31")
@pytest.mark.parametrize(
    ("reason", "error"),
    [("length", openai.LengthFinishReasonError), ("content_filter", openai.ContentFilterFinishReasonError)],
)
async def test_an_answer_that_was_cut_off_is_never_told_as_finished(
    site: Site, reason: str, error: type[Exception]
) -> None:
    backend, _, client = site
    backend.reply = stream(ROLE, chunk({"content": '{"name":"bl'}), chunk({}, reason))
    with pytest.raises(error):
        await client.chat.completions.parse(model="canned", messages=ASK, response_format=Colour)
    cut = calls(piece('{"ci', "weather", index=0, id="1", **FUNCTION))
    backend.reply = stream(ROLE, cut, chunk({}, "length"))
    body = await client.chat.completions.create(model="canned", messages=ASK, tools=TOOLS)
    assert body.choices[0].finish_reason == "length"
