"""Every kind of backend, in the dialect of each product that speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from headrace.connectors import ollama, openai
from headrace.connectors.refusals import KnownRefusals
from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Timeouts
from headrace.ports.backend import BackendSpec, Opened, Report, Unwell
from headrace.ports.connector import Busy, Loading, Lost
from headrace.testing.fake_engine import FakeEngine, Hang, Refuse, Script
from support.backend_contract import BackendContract, look, opened
from support.http_peer import HttpPeer
from support.recorder import Recorder

MODELS = ("a", "b/c")


def said(message: str, kind: str = "server_error") -> str:
    return f'{{"error": {{"message": "{message}", "type": "{kind}", "code": 503}}}}'


@pytest.mark.req("C27")
class TestLlamaServer(BackendContract):
    kind = openai.KIND
    script = Script(models=MODELS, tokens=3, slots=5)
    product = "llama.cpp b1-fake"
    slots = 5
    busy = (Refuse(429), Refuse(503, said("no slot available", "unavailable_error"), {"Retry-After": "2"}))


@pytest.mark.req("C27", "B02")
class TestVllm(BackendContract):
    kind = openai.KIND
    script = Script(models=MODELS, tokens=3, dialect="vllm")
    product = "vLLM 0.1-fake"


@pytest.mark.req("C27")
class TestSglang(BackendContract):
    kind = openai.KIND
    script = Script(models=MODELS, tokens=3, dialect="sglang")
    product = "SGLang"
    busy = (Refuse(503, said("The request queue is full.")),)


@pytest.mark.req("C27")
class TestTgi(BackendContract):
    kind = openai.KIND
    script = Script(models=MODELS, tokens=3, dialect="tgi", slots=9)
    product = "TGI 3.0-fake"
    slots = 9
    busy = (Refuse(429, '{"error": "Model is overloaded", "error_type": "overloaded"}'),)


@pytest.mark.req("C27")
class TestLmStudio(BackendContract):
    kind = openai.KIND
    script = Script(models=MODELS, tokens=3, dialect="lm-studio")
    product = "LM Studio"


@pytest.mark.req("C27", "C25")
class TestOthers(BackendContract):
    kind = openai.KIND
    script = Script(models=MODELS, tokens=3, dialect="openai")
    busy = (
        Refuse(429, headers={"Retry-After": "3"}),
        Refuse(503, said("The engine is currently overloaded, please try again later")),
        Refuse(
            503, '{"error": {"message": "The queue is full.", "code": "queue_full"}}', {"Retry-After": "9"}
        ),
    )


@pytest.mark.req("C26", "C27", "B02")
class TestOllama(BackendContract):
    kind = ollama.KIND
    script = Script(models=MODELS, tokens=3, dialect="ollama")
    product = "Ollama 0.1-fake"
    slots = 4
    tells_loading = False
    busy = (Refuse(503, said("server busy, please try again.  maximum pending requests exceeded")),)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, said("Loading model", "unavailable_error"), Loading),
        (503, '{"error": "Model bloom is currently loading", "estimated_time": 20.5}', Loading),
        (503, '{"error": "model is overloaded"}', Busy),
        (529, '{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}', Busy),
        (429, "", Busy),
        (503, "", None),
        (503, "<html>", None),
        (503, '{"error": []}', None),
        (503, said("EngineDeadError"), None),
        (503, said("shut down", "service_unavailable").replace("503", '"shutting_down"'), None),
        (500, said("Loading model", "unavailable_error"), None),
        (502, said("overloaded"), None),
    ],
)
def test_only_words_that_are_known_to_come_before_the_work_make_it_free(
    status: int, body: str, expected: type | None
) -> None:
    failure = KnownRefusals().refusal(status, [], body.encode())
    assert (type(failure) if failure else None) is expected
    if "estimated_time" in body:
        assert isinstance(failure, Loading)
        assert failure.retry_after_s == 20.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"7", 7.0), (b"0", 0.0), (b"99999999", 3600.0), (b"-1", None), (b"Wed, 21 Oct", None)],
)
def test_how_long_to_wait_is_bounded(value: bytes, seconds: float | None) -> None:
    failure = KnownRefusals().refusal(429, [(b"retry-after", value)], b"")
    assert isinstance(failure, Busy)
    assert failure.retry_after_s == seconds


@pytest.mark.parametrize("dialect", ["ollama", "lm-studio"])
async def test_what_is_in_memory_is_known_after_it_was_used(dialect: Any) -> None:
    kind: Any = ollama.KIND if dialect == "ollama" else openai.KIND
    script = Script(models=MODELS, tokens=1, dialect=dialect)
    async with FakeEngine(script) as engine, opened(kind, BackendSpec("b", engine.url)) as way:
        assert (await way.prober.look()).loaded == frozenset()
        for model in ("a", "a", "b/c"):
            sink = Recorder()
            way.connector.start(TestOllama()._request(model=model), sink)
            await sink.last()
            assert (await way.prober.look()).loaded == frozenset({model})
        assert engine.stats.loads == 2


async def answered(way: Opened, peer: HttpPeer, *answers: tuple[int, bytes]) -> Report:
    """A look at a backend that gives these answers, one after another."""
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(way.prober.look())
        connection = await peer.connection()
        for status, body in answers:
            await connection.request()
            connection.send(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
    return looking.result()


async def test_a_server_of_several_models_says_which_are_loaded() -> None:
    listing = (
        b'{"data":[{"id":"a","owned_by":"llamacpp","status":{"value":"loaded"}},'
        b'{"id":"b","owned_by":"llamacpp","status":{"value":"unloaded"}}]}'
    )
    async with HttpPeer() as peer, opened(openai.KIND, BackendSpec("b", peer.url)) as way:
        report = await answered(way, peer, (200, listing), (200, b"{}"), (200, b'{"role":"router"}'))
        assert (report.loaded, report.slots) == (frozenset({"a"}), None)


async def test_llama_cpp_that_lists_its_model_while_it_loads_is_loading() -> None:
    listing = b'{"data":[{"id":"a","owned_by":"llamacpp"}]}'
    async with HttpPeer() as peer, opened(openai.KIND, BackendSpec("b", peer.url)) as way:
        report = await answered(way, peer, (200, listing), (503, said("Loading model").encode()))
        assert report.ready_in_s == 0.0
        assert report.models is not None


async def test_vllm_with_a_dead_engine_is_unwell_though_it_lists_models() -> None:
    listing = b'{"data":[{"id":"a","owned_by":"vllm"}]}'
    async with HttpPeer() as peer, opened(openai.KIND, BackendSpec("b", peer.url)) as way:
        with pytest.raises(ExceptionGroup) as caught:
            await answered(way, peer, (200, listing), (200, b'{"version":"1"}'), (503, b""))
        assert caught.group_contains(Unwell, match="503 to /health")


@pytest.mark.parametrize("status", [404, 405, 501, 429])
async def test_one_that_lists_nothing_says_so_and_is_not_unwell(status: int) -> None:
    async with HttpPeer() as peer, opened(openai.KIND, BackendSpec("b", peer.url, models=("m",))) as way:
        report = await answered(way, peer, (status, b""), (404, b""))
        assert report.models is None


async def test_another_product_in_the_place_of_one_that_went_is_recognised() -> None:
    engine = FakeEngine(Script(models=MODELS, dialect="vllm"))
    await engine.start()
    async with opened(openai.KIND, BackendSpec("b", engine.url)) as way:
        assert (await way.prober.look()).product.startswith("vLLM")
        await engine.stop()
        with pytest.raises(Unwell):
            await way.prober.look()
        engine.script = Script(models=MODELS)
        await engine.start()
        assert (await way.prober.look()).product.startswith("llama.cpp")
    await engine.stop()


async def test_another_server_than_ollama_is_told_from_it() -> None:
    async with FakeEngine(Script(models=MODELS)) as engine:
        with pytest.raises(Unwell, match="set kind to 'openai'"):
            await look(ollama.KIND, BackendSpec("b", engine.url))


@pytest.mark.parametrize(
    ("name", "moment", "owner", "created"),
    [
        ("llama3:8b", "2024-05-04T17:37:44.706015396-07:00", "library", 1714869464),
        ("someone/thing:latest", "2024-05-04T17:37:44Z", "someone", 1714844264),
        ("hf.co/org/thing", "yesterday", "org", 0),
    ],
)
async def test_whose_and_how_old_a_model_is(name: str, moment: str, owner: str, created: int) -> None:
    tags = json.dumps({"models": [{"name": name, "modified_at": moment}]}).encode()
    async with HttpPeer() as peer, opened(ollama.KIND, BackendSpec("b", peer.url)) as way:
        report = await answered(way, peer, (200, tags), (200, b'{"models":null}'), (404, b""))
        assert report.models == (ModelInfo(name, created, owner),)
        assert (report.loaded, report.product) == (frozenset(), "Ollama")


@pytest.mark.req("C40")
async def test_a_model_is_pulled_and_its_progress_told() -> None:
    script = Script(models=("a",), dialect="ollama", pullable=("new:1b",), interval_s=0.01)
    async with FakeEngine(script) as engine, opened(ollama.KIND, BackendSpec("b", engine.url)) as way:
        news = [progress async for progress in ollama.pull(way.connector, "new:1b")]
        assert news[-1].status == "success"
        assert any(progress.total_bytes == 1000 for progress in news)
        assert [info.id for info in (await way.prober.look()).models or ()] == ["a", "new:1b"]


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (
            200,
            b'{"status":"pulling manifest"}\n{"error":"pull model manifest: file does not exist"}\n',
            "does not exist",
        ),
        (200, b'{"status":"pulling manifest"}\n', "without a word of success"),
        (200, b"<html>\n", "isn't JSON"),
        (200, b"x" * 200_000, "too long"),
        (404, b"", "404"),
        (400, b'{"error":"invalid model name"}', "invalid model name"),
    ],
)
async def test_a_pull_that_fails_says_why(status: int, body: bytes, trouble: str) -> None:
    async def pulled(way: Opened) -> str:
        with pytest.raises(ollama.PullFailed) as caught:
            async for _ in ollama.pull(way.connector, "new"):
                pass
        return caught.value.message

    async with HttpPeer() as peer, opened(ollama.KIND, BackendSpec("b", peer.url)) as way:
        async with asyncio.TaskGroup() as group:
            pulling = group.create_task(pulled(way))
            connection = await peer.connection()
            request = await connection.request()
            assert json.loads(request.body) == {"model": "new", "stream": True}
            connection.send(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        assert trouble in pulling.result()
        assert pulling.result().endswith(".")


async def test_who_stops_following_stops_the_pull() -> None:
    async with HttpPeer() as peer, opened(ollama.KIND, BackendSpec("b", peer.url)) as way:
        async with contextlib.aclosing(ollama.pull(way.connector, "new")) as news:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(anext(news))
                connection = await peer.connection()
                await connection.request()
                line = b'{"status":"pulling manifest"}\n'
                connection.send(b"HTTP/1.1 200 X\r\ncontent-length: 9999\r\n\r\n" + line)
            assert first.result() == ollama.PullProgress("pulling manifest")
        await connection.left()


@pytest.mark.parametrize("paused", [False, True])
async def test_an_answer_has_a_time_within_which_it_must_be_complete(paused: bool) -> None:
    async with FakeEngine(Script(fault=Hang(after_events=2))) as engine:
        spec = BackendSpec("b", engine.url, timeouts=Timeouts(total_s=0.2))
        async with opened(openai.KIND, spec) as way:
            sink = Recorder()
            exchange = way.connector.start(TestOllama()._request(stream=True), sink)
            await sink.grown()
            if paused:
                exchange.pause()
            failure = (await sink.last()).failure
            assert isinstance(failure, Lost)
            assert failure.timed_out
            assert "complete" in failure.reason
            await engine.until(lambda stats: stats.aborted == 1)
