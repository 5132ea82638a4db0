"""Predictions through a whole gateway to servers that speak as TensorFlow Serving does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from headrace.adapters.ledger.memory import MemoryLedger
from headrace.connectors.tf_serving import KIND
from headrace.control.access import digest
from headrace.control.destinations import RouteFinder
from headrace.control.discovery import Discovery, Pace, Watched
from headrace.control.routes import RouteTable
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Api
from headrace.domain.quota import UNLIMITED, Limits, entry_and_tokens
from headrace.domain.routing import Route, Target
from headrace.gateway.requests import BodyLimits
from headrace.kernel.clock import SystemClock
from headrace.ports.backend import BackendSpec
from headrace.testing.fake_engine import FakeEngine, Script
from headrace.testing.fake_tf_serving import FakeModel, FakeTfServing
from headrace.testing.journal import MemoryJournal
from headrace.testing.records import MemoryRecords
from support.house import House, Quota, gateway
from support.http_peer import HttpPeer
from support.raw import RawClient, RawResponse, call
from support.waiting import until

KEY = "sk-predicts"
HALF = "/v1/models/half"
ASK = b'{ "instances": [1.0,\n 2, -4]  }'
SAID = {"predictions": [2.5, 3.0, 0.0]}

pytestmark = pytest.mark.req("B02")


class Fixed(RouteFinder):
    """Routes that never change."""

    def __init__(self, *routes: Route) -> None:
        self._table = RouteTable(routes)

    def route_for(self, model: str) -> Route | None:
        return self._table.find(model)

    def on_change(self, listener: object) -> None:
        """They don't."""


@dataclass
class Scene:
    """A gateway, and the one server behind it."""

    house: House
    server: FakeTfServing
    records: MemoryRecords

    def admit(self, limits: Limits = UNLIMITED, models: tuple[str, ...] = ()) -> None:
        entry, tokens = entry_and_tokens(limits.windows("key:key_p"))
        who = Principal("key_p", user="ann", models=models, entry=entry, tokens=tokens)
        self.house.keys.replace_managed({digest(KEY.encode()): who})

    def join(
        self,
        name: str,
        server: FakeTfServing,
        *models: str,
        stops: bool | None = None,
        capacity: int = 4,
        state: NodeState = NodeState.READY,
    ) -> None:
        """Put another server behind the gateway, as if it had been asked already."""
        opened = KIND.open(
            BackendSpec(name, server.url, models=models or ("half",), cancels_unstreamed=stops), SystemClock()
        )
        self.house.connectors[name] = opened.connector
        infos = tuple(ModelInfo(model) for model in models or ("half",))
        self.house.registry.upsert(
            Node(name, "direct", infos, capacity=capacity, state=state, api=opened.connector.traits.api)
        )

    async def ask(self, path: str = f"{HALF}:predict", body: bytes = ASK, key: str = KEY) -> RawResponse:
        return await call(self.house.port, "POST", path, {"authorization": f"Bearer {key}"}, body)

    async def look(self, path: str, key: str = KEY) -> RawResponse:
        return await call(self.house.port, "GET", path, {"authorization": f"Bearer {key}"})


@contextlib.asynccontextmanager
async def scene(
    *urls: str,
    routes: RouteFinder | None = None,
    limits: BodyLimits | None = None,
    wait_s: float = 5.0,
    stops: bool | None = None,
    capacity: int = 4,
) -> AsyncIterator[Scene]:
    records = MemoryRecords()
    ledger = MemoryLedger(MemoryJournal(), SystemClock())
    await ledger.open()
    try:
        async with (
            FakeTfServing({"half": FakeModel({1: "AVAILABLE", 2: "AVAILABLE"}, {"stable": 1})}) as server,
            gateway(
                *urls,
                quota=Quota(ledger, SystemClock(), records),
                routes=routes,
                limits=limits,
                queue_wait_s=wait_s,
            ) as house,
        ):
            stage = Scene(house, server, records)
            stage.join("t0", server, stops=stops, capacity=capacity)
            stage.admit()
            yield stage
    finally:
        await ledger.close()


@pytest.fixture
async def stage() -> AsyncIterator[Scene]:
    async with scene() as stage:
        yield stage


