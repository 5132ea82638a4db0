"""Where requests for a model may go: routes, what they select, and how they choose among it (C14 to C19, C35)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

import msgspec

from headrace.domain.fleet import Node

_WORD = r"[A-Za-z0-9_.:*?/-]+"
_TERM = re.compile(rf"(tag|node):({_WORD}(?:,{_WORD})*)")
MOST_TAGS = 8
"""Tags that one request may ask for."""
TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID_CHARS = 48


class Strategy(StrEnum):
    """How one of several backends is chosen."""

    ROUND_ROBIN = "round-robin"
    LEAST_BUSY = "least-busy"  # the most free slots
    LATENCY = "latency"  # the shortest expected wait for tokens, as seen lately
    WEIGHTED = "weighted"  # at random, by weight
    SESSION = "session"  # the same one for a session
    PREFIX = "prefix"  # the same one for prompts that begin alike


class Selector(NamedTuple):
    """Which backends: all of those that fulfil every term. A term names tags or backends (patterns), one of which must fit.

    Written `any`, `tag:gpu`, `node:a,b` or several with `&` between them: `tag:gpu & node:box-*`.
    """

    terms: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From how it is written.

        Raises:
            ValueError: it isn't a selector; the message says how one looks.
        """
        if text.strip() in ("", "any"):
            return cls()
        terms = []
        for part in text.split("&"):
            match = _TERM.fullmatch(part.strip().replace(", ", ","))
            if match is None:
                raise ValueError(
                    f"{part.strip()!r} is not a selector: write 'any', 'tag:gpu', 'node:a,b', or several with '&'"
                )
            terms.append((match[1], tuple(match[2].split(","))))
        return cls(tuple(terms))

    def selects(self, node: Node) -> bool:
        """Whether *node* is one of them."""
        return all(_fulfils(node, kind, words) for kind, words in self.terms)

    def __str__(self) -> str:
        return " & ".join(f"{kind}:{','.join(words)}" for kind, words in self.terms) or "any"


ANY = Selector()


def _fulfils(node: Node, kind: str, words: tuple[str, ...]) -> bool:
    if kind == "tag":
        return any(word in node.tags for word in words)
    return any(fnmatchcase(node.id, word) for word in words)


class TimeLimits(msgspec.Struct, frozen=True):
    """Seconds that a backend may take; None: as long as the backend's own settings say.

    first_byte: from the request's last byte to the answer's first. idle: between two reads. total: for the whole execution.
    """

    connect: float | None = None
    first_byte: float | None = None
    idle: float | None = None
    total: float | None = None


class Target(msgspec.Struct, frozen=True):
    """Some backends that a route uses, and how.

    model: what they are asked for; empty: what the client asked for. weights: backend id → weight, where it isn't its own.
    when_busy: use it also while the targets before it are only busy; else only once none of them works.
    tokens_per_day: of UTC, read and written, that it may use of this; 0: no limit.
    """

    selector: Selector = ANY
    model: str = ""
    strategy: Strategy = Strategy.LEAST_BUSY
    weights: dict[str, float] = {}
    when_busy: bool = False
    tokens_per_day: int = 0


class Route(msgspec.Struct, frozen=True):
    """What becomes of requests for models that *model*, a pattern with `*` and `?`, matches.

    targets: the first is where they go, the others are its fallbacks, in order. priority: of several routes that match, the
    highest counts, of equal ones an exact name, then the longest pattern. reruns: whether an execution of which nothing was seen may be lost and
    done again elsewhere. static: it comes from the settings, and only they change it.
    """

    id: str
    model: str
    targets: tuple[Target, ...]
    priority: int = 0
    reruns: bool = False
    time_limits: TimeLimits = TimeLimits()
    static: bool = False

    @property
    def is_alias(self) -> bool:
        """Whether it names a model of its own, that `/v1/models` lists."""
        return not is_pattern(self.model) and bool(self.targets[0].model)

    def matches(self, model: str) -> bool:
        """Whether it is about *model*."""
        return fnmatchcase(model, self.model)


def best_route(routes: list[Route], model: str) -> Route | None:
    """The route that counts for *model*; None where none is about it."""
    matching = [route for route in routes if route.matches(model)]
    return max(matching, key=precedence, default=None)


def precedence(route: Route) -> tuple[int, bool, int, str]:
    """Of the routes about one model, the one for which this is greatest counts."""
    return (route.priority, not is_pattern(route.model), len(route.model), route.id)


def is_pattern(model: str) -> bool:
    """Whether *model* may stand for several names."""
    return "*" in model or "?" in model


def id_for(pattern: str, taken: Collection[str]) -> str:
    """An id for a route about *pattern* that isn't among *taken*: made of the pattern, with a number where need be."""
    made = re.sub(r"[^A-Za-z0-9._]+", "-", pattern).strip("-._")[:_ID_CHARS].rstrip("-._") or "all"
    if made not in taken:
        return made
    return next(other for number in itertools.count(2) if (other := f"{made}-{number}") not in taken)
