"""Splitting and writing the top level of a body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernel.errors import InvalidRequest
from headrace.wire.members import join, raw, split

CONTROL = frozenset({"model", "stream"})
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["model", "Model", "MODEL", "stream", "\u017ftream", "x", "Xx", "a_b", "0"]
) | st.text(max_size=4)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])


def test_members_are_raw_slices_in_order() -> None:
    members = split(b'{"b": [1,  2] ,"a":{"x":"y"}}', CONTROL)
    assert {name: bytes(value) for name, value in members.items()} == {"b": b"[1,  2]", "a": b'{"x":"y"}'}
    assert join(members) == b'{"b":[1,  2],"a":{"x":"y"}}'


@given(st.dictionaries(st.text(), json_values), separators, st.booleans())
def test_what_is_written_again_means_the_same(
    value: dict[str, Any], style: tuple[str, str], ascii_only: bool
) -> None:
    body = json.dumps(value, separators=style, ensure_ascii=ascii_only).encode("utf-8", "replace")
    try:
        members = split(body, frozenset())
    except InvalidRequest:
        json.loads(body)  # a lone surrogate, which isn't text; or a number too long for one side
        assert (
            any(ord(c) in range(0xD800, 0xE000) for c in body.decode("unicode_escape", "replace"))
            or b"\\ud" in body
        )
        return
    assert json.loads(join(members)) == json.loads(body)


@given(st.lists(st.tuples(names, st.integers(0, 9)), max_size=5), separators, st.booleans())
def test_a_backend_of_any_kind_reads_the_control_members_that_we_read(
    pairs: list[tuple[str, int]], style: tuple[str, str], escaped: bool
) -> None:
    """First wins, last wins, or case ignored: whoever reads the body that we write finds the same control members."""
    comma, colon = style
    text = comma.join(_name(name, escaped) + colon + str(value) for name, value in pairs)
    try:
        written = join(split(("{" + text + "}").encode("utf-8", "surrogatepass"), CONTROL))
    except InvalidRequest:
        return
    seen = json.loads(written, object_pairs_hook=list)
    for control in CONTROL:
        found = [value for name, value in seen if name.casefold() == control]
        assert len(found) <= 1
        assert len([1 for name, _ in pairs if name.casefold() == control]) == len(found)


def _name(name: str, escaped: bool) -> str:
    if escaped:
        return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in name) + '"'
    return json.dumps(name)


@pytest.mark.req("D26", "D46")
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b"nonsense", "not valid JSON"),
        (b'{"a":1}{', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"a":"\x00"}', "not valid JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"[" * 100_000, "object"),
        (b'{"a": ' * 5_000, "nested too deeply"),
        (b'{"model":"a","model":"b"}', "'model' is given twice"),
        (b'{"model": "a", "model": "b"}', "'model' is given twice"),
        (b'{"model":"a","Model":"b"}', "did you mean 'model'"),
        (b'{"MODEL":"a"}', "did you mean 'model'"),
        (b'{"model":"a","mod\\u0065l":"b"}', "'model' is given twice"),
        ('{"\u017ftream":true}'.encode(), "did you mean 'stream'"),
    ],
)
def test_what_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        split(body, CONTROL)


def test_a_number_of_any_length_is_carried() -> None:
    number = b"1" * 10_000
    assert bytes(split(b'{ "a": ' + number + b"}", CONTROL)["a"]) == number


def test_names_that_need_escapes_are_written_with_them() -> None:
    members = split(b'{"a\\"b":1}', CONTROL)
    members["c d"] = raw("x")
    assert json.loads(join(members)) == {'a"b': 1, "c d": "x"}
