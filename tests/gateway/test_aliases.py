"""Names that routes give to models, as clients see and use them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from headrace.control.access import digest
from headrace.domain.access import Principal
from headrace.domain.routing import Route, Selector, Target
from headrace.testing import FakeEngine, Script
from support.administration import Office, administered
from support.house import KEY, House
from support.raw import call


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.fixture
async def house(office: Office) -> AsyncIterator[House]:
    async with (
        FakeEngine(Script(models=("llama-3-8b", "org/model:7b"), checks_model=True, tokens=2)) as engine,
        administered(engine.url, office=office) as house,
    ):
        yield house


async def name(office: Office, alias: str, model: str, *fallbacks: Target, route_id: str = "r") -> None:
    await office.route_book.put(Route(route_id, alias, (Target(model=model), *fallbacks)))


async def listed(house: House, key: str = KEY) -> list[str]:
    answer = await call(house.port, "GET", "/v1/models", {"authorization": f"Bearer {key}"})
    return [model["id"] for model in answer.json["data"]]


async def status_of_one(house: House, alias: str, key: str = KEY) -> int:
    answer = await call(house.port, "GET", f"/v1/models/{alias}", {"authorization": f"Bearer {key}"})
    return answer.status


@pytest.mark.compliance("O60")
@pytest.mark.req("C04", "C35")
async def test_an_alias_is_a_model_to_openais_client(house: House, office: Office) -> None:
    await name(office, "team/small", "llama-3-8b")
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client:
        models = [model.id async for model in client.models.list()]
        assert models == ["llama-3-8b", "org/model:7b", "team/small"]
        one, real = [await client.models.retrieve(name) for name in ("team/small", "llama-3-8b")]
        assert one == real.model_copy(update={"id": "team/small"})
        answer = await client.chat.completions.create(
            model="team/small", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].message.content == "tok0 tok1"


@pytest.mark.req("C04")
async def test_it_is_there_from_the_change_of_the_route_on(house: House, office: Office) -> None:
    assert await status_of_one(house, "small") == 404
    await name(office, "small", "llama-3-8b")
    assert await status_of_one(house, "small") == 200
    await name(office, "tiny", "llama-3-8b")
    assert (await status_of_one(house, "small"), await status_of_one(house, "tiny")) == (404, 200)
    await office.route_book.remove("r")
    assert await listed(house) == ["llama-3-8b", "org/model:7b"]


@pytest.mark.req("C04")
async def test_only_names_of_models_that_are_there_are_listed(house: House, office: Office) -> None:
    await name(office, "lost", "no-such-model")
    await name(office, "small-*", "llama-3-8b", route_id="pattern")
    await name(office, "llama-3-8b", "org/model:7b", route_id="hidden")
    assert await listed(house) == ["llama-3-8b", "org/model:7b"], "each once"
    assert await status_of_one(house, "lost") == 404
    assert await status_of_one(house, "small-1") == 404


@pytest.mark.req("C04", "C29")
async def test_a_key_sees_the_names_that_it_may_use(house: House, office: Office) -> None:
    await name(office, "small", "llama-3-8b")
    scoped = {"sk-alias": ("small",), "sk-model": ("llama-*",), "sk-other": ("else",)}
    house.keys.replace_managed(
        {digest(key.encode()): Principal(key, models=models) for key, models in scoped.items()}
    )
    assert {key: await listed(house, key) for key in scoped} == {
        "sk-alias": ["small"],
        "sk-model": ["llama-3-8b"],
        "sk-other": [],
    }
    assert {key: await status_of_one(house, "small", key) for key in scoped} == {
        "sk-alias": 200,
        "sk-model": 404,
        "sk-other": 404,
    }
    refusal = await call(house.port, "GET", "/v1/models/small", {"authorization": "Bearer sk-other"})
    missing = await call(house.port, "GET", "/v1/models/smell", {"authorization": "Bearer sk-other"})
    assert refusal.error == missing.error | {"message": missing.error["message"].replace("smell", "small")}


async def test_a_fallback_does_not_change_the_name(house: House, office: Office) -> None:
    await name(office, "small", "llama-3-8b", Target(Selector.parse("any"), "org/model:7b"))
    assert await listed(house) == ["llama-3-8b", "org/model:7b", "small"]
