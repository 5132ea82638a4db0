"""Embeddings as OpenAI's client asks for them, from backends that know no better."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from headrace.testing.fake_engine import FakeEngine, Script
from support.canned import Canned, whole
from support.house import KEY, House, gateway
from support.raw import call

EMBED = "/v1/embeddings"
VECTORS = [[0.5, -1.25, 3.0], [1.0, 0.0, 1e-30]]
PACKED = [base64.b64encode(struct.pack("<3f", *vector)).decode() for vector in VECTORS]
Site = tuple[Canned, House, openai.AsyncOpenAI]


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with (
        Canned(answer(PACKED)) as backend,
        gateway(backend.url, asgi=request.param) as house,
        openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield backend, house, client


def answer(vectors: Any, order: tuple[int, ...] = (0, 1), **members: Any) -> Any:
    data = [{"object": "embedding", "index": index, "embedding": vectors[index]} for index in order]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    return whole({"object": "list", "model": "canned", "data": data, "usage": usage, **members})


async def raw(house: House, **members: Any) -> Any:
    body = json.dumps({"model": "canned", "input": ["a", "b"], **members}).encode()
    return (await call(house.port, "POST", EMBED, house.auth, body)).json


@pytest.mark.compliance("O70")
async def test_the_clients_base64_is_of_little_endian_floats(site: Site) -> None:
    backend, house, client = site
    found = await client.embeddings.create(model="canned", input=["a", "b"])
    assert backend.bodies[-1]["encoding_format"] == "base64"
    assert [item.embedding for item in found.data] == [pytest.approx(vector) for vector in VECTORS]
    assert [i["embedding"] for i in (await raw(house, encoding_format="base64"))["data"]] == PACKED


@pytest.mark.compliance("O70")
async def test_a_backend_that_knows_one_form_only_is_translated(site: Site) -> None:
    backend, house, client = site
    backend.reply = answer(VECTORS)
    assert [item["embedding"] for item in (await raw(house, encoding_format="base64"))["data"]] == PACKED
    found = await client.embeddings.create(model="canned", input=["a", "b"])
    assert [item.embedding for item in found.data] == [pytest.approx(vector) for vector in VECTORS]
    backend.reply = answer(PACKED)
    floats = await client.embeddings.create(model="canned", input=["a", "b"], encoding_format="float")
    assert [item.embedding for item in floats.data] == [pytest.approx(vector) for vector in VECTORS]
    assert isinstance((await raw(house))["data"][0]["embedding"], list), "OpenAI's default is a list"


@pytest.mark.compliance("O70")
@pytest.mark.parametrize("value", [None, ""])
async def test_no_backend_is_ever_sent_an_empty_form(site: Site, value: str | None) -> None:
    backend, house, _ = site
    told = await raw(house, encoding_format=value, dimensions=None, user=None)
    if value is None:
        assert told["data"]
        assert backend.bodies[-1] == {"model": "canned", "input": ["a", "b"]}
    else:
        assert told["error"]["param"] == "encoding_format"
        assert backend.bodies == []


@pytest.mark.compliance("O71")
async def test_vectors_stand_in_the_order_of_their_inputs(site: Site) -> None:
    backend, _, client = site
    backend.reply = answer(PACKED, order=(1, 0))
    found = await client.embeddings.create(model="canned", input=["a", "b"])
    assert [item.index for item in found.data] == [0, 1]
    assert [item.embedding for item in found.data] == [pytest.approx(vector) for vector in VECTORS]


@pytest.mark.compliance("O71")
@pytest.mark.parametrize(
    "reply", [answer(PACKED, order=()), answer(PACKED, order=(1,)), whole({"data": None}), whole([])]
)
async def test_missing_vectors_are_an_error_of_the_backend_not_a_riddle(site: Site, reply: Any) -> None:
    backend, _, client = site
    backend.reply = reply
    with pytest.raises(openai.InternalServerError) as failed:
        await client.embeddings.create(model="canned", input=["a", "b"])
    assert failed.value.status_code == 502


@pytest.mark.compliance("O71")
async def test_dimensions_are_asked_for_and_held_or_refused(site: Site) -> None:
    backend, _, client = site
    found = await client.embeddings.create(model="canned", input=["a", "b"], dimensions=3)
    assert len(found.data[0].embedding) == 3
    assert backend.bodies[-1]["dimensions"] == 3
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="canned", input=["a", "b"], dimensions=2)
    assert refused.value.param == "dimensions"
    async with FakeEngine(Script(dimensions=8)) as engine, gateway(engine.url) as house:
        able = client.with_options(base_url=f"{house.url}/v1")
        assert (
            len((await able.embeddings.create(model="fake", input="x", dimensions=5)).data[0].embedding) == 5
        )


@pytest.mark.compliance("O71")
@pytest.mark.parametrize("given", [{}, {"usage": None}, {"usage": {"prompt_tokens": 4}}])
async def test_usage_is_always_told(site: Site, given: dict[str, Any]) -> None:
    backend, house, _ = site
    reply = json.loads(answer(PACKED).pieces[0])
    del reply["usage"]
    backend.reply = whole({**reply, **given})
    usage = (await raw(house))["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] > 0
    assert set(usage) - {"estimated"} == {"prompt_tokens", "total_tokens"}


@pytest.mark.compliance("O71")
@pytest.mark.parametrize("given", ["", [], None, 5, {"a": 1}])
async def test_no_input_is_refused(site: Site, given: Any) -> None:
    backend, house, _ = site
    assert (await raw(house, input=given))["error"]["param"] == "input"
    assert backend.bodies == []
