"""The kind tf-serving: what it makes of a server's word about its models, and of its refusals."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points

import pytest

from headrace.connectors.tf_serving import KIND
from headrace.domain.inference import Api
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.backend import GROUP, BackendSpec
from headrace.ports.connector import Busy, Failure, Loading, Lost, NotSent, UpstreamRequest
from headrace.testing.fake_tf_serving import FakeModel, FakeTfServing
from support.backend_contract import GARBAGE, IMPATIENT, look, opened, unwell
from support.http_peer import HttpPeer
from support.recorder import Recorder

pytestmark = pytest.mark.req("B02", "C27", "R03")
READY, LOADS, ENDED = (
    FakeModel(),
    FakeModel({1: "LOADING"}),
    FakeModel({1: "END"}, error="The graph is broken."),
)


def spec(url: str, *models: str, api_key: str = "") -> BackendSpec:
    return BackendSpec("t", url, models=models or ("half",), api_key=api_key)


def test_it_is_installed_as_a_kind() -> None:
    [point] = [point for point in entry_points(group=GROUP) if point.name == "tf-serving"]
    assert point.load() is KIND


def test_it_cannot_work_without_the_names_of_its_models() -> None:
    with pytest.raises(ConfigError, match=r"'t' has to name its models"):
        KIND.open(BackendSpec("t", "http://localhost:1"), SystemClock())


async def test_what_it_is_for() -> None:
    async with opened(KIND, spec("http://localhost:1")) as way:
        traits = way.connector.traits
        assert (traits.api, traits.cancels_unstreamed) == (Api.PREDICTION, False)


async def test_the_models_that_it_has_are_told_by_their_state() -> None:
    models = {
        "half": FakeModel({1: "END", 2: "AVAILABLE", 3: "LOADING"}),
        "org/soon": LOADS,
        "starts": FakeModel({1: "START"}),
        "ended": ENDED,
        "going": FakeModel({1: "UNLOADING"}),
    }
    async with FakeTfServing(models) as server:
        report = await look(
            KIND, spec(server.url, "half", "org/soon", "starts", "ended", "going", "gone", "half")
        )
        assert report.models is not None
        assert [info.id for info in report.models] == ["half", "org/soon", "starts"]
        assert report.loaded == frozenset({"half"})
        assert report.absent == {"ended", "going", "gone"}
        assert (report.ready_in_s, report.slots, report.product) == (None, None, "TensorFlow Serving")
        assert (len(server.asked), len(server.predicted)) == (6, 0), (
            "each is asked once, and nothing is predicted"
        )


async def test_while_all_of_them_load_it_is_loading() -> None:
    async with (
        FakeTfServing({"a": LOADS, "b": FakeModel({1: "START"})}) as server,
        opened(KIND, spec(server.url, "a", "b")) as way,
    ):
        assert (await way.prober.look()).ready_in_s is not None
        server.models = {"a": READY, "b": LOADS}
        report = await way.prober.look()
        assert (report.ready_in_s, report.loaded) == (None, frozenset({"a"}))


@pytest.mark.parametrize(
    ("models", "why"), [({}, "Could not find"), ({"half": ENDED}, "The graph is broken")]
)
async def test_one_that_has_none_of_them_is_unwell_and_says_why(
    models: dict[str, FakeModel], why: str
) -> None:
    async with FakeTfServing(models) as server:
        trouble = await unwell(KIND, spec(server.url, "half"))
        assert "none of the models that the settings name (half)" in trouble.message
        assert why in trouble.message
        assert not trouble.refused_key


async def test_a_dead_one_is_unwell_and_is_seen_when_it_lives() -> None:
    server = FakeTfServing()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server.port = bound.getsockname()[1]
        assert "Can't connect" in (await unwell(KIND, spec(server.url))).message
    async with server:
        assert (await look(KIND, spec(server.url))).models


async def test_a_key_that_it_refuses_is_told_as_such_and_never_shown() -> None:
    async with FakeTfServing(api_key="sk-right") as server:
        for key in ("sk-wrong", ""):
            trouble = await unwell(KIND, spec(server.url, api_key=key))
            assert trouble.refused_key
            assert "sk-" not in trouble.message
        assert (await look(KIND, spec(server.url, api_key="sk-right"))).models


@asynccontextmanager
async def saying(status: str, body: bytes) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


NOBODYS = [
    b'{"model_version_status": 5}',
    b'{"model_version_status": ["x"]}',
    b'{"object": "model", "id": "half"}',
]


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
@pytest.mark.parametrize("body", GARBAGE + NOBODYS)
async def test_another_server_is_not_taken_for_it(status: str, body: bytes) -> None:
    async with saying(status, body) as url:
        trouble = await unwell(KIND, spec(url))
        assert "doesn't answer /v1/models/half as TensorFlow Serving does" in trouble.message


async def test_one_that_only_fails_is_unwell() -> None:
    async with saying("500 X", b'{"error": "It broke."}') as url:
        assert "500 to /v1/models/half: It broke." in (await unwell(KIND, spec(url, "half", "b"))).message


async def test_odd_states_are_no_offer() -> None:
    versions = [
        {"state": 5},
        {"state": "UNKNOWN"},
        {"state": "NEW", "status": 7},
        {"status": {"error_message": []}},
    ]
    async with saying("200 OK", json.dumps({"model_version_status": versions}).encode()) as url:
        assert "none of the models" in (await unwell(KIND, spec(url))).message


async def test_a_slow_one_is_not_waited_for() -> None:
    async with HttpPeer() as peer:
        names = tuple(f"m{number}" for number in range(50))
        began = time.monotonic()
        trouble = await unwell(KIND, BackendSpec("t", peer.url, models=names, timeouts=IMPATIENT))
        assert not trouble.refused_key
        assert time.monotonic() - began < 15
        assert len(peer.connections) <= 8, "a few questions at a time"


REFUSALS: list[tuple[int, str, type[Failure] | None]] = [
    (404, "Servable not found for request: Latest(half)", Loading),
    (404, "Servable not found for request: Specific(half, 7)", None),
    (503, "The batch scheduling queue to which this task was submitted is full", Busy),
    (503, "Some other trouble", None),
    (429, "OOM when allocating tensor with shape[9,9]", Lost),
    (429, "Too many", None),
    (400, "Servable not found for request: Latest(half)", None),
    (500, "It broke", None),
]


@pytest.mark.parametrize(("status", "message", "kind"), REFUSALS)
async def test_what_its_refusals_say_of_the_work(
    status: int, message: str, kind: type[Failure] | None
) -> None:
    async with FakeTfServing() as server, opened(KIND, spec(server.url)) as way:
        server.fault = status, message
        sink = Recorder()
        way.connector.start(UpstreamRequest("POST", "/v1/models/half:predict", body=b"{}"), sink)
        last = await sink.last()
        if kind is None:
            assert (sink.status, json.loads(sink.body), sink.ended) == (status, {"error": message}, True)
        else:
            assert type(last.failure) is kind
            assert not isinstance(last.failure, NotSent)
            assert sink.status is None
