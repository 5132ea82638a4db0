"""`/admin/routes` over real HTTP: who may use it, and what it does to where requests go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from headrace.testing import FakeEngine, Script
from support.administration import ADMIN_KEY, Office, administered
from support.house import KEY, House
from support.raw import call

ROUTES = [
    ("GET", "/admin/routes"),
    ("POST", "/admin/routes"),
    ("GET", "/admin/routes/pinned"),
    ("PUT", "/admin/routes/other"),
    ("PATCH", "/admin/routes/pinned"),
    ("DELETE", "/admin/routes/pinned"),
    ("POST", "/admin/routes/test"),
]
USUAL = {
    "selector": "any",
    "strategy": "least-busy",
    "target": "",
    "weights": {},
    "tokens_per_day": 0,
    "priority": 0,
    "reruns": False,
    "timeouts": {"connect": None, "first_byte": None, "idle": None, "total": None},
    "fallbacks": [],
    "static": False,
}
FALLBACK = {
    "selector": "node:hosted",
    "model": "gpt",
    "strategy": "prefix",
    "weights": {"hosted": 1.0},
    "when_busy": True,
    "tokens_per_day": 5,
}


@dataclass
class Desk:
    """Somebody at an administered gateway."""

    house: House
    office: Office

    async def ask(
        self, method: str, path: str, body: object = None, *, key: str = ADMIN_KEY, status: int = 200
    ) -> Any:
        """The JSON that comes; of an error, what is in it."""
        data = msgspec.json.encode(body) if body is not None else None
        answer = await call(self.house.port, method, path, {"authorization": f"Bearer {key}"}, data)
        assert answer.status == status, answer.body
        assert answer.headers.get("cache-control") == "no-store" or status >= 400
        return answer.error if status >= 400 else answer.json

    def goes(self, model: str) -> str | None:
        """The route that counts now."""
        found = self.office.route_book.route_for(model)
        return found.id if found else None


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    office = Office()
    async with (
        FakeEngine(Script(models=("fake", "llama-3"), tokens=2)) as engine,
        administered(engine.url, office=office) as house,
    ):
        yield Desk(house, office)


class TestWhoMay:
    @pytest.mark.req("C29")
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    async def test_an_inference_key_sees_and_changes_nothing(
        self, desk: Desk, method: str, path: str
    ) -> None:
        body = {"model": "fake"} if method not in ("GET", "DELETE") else None
        for key, status, code in ((KEY, 403, "forbidden"), ("sk-wrong", 401, "invalid_api_key")):
            assert (await desk.ask(method, path, body, key=key, status=status))["code"] == code
        assert await desk.office.routes.routes() == []


class TestRoutes:
    @pytest.mark.req("C35", "C19")
    async def test_from_its_beginning_to_its_end(self, desk: Desk) -> None:
        made = await desk.ask(
            "POST", "/admin/routes", {"model": "llama-*", "selector": "node:a, b"}, status=201
        )
        assert made == USUAL | {"id": "llama", "model": "llama-*", "selector": "node:a,b"}
        assert desk.goes("llama-3") == "llama"
        assert await desk.ask("GET", "/admin/routes/llama") == made
        listed = await desk.ask("GET", "/admin/routes")
        assert [(one["id"], one["static"]) for one in listed["data"]] == [("llama", False), ("pinned", True)]

        put = {"model": "llama-3", "fallbacks": [FALLBACK], "timeouts": {"idle": "1m"}, "reruns": True}
        replaced = await desk.ask("PUT", "/admin/routes/llama", put)
        timeouts = USUAL["timeouts"] | {"idle": 60.0}  # type: ignore[operator]
        assert replaced == USUAL | put | {"id": "llama", "timeouts": timeouts}
        assert desk.goes("llama-4") is None

        assert await desk.ask("DELETE", "/admin/routes/llama") == {"id": "llama", "deleted": True}
        assert desk.goes("llama-3") is None
        assert (await desk.ask("GET", "/admin/routes/llama", status=404))["code"] == "not_found"
        assert (await desk.ask("DELETE", "/admin/routes/llama", status=404))["code"] == "not_found"

    async def test_a_change_leaves_what_it_does_not_name(self, desk: Desk) -> None:
        given = {"id": "r", "model": "m", "fallbacks": [FALLBACK], "timeouts": {"idle": 5, "total": 9}}
        made = await desk.ask("POST", "/admin/routes", given, status=201)
        changed = await desk.ask(
            "PATCH", "/admin/routes/r", {"priority": 3, "timeouts": {"total": None, "connect": "250ms"}}
        )
        assert changed == made | {
            "priority": 3,
            "timeouts": {"connect": 0.25, "first_byte": None, "idle": 5.0, "total": None},
        }
        await desk.ask("PATCH", "/admin/routes/x", {"priority": 3}, status=404)

    async def test_what_was_read_can_be_sent_back(self, desk: Desk) -> None:
        given = {"id": "r", "model": "m", "fallbacks": [FALLBACK], "weights": {"a": 2, "local/b:8": 0.5}}
        made = await desk.ask("POST", "/admin/routes", given, status=201)
        assert await desk.ask("PUT", "/admin/routes/r", made) == made
        assert await desk.ask("PATCH", "/admin/routes/r", made) == made
        await desk.ask("DELETE", "/admin/routes/r")
        assert await desk.ask("PUT", "/admin/routes/r", made, status=201) == made

    async def test_one_may_be_called_test(self, desk: Desk) -> None:
        await desk.ask("PUT", "/admin/routes/test", {"model": "m"}, status=201)
        assert (await desk.ask("GET", "/admin/routes/test"))["model"] == "m"
        await desk.ask("DELETE", "/admin/routes/test")

    async def test_they_are_listed_page_by_page(self, desk: Desk) -> None:
        for name in "abc":
            await desk.ask("PUT", f"/admin/routes/{name}", {"model": name}, status=201)
        first = await desk.ask("GET", "/admin/routes?limit=2")
        second = await desk.ask("GET", "/admin/routes?limit=2&after=b")
        pages = [([one["id"] for one in page["data"]], page["has_more"]) for page in (first, second)]
        assert pages == [(["a", "b"], True), (["c", "pinned"], False)]

    async def test_each_change_is_logged_with_who_did_it(self, desk: Desk) -> None:
        with capture_logs() as logs:
            await desk.ask("POST", "/admin/routes", {"model": "m"}, status=201)
            await desk.ask("PATCH", "/admin/routes/m", {"priority": 1})
            await desk.ask("PUT", "/admin/routes/m", {"model": "m"})
            await desk.ask("DELETE", "/admin/routes/m")
        told = [(log["action"], log["route"]) for log in logs if log["action"].startswith("route.")]
        actions = ("route.created", "route.changed", "route.put", "route.deleted")
        assert told == [(action, "m") for action in actions]
        assert all(log["by"] for log in logs if log["action"].startswith("route."))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "param", "message"),
        [
            ({"model": ""}, "model", "is not the name of a model or a pattern"),
            ({"model": 3}, "model", "should be a valid string"),
            ({"selector": "gpu"}, "selector", "'gpu' is not a selector: write 'any', 'tag:gpu'"),
            ({"strategy": "fastest"}, "strategy", "should be 'round-robin', "),
            ({"weights": {"a": -1}}, "weights", "the weight of 'a' has to be 0 or more"),
            ({"weights": {"a": "x"}}, "weights.a", "should be a valid number"),
            ({"id": "a/b"}, "id", "'a/b' is not a name"),
            ({"timeouts": {"idle": 0}}, "timeouts.idle", "should be greater than 0"),
            ({"timeouts": {"idle": "soon"}}, "timeouts.idle", "'soon' is not a duration"),
            ({"fallbacks": [{}, {"selector": "x"}]}, "fallbacks.1.selector", "'x' is not a selector"),
            ({"fallbacks": [{}] * 17}, "fallbacks", "should have at most 16 items"),
            ({"selctor": "any"}, "selctor", "is no member of a route"),
            ({"tokens_per_day": 2**60}, "tokens_per_day", "should be less than"),
        ],
    )
    async def test_the_answer_names_the_member(
        self, desk: Desk, changes: dict[str, object], param: str, message: str
    ) -> None:
        await desk.ask("POST", "/admin/routes", {"model": "m", "id": "r"}, status=201)
        for method, path in (("POST", "/admin/routes"), ("PATCH", "/admin/routes/r")):
            body = {"model": "m", **changes} if method == "POST" else changes
            if method == "PATCH" and "id" in changes:
                continue
            error = await desk.ask(method, path, body, status=400)
            assert (error["param"], message in error["message"]) == (param, True), error
        assert len(await desk.office.routes.routes()) == 1

    async def test_a_model_is_needed(self, desk: Desk) -> None:
        error = await desk.ask("POST", "/admin/routes", {}, status=400)
        assert (error["param"], error["message"]) == ("model", "'model' is missing.")
        await desk.ask("POST", "/admin/routes", [], status=400)

    async def test_one_that_is_there_is_not_made_again_nor_renamed(self, desk: Desk) -> None:
        body = {"model": "m", "id": "r"}
        await desk.ask("POST", "/admin/routes", body, status=201)
        assert (await desk.ask("POST", "/admin/routes", body, status=400))["code"] == "already_exists"
        for method in ("PUT", "PATCH"):
            error = await desk.ask(method, "/admin/routes/r", body | {"id": "s"}, status=400)
            assert error["param"] == "id"
        await desk.ask("PUT", "/admin/routes/a%20b", {"model": "m"}, status=400)

    async def test_one_of_the_settings_stays_as_it_is(self, desk: Desk) -> None:
        for method, body in (("PUT", {"model": "m"}), ("PATCH", {"priority": 1}), ("DELETE", None)):
            error = await desk.ask(method, "/admin/routes/pinned", body, status=400)
            assert error["code"] == "static_route"
        assert (
            desk.goes("m"),
            desk.goes("pinned-1"),
            (await desk.ask("GET", "/admin/routes/pinned"))["static"],
        ) == (None, "pinned", True)

    async def test_while_the_database_fails_nothing_is_changed(self, desk: Desk) -> None:
        await desk.ask("PUT", "/admin/routes/r", {"model": "m"}, status=201)
        desk.office.routes.failing = True
        for method, body in (("PUT", {"model": "n"}), ("DELETE", None), ("GET", None)):
            assert (await desk.ask(method, "/admin/routes/r", body, status=503))["code"] == "unavailable"
        assert desk.goes("m") == "r"


class TestTrial:
    @pytest.mark.req("C16", "C35")
    async def test_it_tells_the_route_and_where_it_would_go_now(self, desk: Desk) -> None:
        free = await desk.ask("POST", "/admin/routes/test", {"model": "fake"})
        assert free == {
            "model": "fake",
            "tags": [],
            "route": None,
            "targets": [{"selector": "any", "model": "fake", "backends": [{"id": "b0", "state": "ready"}]}],
        }
        made = await desk.ask(
            "POST", "/admin/routes", {"model": "f*", "target": "llama-3", "selector": "node:b*"}, status=201
        )
        found = await desk.ask("POST", "/admin/routes/test", {"model": "foo", "tags": ["gpu"]})
        assert found == {
            "model": "foo",
            "tags": ["gpu"],
            "route": made,
            "targets": [{"selector": "node:b*", "model": "llama-3", "backends": []}],
        }
        assert (await desk.ask("POST", "/admin/routes/test", {"model": "foo"}))["targets"][0]["backends"]

    async def test_what_a_request_means_is_told_by_who_knows(self) -> None:
        """The route is that of the model without the tags behind its name."""
        meant = {"model": "pinned-1", "tags": ["gpu"], "targets": []}
        office = Office(explain=lambda model, _tags: meant if model == "pinned-1@gpu" else {})
        async with administered(office=office) as house:
            told = await Desk(house, office).ask("POST", "/admin/routes/test", {"model": "pinned-1@gpu"})
        assert (told.pop("route")["id"], told) == ("pinned", meant)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "model"),
            ({"model": ""}, "model"),
            ({"model": "m", "tags": ["a b"]}, "tags[0]"),
            ({"model": "m", "tags": ["a"] * 9}, "tags"),
            ({"model": "m", "x": 1}, "x"),
        ],
    )
    async def test_what_is_none_is_refused(self, desk: Desk, body: dict[str, object], param: str) -> None:
        assert (await desk.ask("POST", "/admin/routes/test", body, status=400))["param"] == param