PREDICTIONS: list[tuple[str, bytes, object]] = [
    (":predict", ASK, SAID),
    (":predict", b'{"signature_name": "s", "inputs": [2]}', {"outputs": [3.0]}),
    (":regress", b'{"examples": [{"x": 2}]}', {"results": [3.0]}),
    (":classify", b'{"examples": [{"x": 0.25}]}', {"results": [[["low", 0.75], ["high", 0.25]]]}),
]


@pytest.mark.parametrize("part", ["", "/versions/2", "/labels/stable"])
@pytest.mark.parametrize(("verb", "body", "said"), PREDICTIONS)
async def test_predictions_pass_byte_for_byte(
    stage: Scene, part: str, verb: str, body: bytes, said: object
) -> None:
    answer = await stage.ask(HALF + part + verb, body)
    assert (answer.status, answer.json) == (200, said)
    assert answer.body == json.dumps(said, indent=4).encode(), "as the backend wrote it"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-headrace-node"] == "t0"
    [request] = stage.server.predicted
    assert (request.target, request.body) == (HALF + part + verb, body)
    assert request.header("content-type") == "application/json"
    assert request.header("authorization") is None, "a client's key doesn't reach a backend"
    assert request.header("x-request-id") == answer.headers["x-request-id"]


async def test_numbers_that_json_does_not_know_are_left_to_the_backend(stage: Scene) -> None:
    body = b'{"instances": [1, NaN, Infinity, -Infinity], "note": "NaN"}'
    answer = await stage.ask(body=body)
    assert (answer.status, answer.body.count(b"NaN"), answer.body.count(b"Infinity")) == (200, 1, 2)
    assert stage.server.predicted[0].body == body


async def test_metadata_and_the_status_of_versions(stage: Scene) -> None:
    for part, number in (("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")):
        answer = await stage.look(f"{HALF}{part}/metadata")
        assert (answer.status, answer.json["model_spec"]["version"]) == (200, number)
    for part in ("/versions/1", "/labels/stable"):
        answer = await stage.look(HALF + part)
        told = answer.json["model_version_status"]
        assert [(version["version"], version["state"]) for version in told] == [("1", "AVAILABLE")]
    assert [request.target for request in stage.server.asked] == [
        f"{HALF}/metadata",
        f"{HALF}/versions/1/metadata",
        f"{HALF}/labels/stable/metadata",
        f"{HALF}/versions/1",
        f"{HALF}/labels/stable",
    ]


@pytest.mark.req("C04")
async def test_openais_models_are_what_they_were(stage: Scene) -> None:
    """A model may be called as TensorFlow Serving's paths are."""
    names = ("half", "org/metadata", "org/versions/3", "half/metadata")
    async with FakeEngine(Script(models=names[1:])) as engine:
        stage.house.registry.upsert(
            Node(
                "e", "direct", tuple(ModelInfo(name) for name in names[1:]), state=NodeState.READY, capacity=1
            )
        )
        for name in names:
            one = await stage.look(f"/v1/models/{name}")
            assert (one.status, one.json["object"], one.json["id"]) == (200, "model", name)
        listed = await stage.look("/v1/models")
        assert {model["id"] for model in listed.json["data"]} == set(names)
        assert engine.stats.started == 0
    assert not stage.server.asked
    assert (await stage.look("/v1/models/nowhere")).error["code"] == "model_not_found"
    assert (await stage.look("/v1/models/nowhere/metadata")).error["code"] == "model_not_found"


async def test_names_with_slashes_and_colons_are_one_name_to_the_backend(stage: Scene) -> None:
    stage.server.models = {"org/half:7b": FakeModel({3: "AVAILABLE"})}
    stage.join("t1", stage.server, "org/half:7b")
    for path in ("org/half:7b:predict", "org%2Fhalf%3A7b/versions/3:predict"):
        answer = await stage.ask(f"/v1/models/{path}")
        assert (answer.status, answer.json) == (200, SAID)
    assert [request.path for request in stage.server.predicted] == [
        "/v1/models/org%2Fhalf%3A7b:predict",
        "/v1/models/org%2Fhalf%3A7b/versions/3:predict",
    ]


