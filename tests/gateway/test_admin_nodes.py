"""`/admin/runtimes` over real HTTP: who may see it, and what it says of backends that work, fail, load and refuse."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.kernel.clock import SystemClock
from headrace.testing import FakeEngine, Script
from headrace.testing.fake_engine import Cut, Refuse
from support.administration import ADMIN_KEY, Office, administered
from support.house import KEY, House
from support.raw import RawClient, call
from support.waiting import until

CHAT = "/v1/chat/completions"


@dataclass
class Desk:
    """Somebody at an administered gateway."""

    house: House
    office: Office

    async def ask(self, path: str = "/admin/runtimes", *, status: int = 200) -> Any:
        """The JSON that comes; of an error, what is in it."""
        answer = await call(self.house.port, "GET", path, {"authorization": f"Bearer {ADMIN_KEY}"})
        assert answer.status == status, answer.body
        return answer.error if status >= 400 else answer.json

    async def chat(self, model: str, *, stream: bool = True) -> int:
        """The status of a whole exchange."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        answer = await call(self.house.port, "POST", CHAT, self.house.auth, msgspec.json.encode(body))
        return answer.status


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    office = Office()
    async with (
        FakeEngine(Script(models=("fake", "org/other:7b"), tokens=5)) as engine,
        administered(engine.url, office=office) as house,
    ):
        yield Desk(house, office)


@pytest.mark.req("C05")
@pytest.mark.parametrize("path", ["/admin/runtimes", "/admin/runtimes/b0", "/admin/runtimes/nobody"])
async def test_only_admin_keys_see_it(desk: Desk, path: str) -> None:
    assert (await call(desk.house.port, "GET", path)).status == 401
    assert (await call(desk.house.port, "GET", path, {"authorization": f"Bearer {KEY}"})).status == 403
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await call(desk.house.port, method, path, {"authorization": f"Bearer {ADMIN_KEY}"}, b"{}")
        assert answer.status == 405


@pytest.mark.req("C05", "C12")
async def test_a_backend_that_works(desk: Desk) -> None:
    before = datetime.now(UTC)
    assert [await desk.chat("fake") for _ in range(2)] == [200, 200]
    listed = await desk.ask()
    assert (listed["object"], listed["has_more"], len(listed["data"])) == ("list", False, 1)
    runtime = listed["data"][0]
    since = datetime.fromisoformat(runtime.pop("since"))
    assert since.utcoffset() == timedelta(0)
    assert before - timedelta(minutes=5) < since < datetime.now(UTC)
    latencies = runtime.pop("latencies")
    assert list(latencies) == ["fake"]
    assert latencies["fake"]["first_token_s"] > 0
    assert latencies["fake"]["between_tokens_s"] > 0
    assert runtime == {
        "id": "b0",
        "kind": "openai",
        "connector": "direct",
        "state": "ready",
        "healthy": True,
        "detail": "",
        "ready_in_s": None,
        "tags": [],
        "weight": 1.0,
        "capacity": 64,
        "slots": 64,
        "busy": 0,
        "breaker": {"state": "closed", "openings": 0, "failures": 0, "changes_in_s": None},
        "executions": 2,
        "failures": {},
        "loads_held": 0,
        "models": [{"id": "fake", "loaded": None}, {"id": "org/other:7b", "loaded": None}],
        "last_error": "",
        "last_error_at": None,
    }
    assert await desk.ask("/admin/runtimes/b0") == listed["data"][0] | {
        "since": since.isoformat().replace("+00:00", "Z"),
        "latencies": latencies,
    }


@pytest.mark.req("C05")
async def test_what_runs_now_is_seen() -> None:
    office = Office()
    async with (
        FakeEngine(Script(tokens=100_000, interval_s=0.05)) as slow,
        administered(slow.url, office=office) as house,
        RawClient(house.port) as client,
    ):
        body = b'{"model":"fake","messages":[{"role":"user","content":"hi"}],"stream":true}'
        client.request("POST", CHAT, house.auth, body)
        await until(lambda: house.control.running == 1)
        runtime = await Desk(house, office).ask("/admin/runtimes/b0")
        assert (runtime["busy"], runtime["slots"], runtime["executions"]) == (1, 64, 1)
        assert runtime["latencies"] == {}, "nothing has ended yet"


@pytest.mark.req("C05")
async def test_models_say_whether_they_are_loaded_and_ids_may_have_slashes(desk: Desk) -> None:
    models = (ModelInfo("hot"), ModelInfo("cold"))
    node = Node(
        "local/smollm2", "engine", models, 4, frozenset({"gpu", "eu"}), NodeState.LOADING,
        detail="It is loading its model.", ready_in_s=2.5, weight=0.5, loaded=frozenset({"hot"}), kind="ollama",
    )  # fmt: skip
    desk.house.registry.upsert(node)
    for path in ("/admin/runtimes/local/smollm2", "/admin/runtimes/local%2Fsmollm2"):
        runtime = await desk.ask(path)
        assert runtime["id"] == "local/smollm2"
        assert runtime["models"] == [{"id": "hot", "loaded": True}, {"id": "cold", "loaded": False}]
        assert (runtime["kind"], runtime["connector"], runtime["tags"]) == ("ollama", "engine", ["eu", "gpu"])
        assert (runtime["state"], runtime["healthy"], runtime["slots"]) == ("loading", False, 0)
        assert (runtime["detail"], runtime["ready_in_s"], runtime["weight"]) == (node.detail, 2.5, 0.5)


