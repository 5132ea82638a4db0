"""What `Routes` promise, held by each that keeps them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from headrace.domain.routing import Route, Selector, Strategy, Target, TimeLimits
from headrace.kernel.errors import InvalidRequest
from headrace.ports.records import Routes

FULL = Route(
    id="llama",
    model="llama-*",
    targets=(
        Target(
            Selector.parse("tag:gpu & node:box-*,b"),
            "llama-3",
            Strategy.WEIGHTED,
            {"box-1": 3.0, "local/ü": 0.5},
            tokens_per_day=7,
        ),
        Target(
            Selector.parse("node:hosted"),
            'gpt "4o"',
            Strategy.PREFIX,
            {"hosted": 1.0},
            when_busy=True,
            tokens_per_day=2**40,
        ),
        Target(Selector.parse("any")),
    ),
    priority=-3,
    reruns=True,
    time_limits=TimeLimits(2.5, 60.0, None, 600.0),
)
BARE = Route("all", "*", (Target(),))


class RoutesContract:
    """Needs a fixture `routes`: none are kept."""

    @pytest.mark.req("C35")
    async def test_they_come_back_as_they_were_saved_by_id(self, routes: Routes) -> None:
        capital = replace(BARE, id="Zulu")
        for route in (FULL, BARE, capital):
            await routes.save_route(route)
        assert await routes.routes() == [capital, BARE, FULL]
        changed = replace(FULL, targets=(Target(),), priority=4, reruns=False, time_limits=TimeLimits())
        await routes.save_route(changed)
        assert await routes.routes() == [capital, BARE, changed]

    async def test_one_that_is_deleted_is_gone(self, routes: Routes) -> None:
        await routes.save_route(FULL)
        await routes.save_route(BARE)
        assert await routes.delete_route("llama") is True
        assert await routes.routes() == [BARE]
        assert await routes.delete_route("llama") is False
        assert await routes.delete_route("a\0b") is False

    async def test_the_generation_grows_with_each_change_and_with_nothing_else(self, routes: Routes) -> None:
        seen = [await routes.generation()]
        await routes.save_route(FULL)
        seen.append(await routes.generation())
        await routes.save_route(FULL)
        seen.append(await routes.generation())
        assert await routes.delete_route("other") is False
        assert await routes.generation() == seen[-1]
        await routes.delete_route("llama")
        seen.append(await routes.generation())
        assert seen == sorted(set(seen))

    async def test_what_cannot_be_is_refused_and_changes_nothing(self, routes: Routes) -> None:
        await routes.save_route(FULL)
        before = await routes.generation()
        with pytest.raises(InvalidRequest):
            await routes.save_route(replace(FULL, id=""))
        assert await routes.routes() == [FULL]
        assert await routes.generation() == before