@pytest.mark.req("C08", "C34")
async def test_each_is_recorded_with_its_operation_and_costs_no_tokens(stage: Scene) -> None:
    await stage.ask(f"{HALF}/versions/2:predict")
    await stage.ask(f"{HALF}:classify", b"{}")
    await stage.look(f"{HALF}/metadata")
    await stage.look(f"{HALF}/versions/9")
    found = await stage.records.recent(10)
    assert [(record.path, record.model, record.http_status, record.status) for record in reversed(found)] == [
        ("/v1/models/{model}:predict", "half", 200, "completed"),
        ("/v1/models/{model}:classify", "half", 400, "failed"),
        ("/v1/models/{model}/metadata", "half", 200, "completed"),
        ("/v1/models/{model}", "half", 404, "failed"),
    ]
    assert {(record.node, record.key_id, record.user_id) for record in found} == {("t0", "key_p", "ann")}
    assert {(record.total_tokens, record.estimated, record.streamed) for record in found} == {
        (0, False, False)
    }


@pytest.mark.req("C29")
async def test_without_a_key_there_is_nothing(stage: Scene) -> None:
    for answer in (
        await stage.ask(key="sk-wrong"),
        await stage.look(f"{HALF}/metadata", key="sk-wrong"),
        await call(stage.house.port, "POST", f"{HALF}:predict", {}, ASK),
    ):
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert not stage.server.predicted
    assert not stage.server.asked


async def test_a_key_for_other_models_may_not(stage: Scene) -> None:
    stage.admit(models=("other-*",))
    for answer in (await stage.ask(), await stage.look(f"{HALF}/versions/1")):
        assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    assert not stage.server.predicted
    assert not stage.server.asked


@pytest.mark.req("C09")
async def test_limits_on_requests_hold_and_tokens_are_not_used(stage: Scene) -> None:
    stage.admit(Limits(requests_per_month=2, tokens_per_month=5))
    for left in ("1", "0"):
        answer = await stage.ask()
        assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, left)
        assert answer.headers["x-ratelimit-remaining-tokens"] == "4", "one is reserved, and given back"
    refused = await stage.ask()
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert len(stage.server.predicted) == 2


