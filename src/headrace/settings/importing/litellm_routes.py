"""LiteLLM's groups of deployments as routes: how the work is divided, in which order, and what comes when none of them works."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headrace.domain.routing import Strategy
from headrace.settings.importing.draft import Leftovers, UpstreamDraft, listed, number, table
from headrace.settings.routes import MOST_FALLBACKS, Pattern, TargetModel

_STRATEGIES = {
    "simple-shuffle": Strategy.WEIGHTED,
    "least-busy": Strategy.LEAST_BUSY,
    "latency-based-routing": Strategy.LATENCY,
}
_NEAREST = {
    "usage-based-routing": "Headrace doesn't choose by what was used in the minute; least-busy was taken.",
    "usage-based-routing-v2": "Headrace doesn't choose by what was used in the minute; least-busy was taken.",
    "cost-based-routing": "Headrace doesn't know what backends cost; least-busy was taken.",
}
_PATTERN: TypeAdapter[str] = TypeAdapter(Pattern)
_TARGET: TypeAdapter[str] = TypeAdapter(TargetModel)
Target = dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """One backend of a group. model: its name there; empty: whatever was asked for. order: lowest first. spread: its weight,
    requests and tokens in a minute."""

    group: str
    upstream: UpstreamDraft
    model: str
    order: float | None
    spread: tuple[float | None, ...]


class Groups:
    """All deployments by the name that clients ask for."""

    def __init__(self, left: Leftovers) -> None:
        self._left = left
        self._by_name: dict[str, list[Deployment]] = {}
        self._strategy = Strategy.WEIGHTED

    def add(self, deployment: Deployment) -> None:
        """One more of its group."""
        self._by_name.setdefault(deployment.group, []).append(deployment)

    def routes(self, router: dict[str, Any], module: dict[str, Any]) -> list[dict[str, Any]]:
        """The routes that say the same, in the groups' order. Takes what it carries over out of *router* and *module*."""
        self._strategy = self._chosen(router)
        fallbacks = self._fallbacks(router, module)
        retries = number(router.pop("num_retries", None)) or number(module.pop("num_retries", None))
        if retries:
            reason = "How often isn't set here: another backend is tried within a budget of retries."
            self._left.add("num_retries", reason)
        for holder, name in ((router, "timeout"), (module, "request_timeout")):
            holder.pop(name, None)  # it went into the upstreams
        named = [(name, name) for name in self._by_name] + list(self._aliases(router))
        made = [self._route(name, group, fallbacks, bool(retries)) for name, group in named]
        return [route for route in made if route is not None]

    def _chosen(self, router: dict[str, Any]) -> Strategy:
        name = str(router.pop("routing_strategy", "simple-shuffle"))
        if name in _STRATEGIES:
            return _STRATEGIES[name]
        reason = _NEAREST.get(name, "Headrace has no such strategy; least-busy was taken.")
        self._left.add("router_settings.routing_strategy", reason)
        return Strategy.LEAST_BUSY

    def _fallbacks(self, router: dict[str, Any], module: dict[str, Any]) -> dict[str, list[str]]:
        """Group → the groups that take its place; `*`: those of all others."""
        found: dict[str, list[str]] = {}
        for holder in (router, module):
            for entry in listed(holder.pop("fallbacks", None)):
                for group, others in table(entry).items():
                    found.setdefault(
                        group, [name for other in listed(others) if (name := self._named(other))]
                    )
            for name in listed(holder.pop("default_fallbacks", None)):
                found.setdefault("*", []).append(str(name))
        for group in found.keys() - self._by_name.keys() - {"*"}:
            self._left.add("fallbacks", "There is no such model.", group)
        return found

    def _named(self, other: object) -> str:
        if isinstance(other, dict):
            if other.keys() - {"model"}:
                self._left.add(
                    "fallbacks[]", "A fallback has its model, and changes nothing else of a request."
                )
            other = other.get("model", "")
        return str(other)

    def _aliases(self, router: dict[str, Any]) -> Iterator[tuple[str, str]]:
        where = "router_settings.model_group_alias"
        for alias, said in table(router.pop("model_group_alias", None)).items():
            if isinstance(said, dict) and said.get("hidden"):
                self._left.add(where, "An alias is listed among the models; it can't be hidden.", alias)
            group = said.get("model") if isinstance(said, dict) else said
            if isinstance(group, str) and group in self._by_name:
                yield alias, group
            else:
                self._left.add(where, "It doesn't stand for one of the models here.", alias)

    def _route(
        self, name: str, group: str, fallbacks: dict[str, list[str]], reruns: bool
    ) -> dict[str, Any] | None:
        """The route of the model *name*, which is served as *group*; None where none is needed, or none can be had."""
        own = list(self._targets(group))
        if not own or not _fits(_PATTERN, name):
            if name != "*":
                self._unnameable(name, group)
            return None
        others = [
            target
            for other in fallbacks.get(group, fallbacks.get("*", []))
            if other != group
            for target in self._as_fallbacks(other)
        ]
        if not others and not reruns and self._goes_there_anyway(name, group):
            return None
        first, *rest = own
        every = [*rest, *others]
        if len(every) > MOST_FALLBACKS:
            self._left.add(
                "fallbacks",
                f"A route has {MOST_FALLBACKS} fallbacks at most; the others were left out.",
                name,
            )
        route: dict[str, Any] = {"model": name, "selector": first["selector"], "strategy": first["strategy"]}
        if first["model"] != name:
            route["target"] = first["model"]
        if "weights" in first:
            route["weights"] = first["weights"]
        if reruns or every:
            route["reruns"] = True
        route["fallbacks"] = [
            {key: value for key, value in target.items() if key != "model" or value != name}
            for target in every[:MOST_FALLBACKS]
        ]
        return route

    def _unnameable(self, name: str, group: str) -> None:
        if any(deployment.model == "" for deployment in self._by_name[group]):
            reason = "Names aren't rewritten by patterns: clients ask for the names that the backend lists, without a prefix."
        else:
            reason = "A model is called without spaces, quotes and brackets here."
        self._left.add("model_list[].model_name", reason, name)

    def _goes_there_anyway(self, name: str, group: str) -> bool:
        """Whether requests for *name* reach just this one deployment by themselves."""
        deployments = self._by_name[group]
        if len(deployments) > 1 or deployments[0].model != name:
            return False
        holders = {
            id(each.upstream) for some in self._by_name.values() for each in some if each.model in (name, "")
        }
        return holders == {id(deployments[0].upstream)}

    def _as_fallbacks(self, group: str) -> Iterator[Target]:
        own = list(self._targets(group)) if group in self._by_name else []
        if not own:
            self._left.add("fallbacks", "This fallback isn't one of the models here.", group)
        yield from own

    def _targets(self, group: str) -> Iterator[Target]:
        """Where a group's requests go: the deployments of the lowest order first, those of one name together."""
        deployments = [each for each in self._by_name[group] if each.model and _fits(_TARGET, each.model)]
        deployments.sort(key=lambda each: math.inf if each.order is None else each.order)
        for _, tier in groupby(deployments, key=lambda each: each.order):
            by_model: dict[str, list[Deployment]] = {}
            for each in tier:
                by_model.setdefault(each.model, []).append(each)
            if len(by_model) > 1:
                reason = "Its backends call it by several names: they are used one after the other, not side by side."
                self._left.add("model_list[]", reason, group)
            for index, (model, some) in enumerate(by_model.items()):
                yield self._target(model, some) | ({"when_busy": True} if index else {})

    def _target(self, model: str, some: list[Deployment]) -> Target:
        names = list(dict.fromkeys(each.upstream.name for each in some))
        strategy = self._strategy if len(names) > 1 else Strategy.LEAST_BUSY
        target: Target = {"selector": f"node:{','.join(names)}", "model": model, "strategy": strategy.value}
        for measure in range(3):  # a weight counts first, then what the limits allow
            spread = dict.fromkeys(names, 0.0)
            for each in some:
                spread[each.upstream.name] += each.spread[measure] or 0.0
            if strategy is Strategy.WEIGHTED and any(spread.values()):
                target["weights"] = spread
                break
        return target


def _fits(adapter: TypeAdapter[str], name: str) -> bool:
    try:
        adapter.validate_python(name)
    except ValidationError:
        return False
    return True
