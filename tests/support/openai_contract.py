"""What a client of OpenAI's API gets, whatever answers: one suite, run over every way to a model.

Each test uses OpenAI's own client, or reads the bytes that it would have got.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pydantic
import pytest

from support.raw import RawResponse, call
from support.strict import REASONS, check_chat_stream, parse_stream

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
ASK: Any = [{"role": "user", "content": "Name three colours, in one line."}]
TOKENS = 5
"""How many tokens are asked for; every model has that much to say."""


@dataclass(frozen=True)
class Site:
    """A running service, and the names of a model that chats, of one that embeds and of one that can say a `Colour`."""

    port: int
    key: str
    model: str = "fake"
    embedder: str = "fake"
    shaper: str = "shaper"

    async def raw(self, method: str, path: str, body: Any = None, **headers: str) -> RawResponse:
        """One request by hand."""
        fields = {"authorization": f"Bearer {self.key}", **headers}
        return await call(
            self.port, method, path, fields, None if body is None else json.dumps(body).encode()
        )

    async def chat(self, **members: Any) -> RawResponse:
        """A chat by hand."""
        return await self.raw("POST", CHAT, {**self.ask, "messages": ASK, **members})

    async def completion(self, **members: Any) -> RawResponse:
        """A text completion by hand."""
        return await self.raw("POST", COMPLETION, {**self.ask, "prompt": "One, two,", **members})

    @property
    def ask(self) -> dict[str, Any]:
        """What all requests for text have."""
        return {"model": self.model, "max_tokens": TOKENS, "temperature": 0, "seed": 1}


class Colour(pydantic.BaseModel):
    """A shape that an answer may be asked for in."""

    name: str = pydantic.Field(max_length=8)
    warm: bool


SAID = '{"name": "blue", "warm": false}'
"""What a double says to be a `Colour`."""


async def put_together(client: openai.AsyncOpenAI, **ask: Any) -> Any:
    """What OpenAI's client makes of a streamed chat."""
    async with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
        async for _ in stream:
            pass
        return stream.current_completion_snapshot


async def parsed(client: openai.AsyncOpenAI, *, stream: bool, **ask: Any) -> Any:
    """A chat in a shape, parsed by OpenAI's client."""
    if not stream:
        return await client.chat.completions.parse(**ask)
    async with client.chat.completions.stream(**ask) as streaming:
        return await streaming.get_final_completion()


