"""Routes: which counts, what is changed is heeded at once, and what another process changes soon after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from headrace.control.registry import Registry
from headrace.control.routes import MOST_NAMES, MOST_ROUTES, RouteBook, RouteTable, explanation
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.routing import Route, Selector, Target, best_route, id_for
from headrace.kernel.aio import Tasks
from headrace.kernel.errors import InvalidRequest, NotFound, Unavailable
from headrace.testing.routes import MemoryRoutes
from support.waiting import until


def route(route_id: str, model: str, priority: int = 0, target: str = "", selector: str = "any") -> Route:
    return Route(route_id, model, (Target(Selector.parse(selector), target),), priority)


STATIC = replace(route("static", "static-*"), static=True)


@dataclass
class Process:
    """One process with a book, at a database that it may share with others."""

    kept: MemoryRoutes = field(default_factory=MemoryRoutes)
    static: Sequence[Route] = (STATIC,)
    changes: int = 0

    def __post_init__(self) -> None:
        self.book = RouteBook(self.kept, self.static)
        self.book.on_change(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def goes(self, model: str) -> str | None:
        found = self.book.route_for(model)
        return found.id if found else None


@pytest.fixture
def process() -> Process:
    return Process()


class TestWhichCounts:
    @pytest.mark.req("C35", "C19")
    @pytest.mark.parametrize(
        ("model", "counts"),
        [
            ("llama", "exact"),
            ("llama-3", "long"),
            ("llama-33", "short"),
            ("llamas", "short"),
            ("gpt", "all"),
            ("qwen", "first"),
        ],
    )
    def test_priority_then_an_exact_name_then_the_longest_pattern(self, model: str, counts: str) -> None:
        routes = [
            route("all", "*"),
            route("short", "llama*"),  # longer than the name that it isn't to win over
            route("long", "llama-?"),
            route("exact", "llama"),
            route("other", "qwen"),
            route("first", "q*", priority=1),
        ]
        for order in (routes, routes[::-1]):
            found = RouteTable(order).find(model)
            assert found is not None
            assert found.id == counts
            assert best_route(order, model) == found

    def test_where_none_is_about_it_there_is_none(self) -> None:
        assert RouteTable([route("a", "llama-*")]).find("llama") is None
        assert RouteTable([]).find("llama") is None

    @given(
        st.lists(
            st.tuples(st.text("ab*?", min_size=1, max_size=4), st.integers(-1, 1)), max_size=8, unique=True
        ),
        st.text("ab", max_size=4),
    )
    def test_the_table_says_what_looking_through_all_of_them_says(
        self, patterns: list[tuple[str, int]], model: str
    ) -> None:
        routes = [route(f"r{i}", pattern, priority) for i, (pattern, priority) in enumerate(patterns)]
        assert RouteTable(routes).find(model) == best_route(routes, model)

    def test_aliases_are_the_names_that_lead_to_another(self) -> None:
        table = RouteTable(
            [
                route("b", "small", target="llama-1"),
                route("a", "big", target="llama-70"),
                route("c", "plain"),
                route("d", "many-*", target="x"),
                route("e", "hidden", target="x"),
                route("f", "hid*", priority=1),
            ]
        )
        assert table.aliases == {"big": "llama-70", "small": "llama-1"}

    def test_an_id_is_made_of_the_pattern(self) -> None:
        assert id_for("llama-*", ()) == "llama"
        assert id_for("meta/llama-*:8b?", {"llama"}) == "meta-llama-8b"
        assert id_for("*", ()) == "all"
        assert id_for("*", {"all", "all-2"}) == "all-3"
        assert len(id_for("x" * 300, {"x" * 48})) == 50


class TestAtOnce:
    @pytest.mark.req("C35")
    async def test_a_route_counts_from_its_creation_until_it_is_removed(self, process: Process) -> None:
        assert process.goes("llama-3") is None
        made = await process.book.create(route("", "llama-*"))
        assert (made.id, process.goes("llama-3")) == ("llama", "llama")
        assert await process.book.put(route("llama", "qwen-*")) is False
        assert (process.goes("llama-3"), process.goes("qwen-1")) == (None, "llama")
        await process.book.change("llama", lambda one: replace(one, model="llama-3"))
        assert (process.goes("llama-3"), process.goes("qwen-1")) == ("llama", None)
        assert await process.book.put(route("more", "*", target="x")) is True
        assert process.goes("qwen-1") == "more"
        for route_id in ("llama", "more"):
            await process.book.remove(route_id)
        assert process.goes("llama-3") is None
        assert process.changes == 6

    async def test_what_is_listed_is_what_counts(self, process: Process) -> None:
        await process.book.create(route("b", "m", target="x"))
        assert [one.id for one in await process.book.routes()] == ["b", "static"]
        assert process.book.aliases() == {"m": "x"}
        assert sorted(one.id for one in process.book.in_force) == ["b", "static"]
        assert await process.book.route("static") == STATIC
        assert (await process.book.route("b")).model == "m"
        with pytest.raises(NotFound):
            await process.book.route("c")

    async def test_listeners_are_not_told_where_nothing_changed(self, process: Process) -> None:
        await process.book.create(route("b", "m"))
        await process.book.put(route("b", "m"))
        await process.book.refresh()
        assert process.changes == 1

    async def test_two_of_one_pattern_get_ids_of_their_own(self, process: Process) -> None:
        made = [(await process.book.create(route("", pattern))).id for pattern in ("m", "m*", "static")]
        assert made == ["m", "m-2", "static-2"]

    async def test_changes_at_once_are_all_kept(self, process: Process) -> None:
        await asyncio.gather(*(process.book.create(route("", "m")) for _ in range(5)))
        await asyncio.gather(
            process.book.change("m", lambda one: replace(one, priority=7)),
            process.book.change("m", lambda one: replace(one, reruns=True)),
        )
        found = await process.book.route("m")
        assert (len(await process.book.routes()), found.priority, found.reruns) == (6, 7, True)


class TestWhatCannotBe:
    async def test_one_of_the_settings_is_changed_there_only(self, process: Process) -> None:
        for refused in (
            process.book.create(route("static", "m")),
            process.book.put(route("static", "m")),
            process.book.change("static", lambda one: one),
            process.book.remove("static"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await refused
            assert caught.value.param == "id"
        assert (await process.kept.routes(), process.changes) == ([], 0)

    async def test_one_that_is_there_is_not_created_again(self, process: Process) -> None:
        await process.book.create(route("a", "m"))
        with pytest.raises(InvalidRequest, match="already"):
            await process.book.create(route("a", "n"))
        assert process.goes("m") == "a"

    async def test_what_is_not_there_is_not_changed(self, process: Process) -> None:
        with pytest.raises(NotFound):
            await process.book.change("a", lambda one: one)
        with pytest.raises(NotFound):
            await process.book.remove("a")

    async def test_one_of_the_settings_hides_a_kept_one_of_its_id(self) -> None:
        kept = MemoryRoutes()
        await kept.save_route(route("static", "m"))
        process = Process(kept)
        with capture_logs() as logs:
            await process.book.refresh()
        assert (process.goes("m"), process.goes("static-1")) == (None, "static")
        assert [log["action"] for log in logs] == ["routes.hidden"]

    async def test_there_is_a_most_of_them(self, process: Process) -> None:
        for number in range(MOST_ROUTES):
            await process.kept.save_route(route(f"r{number}", "m"))
        await process.book.refresh()
        for refused in (process.book.create(route("", "n")), process.book.put(route("n", "n"))):
            with pytest.raises(InvalidRequest, match="1000 routes already"):
                await refused
        assert await process.book.put(route("r1", "n")) is False
        assert process.goes("n") == "r1"

    async def test_while_the_database_fails_what_was_known_counts(self, process: Process) -> None:
        await process.book.create(route("a", "m"))
        process.kept.failing = True
        for refused in (process.book.remove("a"), process.book.put(route("a", "n")), process.book.refresh()):
            with pytest.raises(Unavailable):
                await refused
        assert (process.goes("m"), process.goes("n")) == ("a", None)


class TestSeveralProcesses:
    @pytest.mark.req("C35")
    async def test_what_another_one_changes_counts_soon_after(self, process: Process) -> None:
        other = Process(process.kept)
        async with Tasks() as tasks:
            tasks.spawn(other.book.follow(), name="follow")
            await process.book.create(route("a", "m"))
            await until(lambda: other.goes("m") == "a")
            process.kept.failing = True
            with capture_logs() as logs:
                await until(lambda: any(log["action"] == "routes.stale" for log in logs))
            process.kept.failing = False
            await process.book.remove("a")
            await until(lambda: other.goes("m") is None)
        assert other.changes == 2


class TestNames:
    async def test_what_is_remembered_has_a_bound(self, process: Process) -> None:
        await process.book.create(route("all", "*"))
        for number in range(MOST_NAMES + 5):
            assert process.goes(f"m{number}") == "all"
        assert len(process.book._found) == 5
        assert process.goes("m1") == "all"

    async def test_a_name_that_no_request_can_have_is_not_remembered(self, process: Process) -> None:
        await process.book.create(route("all", "*"))
        assert process.goes("x" * 512) == "all"
        assert process.goes("x" * 513) is None
        assert len(process.book._found) == 1

    async def test_what_had_no_route_gets_it_when_there_is_one(self, process: Process) -> None:
        assert process.goes("m") is None
        await process.book.create(route("a", "m"))
        assert process.goes("m") == "a"


class TestExplanation:
    @pytest.mark.req("C16", "C19")
    async def test_it_names_those_that_are_selected_have_the_model_and_all_tags(
        self, process: Process
    ) -> None:
        registry = Registry()
        for name, models, tags in (("a", "m x", "gpu"), ("b", "m", "gpu eu"), ("c", "m", "")):
            infos = tuple(ModelInfo(model) for model in models.split())
            registry.upsert(Node(name, "direct", infos, tags=frozenset(tags.split()), state=NodeState.READY))
        explain = explanation(process.book, registry)

        def backends(model: str, *tags: str) -> list[list[str]]:
            return [[one["id"] for one in told["backends"]] for told in explain(model, tags)["targets"]]

        assert backends("m") == [["a", "b", "c"]]
        assert backends("m", "gpu", "eu") == [["b"]]
        first, fallback = Target(Selector.parse("tag:gpu")), Target(Selector.parse("node:a,c"), "x")
        await process.book.create(Route("r", "m", (first, fallback)))
        assert backends("m") == [["a", "b"], ["a"]]
        assert explain("m", ("eu",))["targets"][1] == {"selector": "node:a,c", "model": "x", "backends": []}
        assert explain("x", ())["targets"][0]["backends"] == [{"id": "a", "state": "ready"}]