WRONG: list[tuple[str, bytes, int, str]] = [
    (f"{HALF}:predict", b"", 400, "not valid JSON"),
    (f"{HALF}:predict", b"[1]", 400, "must be a JSON object"),
    (f"{HALF}:predict", b'{"instances": [1}', 400, "not valid JSON"),
    (f"{HALF}:predict", b'{"instances": "\xff"}', 400, "not valid UTF-8"),
    (f"{HALF}:predict", b"{}", 400, "Missing 'inputs' or 'instances' key"),
    (f"{HALF}/versions/9:predict", ASK, 404, "Servable not found for request: Specific(half, 9)"),
    (f"{HALF}/labels/gone:predict", ASK, 400, "Unrecognized servable version label: gone"),
    ("/v1/models/nowhere:predict", ASK, 404, "does not exist"),
    (f"/v1/models/{'x' * 600}:predict", ASK, 400, "too long"),
    (f"{HALF}:explode", ASK, 405, "doesn't take POST"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG)
async def test_what_is_wrong_is_said_in_our_envelope(
    stage: Scene, path: str, body: bytes, status: int, words: str
) -> None:
    answer = await stage.ask(path, body)
    assert answer.status == status, answer.body
    assert words in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"


async def test_a_body_over_the_limit_is_refused() -> None:
    async with scene(limits=BodyLimits(max_bytes=100)) as stage:
        answer = await stage.ask(body=b'{"instances": [' + b"1," * 100 + b"1]}")
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert not stage.server.predicted


async def test_a_body_that_is_no_json_by_its_type_is_refused(stage: Scene) -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/x-protobuf"}
    answer = await call(stage.house.port, "POST", f"{HALF}:predict", headers, ASK)
    assert answer.error["code"] == "unsupported_media_type"


async def test_chats_go_to_no_model_that_predicts_and_predictions_to_no_other() -> None:
    async with FakeEngine(Script(models=("talker", "both"))) as engine, scene(engine.url) as stage:
        stage.join("t1", stage.server, "both")
        stage.server.models = {**stage.server.models, "both": FakeModel()}
        chat = json.dumps({"model": "half", "messages": [{"role": "user", "content": "hi"}]}).encode()
        answer = await stage.ask("/v1/chat/completions", chat)
        assert (answer.status, answer.error["code"]) == (400, "unsupported_operation")
        assert ":predict" in answer.error["message"]
        answer = await stage.ask("/v1/models/talker:predict")
        assert (answer.status, answer.error["code"]) == (400, "unsupported_operation")
        assert (engine.stats.started, len(stage.server.predicted)) == (0, 0)
        for _ in range(4):  # where a name is both's, each goes where it can be answered
            predicted = await stage.ask("/v1/models/both:predict")
            chatted = await stage.ask("/v1/chat/completions", chat.replace(b"half", b"both"))
            assert (predicted.json, chatted.status) == (SAID, 200)
            assert (predicted.headers["x-headrace-node"], chatted.headers["x-headrace-node"]) == ("t1", "b0")


@pytest.mark.req("C35")
async def test_an_alias_is_another_name_for_the_path() -> None:
    route = Route("r", "doubt-*", (Target(model="half"),))
    async with scene(routes=Fixed(route)) as stage:
        answer = await stage.ask("/v1/models/doubt-ful/versions/2:predict")
        assert (answer.status, answer.json) == (200, SAID)
        assert stage.server.predicted[0].target == f"{HALF}/versions/2:predict"
        assert (await stage.look("/v1/models/doubt-ful/metadata")).json["model_spec"]["name"] == "half"
        [record, *_] = await stage.records.recent(1)
        assert record.model == "doubt-ful"
        told = stage.house.control.explain("doubt-ful", ())
        assert "t0" in json.dumps(told)


async def test_the_other_backend_is_used_when_one_is_gone(stage: Scene) -> None:
    async with FakeTfServing() as second:
        stage.join("t1", second)
        await stage.server.__aexit__(None, None, None)
        answers = [await stage.ask() for _ in range(2)]
        assert [(one.status, one.headers.get("x-headrace-node")) for one in answers] == [(200, "t1")] * 2
        assert {one.headers["x-headrace-attempts"] for one in answers} >= {"2"}, (
            "one was sent to the other first"
        )
        assert len(second.predicted) == 2
        await stage.server.__aenter__()


async def test_a_backend_that_is_down_is_503(stage: Scene) -> None:
    node = stage.house.registry.get("t0")
    assert node is not None
    stage.house.registry.update("t0", NodeState.DOWN, "It is gone.")
    answer = await stage.ask()
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_backend")
    assert "retry-after" in answer.headers


FAULTS: list[tuple[int, str, int, str | None]] = [
    (400, "input must be 4-dimensional", 400, None),
    (500, "Op type not registered", 502, "upstream_failed"),
    (503, "something else", 502, "upstream_failed"),
    (429, "OOM when allocating tensor with shape[1]", 502, "upstream_failed"),
    (504, "Timed out", 502, "upstream_failed"),
    (501, "Method not implemented", 400, "unsupported"),
]


@pytest.mark.parametrize(("status", "message", "told", "code"), FAULTS)
async def test_what_the_backend_says(
    stage: Scene, status: int, message: str, told: int, code: str | None
) -> None:
    stage.server.fault = status, message
    answer = await stage.ask()
    assert (answer.status, answer.error["code"]) == (told, code)
    assert message in answer.error["message"]
    assert len(stage.server.predicted) == 1, "it may have begun: it isn't sent again"


BUSY = [
    (503, "The batch scheduling queue to which this task was submitted is full"),
    (404, "Servable not found for request: Latest(half)"),
    (429, "Too many requests"),
]


@pytest.mark.parametrize("fault", BUSY)
async def test_what_was_not_begun_goes_elsewhere(stage: Scene, fault: tuple[int, str]) -> None:
    stage.server.fault = fault
    async with FakeTfServing() as second:
        stage.join("t1", second)
        for _ in range(2):
            answer = await stage.ask()
            assert (answer.status, answer.headers["x-headrace-node"]) == (200, "t1")
        assert stage.server.predicted, "it was tried"


STRANGE: list[tuple[bytes, bytes, str]] = [
    (b"text/html", b"<p>Welcome!</p>", "answered with text/html"),
    (b"application/json", b"", "empty"),
]


@pytest.mark.parametrize(("type_", "body", "words"), STRANGE)
async def test_what_is_no_answer_is_a_failure(stage: Scene, type_: bytes, body: bytes, words: str) -> None:
    async with HttpPeer() as peer:
        opened = KIND.open(BackendSpec("x", peer.url, models=("m",)), SystemClock())
        stage.house.connectors["x"] = opened.connector
        node = Node("x", "direct", (ModelInfo("m"),), state=NodeState.READY, api=Api.PREDICTION)
        stage.house.registry.upsert(node)
        async with RawClient(stage.house.port) as client:
            client.request("POST", "/v1/models/m:predict", {"authorization": f"Bearer {KEY}"}, ASK)
            connection = await peer.connection()
            await connection.request()
            head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (type_, len(body))
            connection.send(head + body)
            answer = await client.response()
        assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
        assert words in answer.error["message"]


async def test_who_leaves_keeps_the_slot_for_as_long_as_the_backend_works() -> None:
    """TensorFlow Serving doesn't stop: another request in its place would be one too many."""
    async with scene(capacity=1, wait_s=20) as stage:
        stage.server.hangs = True
        async with RawClient(stage.house.port) as client:
            client.request("POST", f"{HALF}:predict", {"authorization": f"Bearer {KEY}"}, ASK)
            await stage.server.until(lambda: len(stage.server.predicted) == 1)
        async with RawClient(stage.house.port) as second:
            second.request("POST", f"{HALF}:predict", {"authorization": f"Bearer {KEY}"}, ASK)
            await until(lambda: stage.house.control.waiting == 1)
            assert (stage.house.control.running, len(stage.server.predicted)) == (1, 1)
            stage.server.hangs = False
            stage.server.release()
            assert (await second.response()).status == 200
        assert (stage.server.finished, stage.server.left) == (2, 0)
        statuses = sorted(record.status for record in await stage.records.recent(5))
        assert statuses == ["cancelled", "completed"]


async def test_who_leaves_is_seen_by_a_backend_that_stops() -> None:
    async with scene(stops=True) as stage:
        stage.server.hangs = True
        async with RawClient(stage.house.port) as client:
            client.request("POST", f"{HALF}:predict", {"authorization": f"Bearer {KEY}"}, ASK)
            await stage.server.until(lambda: len(stage.server.predicted) == 1)
        await until(lambda: stage.house.control.running == 0)
        stage.server.release()
        await stage.server.until(lambda: stage.server.left == 1)
        assert not stage.house.inference.active


async def test_a_large_answer_comes_whole(stage: Scene) -> None:
    numbers = b",".join([b"1"] * 200_000)
    answer = await stage.ask(body=b'{"instances": [' + numbers + b"]}")
    assert (answer.status, len(answer.json["predictions"])) == (200, 200_000)


async def test_models_are_offered_as_the_server_has_them(stage: Scene) -> None:
    """From the settings' names to the requests: those that are there, those that load, and those that aren't."""
    stage.server.models = {"half": FakeModel(), "soon": FakeModel({1: "LOADING"})}
    spec = BackendSpec("t9", stage.server.url, models=("half", "soon", "gone"))
    opened = KIND.open(spec, SystemClock())
    stage.house.registry.remove("t0")
    stage.house.connectors["t9"] = opened.connector
    node = Node("t9", "direct", capacity=4, kind="tf-serving", api=opened.connector.traits.api)
    discovery = Discovery(stage.house.registry, pace=Pace(interval_s=0.05, soon_s=0.01))
    try:
        await discovery.start([Watched(node, opened.prober, spec.models)], first_round_s=20)
        listed = await stage.look("/v1/models")
        assert [model["id"] for model in listed.json["data"]] == ["half", "soon"]
        assert (await stage.ask()).json == SAID
        assert (await stage.ask("/v1/models/gone:predict")).error["code"] == "model_not_found"
        async with RawClient(stage.house.port) as client:  # it waits until the model is there
            client.request("POST", "/v1/models/soon:predict", {"authorization": f"Bearer {KEY}"}, ASK)
            await stage.server.until(lambda: any("soon" in one.path for one in stage.server.predicted))
            stage.server.models = {"half": FakeModel(), "soon": FakeModel()}
            assert (await client.response()).json == SAID
    finally:
        await discovery.close()
