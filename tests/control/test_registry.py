"""The registry: who holds what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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
    assert [(one.id, one.state) for one in read] == [("n0", NodeState.READY)]
    now = [("n0", NodeState.DOWN), ("n1", NodeState.READY)]
    assert [(one.id, one.state) for one in registry.holders("a")] == now


def test_since_when_a_node_is_in_its_state_is_kept_through_reports_of_the_same() -> None:
    moments = iter([1.0, 2.0, 3.0, 4.0])
    registry = Registry(now=lambda: next(moments))
    registry.upsert(node("n0"))
    registry.update("n0", NodeState.READY, "still")
    assert [one.since for one in registry.nodes()] == [1.0]
    registry.update("n0", NodeState.DOWN)
    assert [one.since for one in registry.nodes()] == [2.0]
