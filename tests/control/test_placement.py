"""Round-robin over the nodes that hold a model, and the registry's view of who holds what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.placement import Holders, choose
from headrace.control.registry import Registry
from headrace.domain.fleet import ModelInfo, Node, NodeState

NAMES = [f"n{number}" for number in range(6)]
MODELS = ["a", "b", "c"]

nodes = st.builds(
    Node,
    id=st.sampled_from(NAMES),
    connector=st.just("direct"),
    models=st.lists(st.sampled_from(MODELS), max_size=4).map(
        lambda ids: tuple(ModelInfo(one) for one in ids)
    ),
    capacity=st.integers(0, 2),
    state=st.sampled_from(NodeState),
)


def node(name: str, state: NodeState = NodeState.READY) -> Node:
    return Node(name, "direct", (ModelInfo("a"),), capacity=1, state=state)


class Watched(Holders):
    """Counts how many nodes were looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


@pytest.mark.req("C13")
@given(
    st.lists(nodes, max_size=6, unique_by=lambda one: one.id),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2)),
    st.none() | st.sampled_from(NAMES),
    st.frozensets(st.sampled_from(NAMES), max_size=3),
)
def test_the_next_free_node_after_the_last_one_is_chosen(
    some: list[Node], busy: dict[str, int], last: str | None, avoid: frozenset[str]
) -> None:
    order = [one.id for one in some]
    before = order.index(last) + 1 if last is not None and last in order else 0
    free = [
        one
        for one in some[before:] + some[:before]
        if one.state is NodeState.READY and one.id not in avoid and busy.get(one.id, 0) < one.capacity
    ]
    assert choose(Holders(some), busy, last, avoid) == (free[0] if free else None)


@pytest.mark.parametrize("last", [None, "n0", "n499", "n999", "gone"])
def test_only_nodes_that_are_passed_over_are_looked_at(last: str | None) -> None:
    holders = Watched(node(f"n{number}") for number in range(1000))
    assert choose(holders, {}, last, ()) is not None
    assert holders.looks == 1


@given(st.lists(nodes | st.sampled_from(NAMES), max_size=30))
def test_who_holds_a_model_is_what_the_nodes_say_in_the_order_in_which_they_came(
    changes: list[Node | str],
) -> None:
    registry = Registry()
    for change in changes:
        if isinstance(change, Node):
            registry.upsert(change)
        else:
            registry.remove(change)
    for model in MODELS:
        assert list(registry.holders(model)) == [one for one in registry.nodes() if one.has(model)]


def test_what_was_read_stays_as_it_was_while_the_registry_goes_on() -> None:
    registry = Registry()
    registry.upsert(node("n0"))
    read = registry.holders("a")
    registry.upsert(node("n1"))
    registry.update("n0", NodeState.DOWN)
    assert list(read) == [node("n0")]
    assert choose(read, {}, "n1", ()) == node("n0")
    assert registry.holders("a") == (node("n0", NodeState.DOWN), node("n1"))
