"""`[[routes]]`: where requests for a model go. The same form is what `/admin/routes` reads and shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Gt
from msgspec.structs import asdict
from pydantic import AfterValidator, BeforeValidator, Field

from headrace.domain import routing
from headrace.domain.routing import Selector, Strategy, TimeLimits, id_for
from headrace.settings.section import Section
from headrace.settings.values import OptionalName, Seconds

MOST_FALLBACKS = 16
MOST_WEIGHTS = 1000
_PATTERN = re.compile(r"""[^\x00-\x20\x7f-\xa0\[\]"'\\]{1,256}""")
_BACKEND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,200}")


def _pattern(value: str) -> str:
    if not _PATTERN.fullmatch(value):
        raise ValueError(
            f"{value[:60]!r} is not the name of a model or a pattern of names; write it like 'llama-3' or 'llama-*', in up to "
            "256 characters without spaces, quotes and brackets"
        )
    return value


def _target(value: str) -> str:
    if value and (not _PATTERN.fullmatch(value) or "*" in value or "?" in value):
        raise ValueError(
            f"{value[:60]!r} is not the name of a model; write it like 'llama-3', in up to 256 characters without spaces, "
            "quotes, brackets and wildcards"
        )
    return value


def _selector(value: str) -> str:
    if len(value) > 1000:
        raise ValueError("a selector has up to 1000 characters")
    return str(Selector.parse(value))


def _from_json(value: object) -> object:
    """So that a variable of the environment can hold a whole table."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value  # told as "should be a table"
    return value


def _weights(weights: dict[str, float]) -> dict[str, float]:
    for backend, weight in weights.items():
        if not _BACKEND.fullmatch(backend):
            raise ValueError(f"{backend[:60]!r} is not the name of a backend")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {backend!r} has to be 0 or more; it is {weight}")
    if weights and not any(weights.values()):
        raise ValueError("one weight at least has to be more than 0")
    return weights


Pattern = Annotated[str, AfterValidator(_pattern)]
TargetModel = Annotated[str, AfterValidator(_target)]
SelectorText = Annotated[str, AfterValidator(_selector)]
Weights = Annotated[
    dict[str, float], Field(max_length=MOST_WEIGHTS), BeforeValidator(_from_json), AfterValidator(_weights)
]
Duration = Annotated[Seconds, Gt(0)]


class RouteTimeouts(Section):
    """How long backends may take on this route; unset: as long as the backend's own settings say."""

    connect: Duration | None = Field(default=None, description="Time to open a connection.")
    first_byte: Duration | None = Field(
        default=None, description="Time from the request's last byte to the answer's first."
    )
    idle: Duration | None = Field(default=None, description="Longest pause within an answer.")
    total: Duration | None = Field(default=None, description="Time for the whole execution.")


class Fallback(Section):
    """Where requests go when the route's own backends, and the fallbacks before this one, can't take them."""

    selector: SelectorText = Field(default="any", description="Which backends, written as the route's.")
    model: TargetModel = Field(
        default="",
        description="The model that they are asked for; empty: the one that the client asked for. It isn't routed again.",
    )
    strategy: Strategy = Field(default=Strategy.LEAST_BUSY, description="How one of them is chosen.")
    weights: Weights = Field(
        default={}, description="Weights of backends by name, in the place of their own."
    )
    when_busy: bool = Field(
        default=False,
        description="Use it also while those before are only busy, instead of waiting for them; else only once none works.",
    )
    tokens_per_day: int = Field(
        default=0, ge=0, le=2**53, description="Tokens that it may take in a day of UTC; 0: no limit."
    )

    @property
    def target(self) -> routing.Target:
        """The same as the control plane knows it."""
        return routing.Target(
            Selector.parse(self.selector),
            self.model,
            self.strategy,
            self.weights,
            self.when_busy,
            self.tokens_per_day,
        )


class Route(Section):
    """Where requests for a model, or for the models of a pattern, go."""

    model: Pattern = Field(
        description="The model that clients ask for, or a pattern: `*` stands for any characters, `?` for one."
    )
    id: OptionalName = Field(
        default=None, description="Its name; unique. Unset: made of `model`, as `llama` of `llama-*`."
    )
    selector: SelectorText = Field(
        default="any",
        description="Which backends: `any`, `tag:gpu`, `node:a,b` (one of them; `*` and `?` as above), or several terms that "
        "all have to hold: `tag:gpu & node:box-*`.",
    )
    strategy: Strategy = Field(default=Strategy.LEAST_BUSY, description="How one of them is chosen.")
    target: TargetModel = Field(
        default="",
        description="The model that the backends are asked for; empty: the one that the client asked for. It isn't routed "
        "again, so routes can't form a loop.",
    )
    weights: Weights = Field(
        default={}, description="Weights of backends by name, in the place of their own."
    )
    tokens_per_day: int = Field(
        default=0,
        ge=0,
        le=2**53,
        description="Tokens that its own backends may take of it in a day of UTC, fallbacks apart; 0: no limit.",
    )
    priority: int = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="Of several routes that match a model, the one of the highest priority counts; among those of one priority, an "
        "exact name, then the longest pattern.",
    )
    reruns: bool = Field(
        default=False,
        description="Whether a request may be executed again elsewhere when its backend is lost and nothing of the answer "
        "was sent on. The lost backend may go on with it.",
    )
    timeouts: RouteTimeouts = RouteTimeouts()
    fallbacks: tuple[Fallback, ...] = Field(
        default=(),
        max_length=MOST_FALLBACKS,
        description="Where else it may go, in this order.",
    )

    def route(self, route_id: str, *, static: bool = False) -> routing.Route:
        """The same under this id, as the control plane knows it."""
        own = routing.Target(
            Selector.parse(self.selector),
            self.target,
            self.strategy,
            self.weights,
            tokens_per_day=self.tokens_per_day,
        )
        return routing.Route(
            route_id,
            self.model,
            (own, *(fallback.target for fallback in self.fallbacks)),
            self.priority,
            self.reruns,
            TimeLimits(**self.timeouts.model_dump()),
            static,
        )


def static_routes(routes: Sequence[Route]) -> tuple[routing.Route, ...]:
    """Those of the settings, each with an id of its own: one that was given stays, the others are made of the patterns."""
    taken = {route.id for route in routes if route.id}
    made = []
    for route in routes:
        route_id = route.id or id_for(route.model, taken)
        taken.add(route_id)
        made.append(route.route(route_id, static=True))
    return tuple(made)


def written(route: routing.Route) -> dict[str, Any]:
    """A route in the form in which `Route` reads it, with everything said; durations are seconds."""
    first, *others = route.targets
    return {
        "id": route.id,
        "model": route.model,
        "selector": str(first.selector),
        "strategy": first.strategy.value,
        "target": first.model,
        "weights": first.weights,
        "tokens_per_day": first.tokens_per_day,
        "priority": route.priority,
        "reruns": route.reruns,
        "timeouts": asdict(route.time_limits),
        "fallbacks": [
            asdict(other) | {"selector": str(other.selector), "strategy": other.strategy.value}
            for other in others
        ],
    }
