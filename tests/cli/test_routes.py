"""Routes from the command line, at a real gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headrace.domain.routing import Strategy
from headrace.testing import Script
from support.administration import ADMIN_KEY, AdministeredHouse
from support.command_line import Engine, Result
from support.house import KEY

Command = Callable[..., Result]
Serve = Callable[[Script], Engine]


@pytest.fixture
def house(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdministeredHouse]:
    """A gateway with an administration, which the variables name."""
    with AdministeredHouse(serve(Script(models=("fake",), tokens=2)).url) as house:
        monkeypatch.setenv("HEADRACE_URL", house.url)
        monkeypatch.setenv("HEADRACE_API_KEY", ADMIN_KEY)
        yield house


@pytest.mark.req("C35", "C19")
def test_a_route_from_its_beginning_to_its_end(headrace: Command, house: AdministeredHouse) -> None:
    made = headrace("route", "add", "llama-*", "-s", "tag:gpu", "--strategy", "prefix", "--json").json()
    assert (made["id"], made["selector"], made["strategy"]) == ("llama", "tag:gpu", "prefix")
    found = house.office.route_book.route_for("llama-3")
    assert found is not None
    assert headrace("route", "show", "llama", "--json").json() == made
    changed = headrace("route", "set", "llama", "--model", "qwen", "--priority", "2", "--json").json()
    assert changed == made | {"model": "qwen", "priority": 2}
    assert house.office.route_book.route_for("llama-3") is None
    listed = headrace("route", "list", "--json").json()
    assert [(one["id"], one["static"]) for one in listed] == [("llama", False), ("pinned", True)]
    gone = headrace("route", "remove", "llama")
    assert (gone.status, gone.out) == (0, "The route llama is removed.\n")
    refused = headrace("route", "show", "llama")
    assert (refused.status, refused.err) == (1, "headrace: There is no route 'llama'.\n")


def test_all_that_it_may_be_is_said_and_changed(headrace: Command, house: AdministeredHouse) -> None:
    made = headrace(
        *("route", "add", "m", "--id", "r", "--target", "n", "--weight", "a=2.5", "--weight", "local/b=0"),
        *("--tokens-per-day", "9", "--reruns", "--connect-timeout", "250ms", "--total-timeout", "10m"),
        *("--fallback", "node:a,b & tag:gpu; model=gpt; strategy=weighted; when-busy; tokens_per_day=5"),
        *("--fallback", '{"weights": {"a": 1}}', "--json"),
    ).json()
    expected = {
        "id": "r",
        "model": "m",
        "selector": "any",
        "strategy": "least-busy",
        "target": "n",
        "weights": {"a": 2.5, "local/b": 0.0},
        "tokens_per_day": 9,
        "priority": 0,
        "reruns": True,
        "timeouts": {"connect": 0.25, "first_byte": None, "idle": None, "total": 600.0},
        "fallbacks": [
            {
                "selector": "node:a,b & tag:gpu",
                "model": "gpt",
                "strategy": "weighted",
                "weights": {},
                "when_busy": True,
                "tokens_per_day": 5,
            },
            {
                "selector": "any",
                "model": "",
                "strategy": "least-busy",
                "weights": {"a": 1.0},
                "when_busy": False,
                "tokens_per_day": 0,
            },
        ],
        "static": False,
    }
    assert made == expected
    changed = headrace(
        *("route", "set", "r", "--weight", "none", "--fallback", "none", "--connect-timeout", "none"),
        *("--idle-timeout", "5s", "--no-reruns", "--json"),
    ).json()
    assert changed == expected | {
        "weights": {},
        "fallbacks": [],
        "reruns": False,
        "timeouts": {"connect": None, "first_byte": None, "idle": 5.0, "total": 600.0},
    }


def test_to_a_person_it_is_shown_line_by_line(headrace: Command, house: AdministeredHouse) -> None:
    headrace(
        *("route", "add", "m", "--weight", "a=2", "--fallback", "node:b; model=gpt; when_busy"),
        *("--fallback", "any; tokens_per_day=7", "--idle-timeout", "1m"),
    )
    shown = dict(line.split("  ", 1) for line in headrace("route", "show", "m").out.splitlines())
    told = {name.strip(): value.strip() for name, value in shown.items()}
    assert told == {
        "id": "m",
        "model": "m",
        "selector": "any",
        "strategy": "least-busy",
        "target": "the same",
        "weights": "a=2",
        "tokens per day": "no limit",
        "fallbacks": "node:b; model=gpt; strategy=least-busy; when_busy then any; strategy=least-busy; tokens_per_day=7",
        "priority": "0",
        "reruns": "no",
        "timeouts": "idle 60s",
        "from": "database",
    }
    lines = [line.split() for line in headrace("route", "list").out.splitlines()]
    assert lines == [
        ["ID", "MODEL", "SELECTOR", "STRATEGY", "TARGET", "FALLBACKS", "PRIORITY", "FROM"],
        ["m", "m", "any", "least-busy", "the", "same", "2", "0", "database"],
        ["pinned", "pinned-*", "any", "least-busy", "the", "same", "0", "0", "configuration"],
    ]


@pytest.mark.req("C16")
def test_a_trial_tells_where_a_request_would_go(headrace: Command, house: AdministeredHouse) -> None:
    free = headrace("route", "test", "fake")
    assert [line.split() for line in free.out.splitlines()] == [
        ["Route:", "none"],
        ["TARGET", "SELECTOR", "MODEL", "USED", "NOW", "BACKENDS"],
        ["1", "any", "fake", "yes", "b0", "(ready)"],
    ]
    headrace("route", "add", "f*", "--selector", "node:b0", "--fallback", "any; model=other")
    told = headrace("route", "test", "fake", "--tag", "gpu", "--tag", "eu", "--json").json()
    assert (told["route"]["id"], told["tags"]) == ("f", ["gpu", "eu"])
    assert [target["backends"] for target in told["targets"]] == [[], []]
    assert headrace("route", "test", "fake").out.startswith("Route: f\n")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("add", "m", "--selector", "gpu"), 1, "'gpu' is not a selector: write 'any', 'tag:gpu'"),
        (("add", "m", "--strategy", "fastest"), 1, "'strategy' should be 'round-robin'"),
        (("add", "m", "--weight", "a"), 2, "'a' is not like box-1=2.5."),
        (("add", "m", "--fallback", "any; colour=red"), 1, "'fallbacks.0.colour' is no member of a route"),
        (("add", "m", "--fallback", "{"), 2, "is not JSON"),
        (("add", "m", "--id", "pinned"), 1, "There is a route 'pinned' already."),
        (("set", "pinned", "--priority", "1"), 1, "is one of the settings: change it in the configuration"),
        (("remove", "pinned"), 1, "is one of the settings: change it in the configuration"),
        (("set", "nothing", "--priority", "1"), 1, "There is no route 'nothing'."),
        (("set", "pinned"), 2, "Name something to change."),
        (("list", "--key", KEY), 1, "Give an admin key"),
    ],
)
def test_what_cannot_be_is_told(
    headrace: Command, house: AdministeredHouse, arguments: tuple[str, ...], status: int, said: str
) -> None:
    result = headrace("route", *arguments)
    assert (result.status, said in " ".join(result.err.replace("│", " ").split())) == (status, True), (
        result.err
    )
    assert house.do(house.office.routes.routes) == []


def test_the_help_names_every_strategy(headrace: Command) -> None:
    told = " ".join(headrace("route", "add", "--help").out.split()).replace("- ", "-")
    assert [strategy for strategy in Strategy if strategy.value not in told] == []
