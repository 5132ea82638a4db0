"""Selectors: which backends they mean, and how they are written."""

from __future__ import annotations

import pytest

from headrace.domain.fleet import Node
from headrace.domain.routing import Selector

NODES = [
    Node("box-1", "direct", tags=frozenset({"gpu", "eu"})),
    Node("box-2", "direct", tags=frozenset({"gpu"})),
    Node("local/llama3:8b", "engine"),
]


@pytest.mark.req("C16", "C19", "C35")
@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("any", [0, 1, 2]),
        ("", [0, 1, 2]),
        ("tag:gpu", [0, 1]),
        ("tag:eu,cpu", [0]),
        ("node:box-*", [0, 1]),
        ("node:box-?,local/*", [0, 1, 2]),
        ("node:local/llama3:8b", [2]),
        ("tag:gpu & node:box-2", [1]),
        ("tag:gpu&tag:eu", [0]),
        ("node:box-1, box-2", [0, 1]),
        ("tag:*", []),  # a tag is a word, not a pattern
        ("node:BOX-1", []),
    ],
)
def test_a_selector_means_those_that_fulfil_all_of_it(text: str, selected: list[int]) -> None:
    selector = Selector.parse(text)
    assert [place for place, node in enumerate(NODES) if selector.selects(node)] == selected
    assert Selector.parse(str(selector)) == selector


@pytest.mark.parametrize(
    "text",
    ["gpu", "tag:", "tag:a b", "tag:gpu &", "& tag:gpu", "host:a", "node:a,,b", "any & tag:gpu", "tag:ä"],
)
def test_what_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a selector: write 'any', 'tag:gpu'"):
        Selector.parse(text)
