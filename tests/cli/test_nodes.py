"""Nodes from the command line, at a real gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.testing import Script
from headrace.testing.fake_engine import Cut
from support.administration import ADMIN_KEY, AdministeredHouse
from support.command_line import Engine, Result
from support.house import KEY

Command = Callable[..., Result]
Serve = Callable[[Script], Engine]


@pytest.fixture
def house(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdministeredHouse]:
    """A gateway with an administration, which the variables name: b0 works, b1 breaks off."""
    urls = serve(Script(models=("fake",), tokens=4)).url, serve(Script(models=("bad",), fault=Cut())).url
    with AdministeredHouse(*urls) as house:
        monkeypatch.setenv("HEADRACE_URL", house.url)
        monkeypatch.setenv("HEADRACE_API_KEY", ADMIN_KEY)
        yield house


def put(house: AdministeredHouse, *nodes: Node) -> None:
    async def upsert() -> None:
        for node in nodes:
            house.house.registry.upsert(node)

    house.do(upsert)


def cells(out: str) -> list[dict[str, str]]:
    """The rows of a table, by its columns."""
    head, *rows = out.splitlines()
    columns = [part.strip() for part in head.split("  ") if part.strip()]
    starts = [head.index(column) for column in columns]
    ends = [*starts[1:], None]
    return [
        {column: row[start:end].strip() for column, start, end in zip(columns, starts, ends, strict=True)}
        for row in rows
    ]


@pytest.mark.req("C05")
def test_nodes_are_listed_with_how_they_are(headrace: Command, house: AdministeredHouse) -> None:
    assert headrace("chat", "--model", "fake", "hello").status == 0
    assert headrace("chat", "--model", "bad", "hello").status == 1
    engine = Node(
        "local/x", "engine", tuple(ModelInfo(f"m{i}") for i in range(5)), 4, state=NodeState.LOADING
    )
    put(house, engine)
    rows = cells(headrace("node", "list").out)
    assert list(rows[0]) == [
        "NAME", "KIND", "STATE", "BREAKER", "BUSY", "FIRST TOKEN", "BETWEEN TOKENS", "MODELS", "LAST ERROR",
    ]  # fmt: skip
    b0, b1, local = rows
    assert [row["NAME"] for row in rows] == ["b0", "b1", "local/x"]
    assert [row["KIND"] for row in rows] == ["openai", "openai", "engine"]
    assert [row["STATE"] for row in rows] == ["ready", "ready", "loading"]
    assert [row["BUSY"] for row in rows] == ["0/64", "0/64", "0/0"]
    assert {row["BREAKER"] for row in rows} == {"closed"}
    assert b0["FIRST TOKEN"].endswith((" ms", " s"))
    assert b0["BETWEEN TOKENS"]
    assert (b0["MODELS"], b0["LAST ERROR"]) == ("fake", "")
    assert (b1["FIRST TOKEN"], b1["BETWEEN TOKENS"]) == ("", "")
    assert b1["LAST ERROR"]
    assert local["MODELS"] == "m0, m1, m2, +2"
    listed = headrace("node", "list", "--json").json()
    assert [(one["id"], one["executions"]) for one in listed] == [("b0", 1), ("b1", 1), ("local/x", 0)]


@pytest.mark.req("C05")
def test_all_pages_are_asked_for(headrace: Command, house: AdministeredHouse) -> None:
    put(house, *(Node(f"n{number:04}", "direct") for number in range(1000)))
    assert len(headrace("node", "list", "--json").json()) == 1002


@pytest.mark.req("C05")
def test_one_node_is_shown_whole(headrace: Command, house: AdministeredHouse) -> None:
    assert headrace("chat", "--model", "bad", "hello").status == 1
    told = fields(headrace("node", "show", "b1").out)
    assert told["id"] == "b1"
    assert told["state"].startswith("ready since 20")
    assert told["breaker"] == "closed, 1 failures in a row"
    assert told["busy"] == "0 of 64 slots now, 64 when all is well"
    assert (told["executions"], told["failures"]) == ("1", "1 lost")
    assert told["last error"].startswith("20")
    put(house, Node("local/y", "engine", (ModelInfo("m"),), loaded=frozenset({"m"}), state=NodeState.READY))
    shown = headrace("node", "show", "local/y").out
    assert fields(shown)["kind"] == "engine"
    assert fields(shown)["last error"] == "none"
    assert shown.splitlines()[-1].split() == ["m", "yes"]
    assert headrace("node", "show", "local/y", "--json").json()["models"] == [{"id": "m", "loaded": True}]


def fields(out: str) -> dict[str, str]:
    """Names and values, as far as the first empty line."""
    pairs = [line.split("  ", 1) for line in out.partition("\n\n")[0].splitlines()]
    return {name: (rest[0].strip() if rest else "") for name, *rest in pairs}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 ms"), (0.0123, "12.3 ms"), (0.9994, "999 ms"), (0.9999, "1 s"), (12.34, "12.3 s"), (1234.5, "1234 s")],
)  # fmt: skip
def test_times_have_their_unit(value: float, text: str, headrace: Command, house: AdministeredHouse) -> None:
    put(house, Node("slow", "direct", ready_in_s=value, state=NodeState.LOADING))
    assert fields(headrace("node", "show", "slow").out)["ready in"] == text


def test_whoever_asks_wrongly_is_told(
    headrace: Command, house: AdministeredHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = headrace("node", "show", "b7")
    assert (missing.status, missing.out) == (1, "")
    assert missing.err.startswith("headrace: There is no node 'b7'. Did you mean b")
    assert headrace("node", "show", "..").status == 2
    monkeypatch.setenv("HEADRACE_API_KEY", KEY)
    refused = headrace("node", "list")
    assert refused.status == 1
    assert "Give an admin key" in refused.err


def test_what_a_backend_said_cannot_command_a_terminal(headrace: Command, house: AdministeredHouse) -> None:
    put(house, Node("odd", "direct", detail="\x1b[2Jgone", state=NodeState.FAILED))
    told: dict[str, Any] = fields(headrace("node", "show", "odd").out)
    assert told["detail"] == "\ufffd[2Jgone"