class OpenAIContract:
    """Give the fixture `site`."""

    @pytest.fixture
    async def site(self) -> Site:
        """The service under test."""
        raise NotImplementedError("a subclass gives it")

    @pytest.fixture
    async def client(self, site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
        """OpenAI's client for it."""
        url = f"http://127.0.0.1:{site.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=site.key, max_retries=0, timeout=60) as client:
            yield client

    # The stream

    @pytest.mark.compliance("O01", "O02", "O03", "O04", "O13")
    @pytest.mark.parametrize("usage", [True, False])
    async def test_a_stream_is_events_of_one_line_and_done(self, site: Site, usage: bool) -> None:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        for response in (
            await site.chat(stream=True, **options),
            await site.completion(stream=True, **options),
        ):
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            *chunks, done = parse_stream(response.body)
            assert done == "[DONE]"
            assert [chunk["choices"] == [] for chunk in chunks] == [False] * (len(chunks) - usage) + [
                True
            ] * usage
            assert not any(chunk.get("error") for chunk in chunks)

    @pytest.mark.compliance("O10", "O11", "O12", "O13", "O14", "O15")
    @pytest.mark.parametrize("choices", [1, 2, 3])
    @pytest.mark.parametrize("usage", [True, False])
    async def test_every_chunk_of_a_chat_is_strict(self, site: Site, usage: bool, choices: int) -> None:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        response = await site.chat(stream=True, n=choices, **options)
        said = check_chat_stream(response.body, usage=usage, choices=choices)
        assert all(message["role"] == "assistant" for message in said.values())
        if usage:
            assert parse_stream(response.body)[-2]["usage"]["completion_tokens"] == TOKENS * choices

    @pytest.mark.compliance("O10", "O12", "O13", "O14")
    async def test_every_chunk_of_a_text_completion_is_strict(self, site: Site) -> None:
        response = await site.completion(stream=True, stream_options={"include_usage": True})
        *chunks, last, _ = parse_stream(response.body)
        assert {chunk["object"] for chunk in [*chunks, last]} == {"text_completion"}
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, last]}) == 1
        assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons[:-1] == [None] * (len(chunks) - 1)
        assert reasons[-1] in REASONS
        assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + TOKENS

    @pytest.mark.compliance("O10", "O11", "O12", "O13", "O15")
    @pytest.mark.parametrize("choices", [1, 3])
    async def test_the_client_puts_a_stream_together_to_the_whole_answer(
        self, site: Site, client: openai.AsyncOpenAI, choices: int
    ) -> None:
        ask: Any = {**site.ask, "messages": ASK, "n": choices}
        whole = await client.chat.completions.create(**ask)
        final = await put_together(client, **ask)
        assert [choice.index for choice in final.choices] == list(range(choices))
        for one, other in zip(final.choices, whole.choices, strict=True):
            assert one.message.role == other.message.role == "assistant"
            assert one.message.content == other.message.content
            assert one.finish_reason == other.finish_reason == "length"
        assert final.usage is not None
        assert whole.usage is not None
        assert final.usage.completion_tokens == whole.usage.completion_tokens == TOKENS * choices

    @pytest.mark.compliance("O14")
    async def test_usage_adds_up_and_its_details_are_whole_numbers(
        self, site: Site, client: openai.AsyncOpenAI
    ) -> None:
        chat = await client.chat.completions.create(**site.ask, messages=ASK)
        text = await client.completions.create(**site.ask, prompt="One, two,")
        for usage in (chat.usage, text.usage):
            assert usage is not None
            assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
            details = usage.prompt_tokens_details
            assert details is None or isinstance(details.cached_tokens, int | None)

    @pytest.mark.compliance("O16")
    async def test_log_probabilities_come_when_asked_for_and_not_else(
        self, site: Site, client: openai.AsyncOpenAI
    ) -> None:
        ask: Any = {**site.ask, "messages": ASK}
        plain = await client.chat.completions.create(**ask)
        assert plain.choices[0].logprobs is None
        told = await client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        assert told.choices[0].logprobs is not None
        tokens = told.choices[0].logprobs.content or []
        assert "".join(token.token for token in tokens) == told.choices[0].message.content
        for token in tokens:
            assert isinstance(token.logprob, float)
            assert bytes(token.bytes or []).decode() == token.token
            assert len(token.top_logprobs) <= 2
        streamed: list[Any] = []
        async for chunk in await client.chat.completions.create(
            **ask, logprobs=True, top_logprobs=2, stream=True
        ):
            if chunk.choices[0].logprobs is not None:
                streamed += chunk.choices[0].logprobs.content or []
        assert streamed == tokens
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ask, top_logprobs=2)
        assert refused.value.param == "top_logprobs"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ask, logprobs=True, top_logprobs=21)
        assert refused.value.param == "top_logprobs"

    @pytest.mark.compliance("O18")
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    async def test_a_limit_of_tokens_is_kept_under_both_names(
        self, site: Site, client: openai.AsyncOpenAI, name: str, stream: bool
    ) -> None:
        ask: Any = {"model": site.model, "messages": ASK, "temperature": 0, name: 3}
        answer = await put_together(client, **ask) if stream else await client.chat.completions.create(**ask)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3

    @pytest.mark.compliance("O31")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_parsed_answer_that_was_cut_off_is_told_as_such(
        self, site: Site, client: openai.AsyncOpenAI, stream: bool
    ) -> None:
        ask: Any = {"model": site.shaper, "messages": ASK, "max_tokens": 1, "response_format": Colour}
        with pytest.raises(openai.LengthFinishReasonError):
            await parsed(client, stream=stream, **ask)

    @pytest.mark.compliance("O30")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_an_answer_in_a_shape_can_be_parsed(
        self, site: Site, client: openai.AsyncOpenAI, stream: bool
    ) -> None:
        ask: Any = {"model": site.shaper, "messages": ASK, "temperature": 0, "response_format": Colour}
        answer = await parsed(client, stream=stream, **ask)
        message = answer.choices[0].message
        assert isinstance(message.parsed, Colour)
        assert message.parsed == Colour.model_validate_json(message.content or "")
        assert message.refusal is None

    @pytest.mark.compliance("O30")
    @pytest.mark.parametrize(
        "shape",
        [
            {"name": "two words", "schema": {"type": "object"}},
            {"name": "x" * 65, "schema": {"type": "object"}},
            {"name": "no_schema"},
            {"name": "no_schema", "schema": "object"},
        ],
    )
    async def test_a_shape_that_nobody_would_keep_is_refused(
        self, site: Site, client: openai.AsyncOpenAI, shape: Any
    ) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model=site.model,
                messages=ASK,
                response_format={"type": "json_schema", "json_schema": shape},
            )
        assert refused.value.param == "response_format"

    # Errors

    @pytest.mark.compliance("O07", "O40", "O41")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_errors_are_the_clients_own_classes_streamed_or_not(
        self, site: Site, client: openai.AsyncOpenAI, stream: bool
    ) -> None:
        ask: Any = {"model": site.model, "messages": ASK, "stream": stream}
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(**{**ask, "model": "nobody"})
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.AuthenticationError) as locked:
            await client.with_options(api_key="wrong").chat.completions.create(**ask)
        assert locked.value.code == "invalid_api_key"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(**{**ask, "temperature": 9})
        assert wrong.value.param == "temperature"
        for raised in (missing, locked, wrong):
            assert raised.value.request_id is not None
            assert raised.value.type
            assert isinstance(raised.value.body, dict)
            assert set(raised.value.body) == {"message", "type", "param", "code"}

    @pytest.mark.compliance("O50")
    async def test_every_answer_has_an_id_of_its_own_and_the_one_that_the_client_gave(
        self, site: Site
    ) -> None:
        ask = {**site.ask, "messages": ASK}
        requests: list[tuple[str, str, Any]] = [
            ("POST", CHAT, ask),
            ("POST", CHAT, {**ask, "stream": True}),
            ("POST", CHAT, {**ask, "model": "nobody"}),
            ("POST", CHAT, {**ask, "n": 0}),
            ("POST", COMPLETION, {}),
            ("POST", "/v1/embeddings", {"model": site.embedder, "input": "x"}),
            ("GET", "/v1/models", None),
            ("GET", "/v1/models/nobody", None),
            ("GET", "/nowhere", None),
            ("DELETE", CHAT, None),
            ("GET", "/health", None),
        ]
        seen = set()
        for method, path, body in requests:
            response = await site.raw(method, path, body, **{"x-request-id": "mine/1:2"})
            assert response.headers["x-request-id"].startswith("req_")
            assert response.headers["x-client-request-id"] == "mine/1:2"
            seen.add(response.headers["x-request-id"])
            for given in ("", "two words", "é", "x" * 129):
                bad = await site.raw("GET", path, None, **{"x-request-id": given})
                assert "x-client-request-id" not in bad.headers
        assert len(seen) == len(requests)

    # Models and embeddings

    @pytest.mark.compliance("O60")
    async def test_models_are_listed_and_found(self, site: Site, client: openai.AsyncOpenAI) -> None:
        listing = (await site.raw("GET", "/v1/models")).json
        assert set(listing) == {"object", "data"}
        assert listing["object"] == "list"
        for model in listing["data"]:
            assert set(model) == {"id", "object", "created", "owned_by"}
            assert model["object"] == "model"
            assert type(model["created"]) is int
            assert model["owned_by"]
        names = [model.id async for model in client.models.list()]
        assert {site.model, site.embedder} <= set(names)
        for name in names:
            assert (await client.models.retrieve(name)).id == name

    @pytest.mark.compliance("O70", "O71")
    async def test_embeddings_as_the_client_asks_for_them_and_as_floats(
        self, site: Site, client: openai.AsyncOpenAI
    ) -> None:
        given = ["a cat", "two dogs and a cow", "x"]
        packed = await client.embeddings.create(model=site.embedder, input=given)
        plain = await client.embeddings.create(model=site.embedder, input=given, encoding_format="float")
        backwards = await client.embeddings.create(model=site.embedder, input=given[::-1])
        assert [item.index for item in packed.data] == [0, 1, 2]
        for one, other in zip(packed.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-3)
        assert len(backwards.data) == 3
        assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0
        raw = await site.raw("POST", "/v1/embeddings", {"model": site.embedder, "input": "x"})
        assert isinstance(raw.json["data"][0]["embedding"], list), "without a word on the form: a list"
        assert raw.json["object"] == "list"
        assert raw.json["data"][0]["object"] == "embedding"

    @pytest.mark.compliance("O71")
    @pytest.mark.parametrize(("given", "count"), [("a", 1), (["a", "b"], 2), ([1, 2], 1), ([[1, 2], [3]], 2)])
    async def test_each_form_of_an_embeddings_input_is_taken(
        self, site: Site, client: openai.AsyncOpenAI, given: Any, count: int
    ) -> None:
        answer = await client.embeddings.create(model=site.embedder, input=given)
        assert [item.index for item in answer.data] == list(range(count))
        assert all(item.embedding for item in answer.data)
