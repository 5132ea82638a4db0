"""Streams of backends that know no better: what OpenAI's client gets of them is strict all the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from headrace.domain.inference import Timeouts
from headrace.gateway.token_lane import Patience
from headrace.testing.fake_engine import Cut, ErrorEvent, FakeEngine, Fault, Garbage, Refuse, Script
from support.canned import BASE, Canned, Json, chunk, stream
from support.house import KEY, House, gateway
from support.openai_contract import CHAT, put_together
from support.raw import RawClient, call
from support.strict import check_chat_stream, parse_stream

ASK: Any = [{"role": "user", "content": "hi"}]
ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")
USAGE: Json = {
    **BASE,
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


@contextlib.asynccontextmanager
async def client_of(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Canned, House, openai.AsyncOpenAI]]:
    async with (
        Canned(stream(ROLE, STOP)) as backend,
        gateway(backend.url, asgi=request.param) as house,
        client_of(house) as client,
    ):
        yield backend, house, client


Site = tuple[Canned, House, openai.AsyncOpenAI]


async def raw(house: House, *, usage: bool = False, **members: Any) -> bytes:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    body = {"model": "canned", "messages": ASK, "stream": True, **options, **members}
    return (await call(house.port, "POST", CHAT, house.auth, json.dumps(body).encode())).body


async def listen(client: openai.AsyncOpenAI, said: list[str]) -> None:
    """Keep what is said in *said*, for it may end badly."""
    async for one in await client.chat.completions.create(model="fake", messages=ASK, stream=True):
        said += [one.choices[0].delta.content or ""]


@pytest.mark.compliance("O01")
@pytest.mark.parametrize("cut", [1, 2, 3, 7])
async def test_characters_of_many_bytes_survive_however_they_are_cut(site: Site, cut: int) -> None:
    backend, _, client = site
    text = "é 日本 😀 \u2028 \u00a0"
    backend.reply = stream(ROLE, *[chunk({"content": letter}) for letter in text], STOP, cut=cut)
    answer = await put_together(client, model="canned", messages=ASK)
    assert answer.choices[0].message.content == text


@pytest.mark.compliance("O01", "O02")
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
async def test_line_ends_of_every_kind_and_a_last_event_without_its_blank_line(site: Site, end: str) -> None:
    backend, house, client = site
    texts = [f"data: {json.dumps(one)}{end}" for one in (ROLE, chunk({"content": "ab"}), STOP)]
    backend.reply = stream("\ufeff", *texts[:-1], texts[-1].strip(), done=False)
    assert check_chat_stream(await raw(house), usage=False)[0]["content"] == "ab"
    assert (await put_together(client, model="canned", messages=ASK)).choices[0].message.content == "ab"


@pytest.mark.compliance("O02")
async def test_an_event_of_many_lines_becomes_one_of_one_line(site: Site) -> None:
    backend, house, client = site
    lines = json.dumps(chunk({"content": "ab"}), indent=1).replace("\n", "\ndata: ")
    backend.reply = stream(ROLE, f"data: {lines}\n\n", STOP)
    assert check_chat_stream(await raw(house), usage=False)[0]["content"] == "ab"
    assert (await put_together(client, model="canned", messages=ASK)).choices[0].message.content == "ab"


@pytest.mark.compliance("O03", "O04")
async def test_ids_pings_retries_and_comments_of_a_backend_stay_with_us(site: Site) -> None:
    backend, house, client = site
    backend.reply = stream(
        ": hello\n\n", "retry: 3000\n\n", "event: ping\n\n", ROLE, "id: 5\n\n", ": ping\n\n",
        f"id: 6\nevent: message\nretry: 1\ndata: {json.dumps(chunk({'content': 'ab'}))}\n\n", ": ping\n\n",
        STOP,
    )  # fmt: skip
    body = await raw(house)
    for name in (b"id:", b"event:", b"retry:", b":"):
        assert not any(line.startswith(name) for line in body.split(b"\n"))
    assert (await put_together(client, model="canned", messages=ASK)).choices[0].message.content == "ab"


@pytest.mark.compliance("O03", "O04", "O44")
@pytest.mark.slow
async def test_while_nothing_comes_the_client_is_kept_awake_and_never_told_an_event_without_data() -> None:
    patience = Patience(grace_s=0.2, interval_s=0.2)
    async with (
        FakeEngine(Script(tokens=3, delay_s=1.5)) as engine,
        gateway(engine.url, patience=patience) as house,
        client_of(house) as client,
    ):
        impatient = client.with_options(timeout=openai.Timeout(60, read=1.0))
        answer = await put_together(impatient, model="fake", messages=ASK)
        assert answer.choices[0].message.content == "tok0 tok1 tok2"
        body = await raw(house, model="fake")
        lines = set(body[: body.index(b"data:")].split(b"\n"))
        assert lines - {b""}
        assert all(line == b"" or line.startswith(b": ") for line in lines)


@pytest.mark.compliance("O44")
def test_what_we_wait_for_is_within_what_the_client_waits_for() -> None:
    client_s = openai.DEFAULT_TIMEOUT.read
    assert client_s is not None
    assert Patience().grace_s < Patience().interval_s * 2 < client_s
    assert max(Timeouts().first_byte_s, Timeouts().idle_s) <= client_s


@pytest.mark.compliance("O06")
@pytest.mark.parametrize("fault", [Cut(3), Garbage(3), ErrorEvent(3)])
@pytest.mark.parametrize("asgi", [False, True])
async def test_a_stream_that_breaks_is_an_error_event_that_the_client_raises(
    fault: Fault, asgi: bool
) -> None:
    async with (
        FakeEngine(Script(tokens=9, fault=fault)) as engine,
        gateway(engine.url, asgi=asgi) as house,
        client_of(house) as client,
    ):
        said: list[str] = []
        with pytest.raises(openai.APIError) as broken:
            await listen(client, said)
        assert "".join(said) == "tok0 tok1"
        assert isinstance(broken.value.body, dict)
        assert set(broken.value.body) == {"message", "type", "param", "code"}
        assert broken.value.code == "upstream_failed"
        *events, last = (await raw(house, model="fake")).decode().rstrip("\n").split("\n\n")
        assert set(json.loads(last.removeprefix("data: "))) == {"error"}
        assert "[DONE]" not in last
        assert not any(json.loads(event.removeprefix("data: ")).get("error") for event in events)


@pytest.mark.compliance("O06")
async def test_an_empty_error_in_a_chunk_is_no_error(site: Site) -> None:
    backend, _, client = site
    backend.reply = stream(*[{**one, "error": None} for one in (ROLE, chunk({"content": "ab"}), STOP)])
    assert (await put_together(client, model="canned", messages=ASK)).choices[0].message.content == "ab"


@pytest.mark.compliance("O07")
@pytest.mark.parametrize("fault", [Refuse(500), Cut(-1), Cut(0), Garbage(0), ErrorEvent(0), Refuse(400)])
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_request_that_fails_before_its_first_event_has_the_status_of_its_failure(
    fault: Fault, asgi: bool, streamed: bool
) -> None:
    async with (
        FakeEngine(Script(tokens=9, fault=fault)) as engine,
        gateway(engine.url, asgi=asgi) as house,
        client_of(house) as client,
    ):
        with pytest.raises(openai.APIStatusError) as failed:
            await client.chat.completions.create(model="fake", messages=ASK, stream=streamed)
        assert failed.value.status_code == (400 if fault == Refuse(400) else 502)
        assert failed.value.request_id is not None


CARELESS: dict[str, list[Json | str]] = {
    "roles and ids that change": [
        chunk({"role": "assistant", "content": "a"}) | {"id": "x", "created": 1},
        chunk({"role": "assistant", "content": "b"}) | {"id": "y", "created": 2, "model": "other"},
        STOP,
    ],
    "next to nothing": [{"choices": [{"delta": {"content": "ab"}}]}, {"choices": [{"finish_reason": "eos"}]}],
    "null deltas": [ROLE, chunk({"content": "ab"}), chunk() | {"choices": [{"index": 0, "delta": None}]}, STOP],
    "an end that isn't said": [ROLE, chunk({"content": "ab"})],
    "an end that is said twice, and words behind it": [ROLE, chunk({"content": "ab"}), STOP, STOP, chunk({"content": "c"})],
    "usage everywhere": [{**one, "usage": USAGE["usage"]} for one in (ROLE, chunk({"content": "ab"}), STOP, USAGE)],
    "usage before the end": [ROLE, USAGE, chunk({"content": "ab"}), STOP],
    "no choices, null and none": [{**BASE, "choices": []}, {**BASE, "choices": None}, ROLE, chunk({"content": "ab"}), STOP],
    "empty and null finish reasons": [chunk({"content": "a"}, ""), chunk({"content": "b"}), STOP],
}  # fmt: skip


@pytest.mark.compliance("O10", "O11", "O12", "O13", "O14")
@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("case", CARELESS)
async def test_a_careless_stream_is_made_strict(site: Site, case: str, usage: bool) -> None:
    backend, house, client = site
    backend.reply = stream(*CARELESS[case])
    said = check_chat_stream(await raw(house, usage=usage), usage=usage)
    assert said[0]["content"] == "ab"
    answer = await put_together(client, model="canned", messages=ASK)
    assert answer.choices[0].message.content == "ab"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    whole = await client.chat.completions.create(model="canned", messages=ASK)
    assert whole.choices[0].message.content == "ab"


@pytest.mark.compliance("O15")
async def test_a_backend_that_begins_with_another_choice_does_not_break_the_client(site: Site) -> None:
    backend, house, client = site
    order = (2, 0, 1)
    backend.reply = stream(
        *[chunk({"role": "assistant", "content": "abc"[index]}, index=index) for index in order],
        *[chunk({}, "stop", index) for index in order],
    )
    said = check_chat_stream(await raw(house, n=3), usage=False, choices=3)
    assert [said[index]["content"] for index in range(3)] == ["a", "b", "c"]
    for answer in (
        await put_together(client, model="canned", messages=ASK, n=3),
        await client.chat.completions.create(model="canned", messages=ASK, n=3),
    ):
        assert [(one.index, one.message.content) for one in answer.choices] == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.compliance("O16")
async def test_log_probabilities_reach_the_client_as_the_backend_gave_them(site: Site) -> None:
    backend, _, client = site
    token: Json = {"token": "é", "logprob": -9999.0, "bytes": [195, 169]}
    logprobs = {"content": [{**token, "top_logprobs": [token, {**token, "bytes": None}]}], "refusal": None}
    backend.reply = stream(ROLE, chunk({"content": "é"}, logprobs=logprobs), STOP)
    ask: Any = {"model": "canned", "messages": ASK, "logprobs": True, "top_logprobs": 2}
    for answer in (await put_together(client, **ask), await client.chat.completions.create(**ask)):
        found = answer.choices[0].logprobs
        assert found is not None
        assert found.to_dict() == logprobs


@pytest.mark.compliance("O16")
@pytest.mark.parametrize("asked", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 0}])
async def test_alternatives_that_nobody_asked_for_are_left_out(site: Site, asked: dict[str, Any]) -> None:
    backend, _, client = site
    token: Json = {"token": "a", "logprob": -0.5, "bytes": [97]}
    backend.reply = stream(
        ROLE, chunk({"content": "a"}, logprobs={"content": [{**token, "top_logprobs": [token]}]}), STOP
    )
    ask: Any = {"model": "canned", "messages": ASK, **asked}
    for answer in (await put_together(client, **ask), await client.chat.completions.create(**ask)):
        assert [one.to_dict() for one in answer.choices[0].logprobs.content] == [
            {**token, "top_logprobs": []}
        ]
        assert "top_logprobs" not in backend.bodies[-1]


@pytest.mark.compliance("O17")
async def test_stop_strings_reach_the_backend_one_or_up_to_four_and_no_more(site: Site) -> None:
    backend, _, client = site
    for given in ("END", ["a", "b", "c", "d"]):
        await client.chat.completions.create(model="canned", messages=ASK, stop=given)
        assert backend.bodies[-1]["stop"] == given
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="canned", messages=ASK, stop=list("abcde"))
    assert refused.value.param == "stop"


@pytest.mark.compliance("O18")
async def test_both_names_of_the_limit_of_tokens_reach_the_backend(site: Site) -> None:
    backend, _, client = site
    await client.chat.completions.create(model="canned", messages=ASK, max_tokens=3)
    assert backend.bodies[-1]["max_tokens"] == 3
    backend.reply = stream(ROLE, chunk({"content": "a"}), chunk({}, "length"))
    answer = await client.chat.completions.create(model="canned", messages=ASK, max_completion_tokens=4)
    assert backend.bodies[-1]["max_completion_tokens"] == 4
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.compliance("O12")
@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "function_call"])
async def test_every_reason_to_finish_passes(site: Site, reason: str) -> None:
    backend, _, client = site
    backend.reply = stream(ROLE, chunk({"content": "a"}), chunk({}, reason))
    answer = await client.chat.completions.create(model="canned", messages=ASK)
    assert answer.choices[0].finish_reason == reason


@pytest.mark.compliance("O10", "O12", "O13", "O14")
@pytest.mark.parametrize("usage", [True, False])
async def test_a_careless_text_completion_is_made_strict(site: Site, usage: bool) -> None:
    backend, house, client = site
    pieces = [{"id": letter, "choices": [{"text": letter}]} for letter in "ab"]
    backend.reply = stream(
        *pieces, {"choices": [{"text": None, "finish_reason": "eos"}], "usage": USAGE["usage"]}
    )
    options = {"stream_options": {"include_usage": True}} if usage else {}
    body = json.dumps({"model": "canned", "prompt": "x", "stream": True, **options}).encode()
    response = await call(house.port, "POST", "/v1/completions", house.auth, body)
    *chunks, _ = parse_stream(response.body)
    assert len({(one["id"], one["object"], one["created"], one["model"]) for one in chunks}) == 1
    assert [one.get("usage", 0) for one in chunks] == ([None] * 3 + [USAGE["usage"]] if usage else [0] * 3)
    parts = await client.completions.create(model="canned", prompt="x", stream=True)
    assert "".join([part.choices[0].text async for part in parts]) == "ab"
    assert (await client.completions.create(model="canned", prompt="x")).choices[0].text == "ab"


@pytest.mark.compliance("O02")
async def test_every_event_is_whole_in_what_the_client_has_got_so_far(site: Site) -> None:
    """A client that reads as bytes come never holds a piece of an event that waits for a later one."""
    backend, house, _ = site
    events = [ROLE, *[chunk({"content": letter}) for letter in "abc"], STOP]
    backend.reply = stream(*events, cut=11)
    async with RawClient(house.port) as client:
        body = json.dumps({"model": "canned", "messages": ASK, "stream": True}).encode()
        client.request("POST", CHAT, house.auth, body)
        await client.head()
        pieces = []
        while piece := await client.chunk():
            pieces.append(piece)
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in pieces)
    check_chat_stream(b"".join(pieces), usage=False)