@pytest.mark.req("C05")
async def test_a_node_that_is_not_there_is_told_with_those_that_look_like_it(desk: Desk) -> None:
    error = await desk.ask("/admin/runtimes/b1", status=404)
    assert error["message"] == "There is no node 'b1'. Did you mean b0?"
    assert (await desk.ask("/admin/runtimes/", status=404))["message"] == "There is no node ''."
    assert (await desk.ask("/admin/runtimes?state=ready", status=400))["param"] == "state"
    assert (await desk.ask("/admin/runtimes/b0?limit=1", status=400))["param"] == "limit"


@pytest.mark.req("C05")
async def test_the_list_is_paged_by_id(desk: Desk) -> None:
    for name in ("z", "a/1", "B"):
        desk.house.registry.upsert(Node(name, "direct"))
    found, query = [], "limit=2"
    while True:
        page = await desk.ask(f"/admin/runtimes?{query}")
        assert len(page["data"]) <= 2
        found += [runtime["id"] for runtime in page["data"]]
        if not page["has_more"]:
            break
        query = f"limit=2&after={found[-1]}"
    assert found == ["B", "a/1", "b0", "z"]


@pytest.mark.req("C05")
async def test_what_failed_is_told_by_how_with_the_last_of_it() -> None:
    office = Office()
    async with (
        FakeEngine(Script(fault=Cut())) as cutting,
        FakeEngine(Script(models=("other",), fault=Refuse(429))) as busy,
        administered(cutting.url, busy.url, office=office) as house,
    ):
        desk = Desk(house, office)
        before = datetime.now(UTC)
        for number in range(1, 6):
            assert await desk.chat("fake") == 502
            runtime = await desk.ask("/admin/runtimes/b0")
            assert runtime["failures"] == {"lost": number}
            assert runtime["executions"] == number
        assert runtime["breaker"]["state"] in ("open", "half-open")  # the latter when its first pause is over
        assert runtime["breaker"]["openings"] == 1
        assert runtime["breaker"]["failures"] == 5
        assert 0 <= (runtime["breaker"]["changes_in_s"] or 0) <= 1
        assert (runtime["state"], runtime["healthy"]) == ("ready", False)
        assert runtime["slots"] <= 1
        assert runtime["last_error"]
        assert before <= datetime.fromisoformat(runtime["last_error_at"]) <= datetime.now(UTC)
        async with RawClient(house.port) as client:
            body = b'{"model":"other","messages":[{"role":"user","content":"hi"}]}'
            client.request("POST", CHAT, house.auth, body)
            await until(lambda: house.control.waiting == 1)
            runtime = await desk.ask("/admin/runtimes/b1")
            assert runtime["failures"] == {"busy": 1}
            assert (runtime["healthy"], runtime["last_error"]) == (True, "")


async def test_a_backend_that_refuses_our_key_is_left_alone_at_once_and_another_answers() -> None:
    office = Office()
    refusal = Refuse(401, json.dumps({"error": {"message": "Incorrect API key provided: sk-secret"}}))
    async with (
        FakeEngine(Script(fault=refusal)) as refusing,
        FakeEngine(Script()) as answering,
        administered(refusing.url, answering.url, office=office) as house,
    ):
        desk = Desk(house, office)
        for _ in range(2):  # round-robin: one of the two begins at the one that refuses
            assert await desk.chat("fake") == 200
        first, second = (await desk.ask())["data"]
        assert first["failures"] == {"key_refused": 1}
        assert first["breaker"]["openings"] == 1
        assert first["healthy"] is False
        assert first["last_error"] == "The backend refused our credentials (401)."
        assert "sk-secret" not in json.dumps(first)
        assert (second["executions"], second["failures"], second["healthy"]) == (2, {}, True)
        assert house.control.totals.retries["NotSent"] == 1


async def test_what_is_told_of_a_backend_holds_no_key_of_ours() -> None:
    office = Office()
    async with FakeEngine(Script(api_key="sk-other", fault=Refuse(401))) as engine:
        secret = [(b"authorization", b"Bearer sk-secret")]
        connector = DirectConnector(Endpoint.parse(engine.url), clock=SystemClock(), headers=secret)
        async with administered(office=office) as house:
            house.connectors["local/fake"] = connector
            models = (ModelInfo("fake"),)
            house.registry.upsert(Node("local/fake", "engine", models, state=NodeState.READY))
            desk = Desk(house, office)
            assert await desk.chat("fake") == 502
            refused = await desk.ask("/admin/runtimes/local/fake")
            assert refused["failures"] == {"key_refused": 1}
            await engine.stop()
            await until(lambda: house.control.health.slots["local/fake"] == 1)
            assert await desk.chat("fake") in (502, 503)
            gone = await desk.ask("/admin/runtimes/local/fake")
            assert gone["failures"] == {"key_refused": 1, "not_sent": 1}
            assert gone["last_error"]
            assert "secret" not in json.dumps([refused, gone])
