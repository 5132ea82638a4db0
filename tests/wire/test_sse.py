"""Cutting event streams at the ends of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.sse import MAX_EVENT_BYTES, EventSplitter, EventTooLarge, data_of, events


def split(raw: bytes, *sizes: int) -> bytes:
    splitter, out, position = EventSplitter(), [], 0
    for size in [*sizes, len(raw)]:
        out.append(splitter.feed(raw[position : position + size]))
        assert out[-1] == b"" or out[-1].endswith(b"\n\n")
        position += size
    return b"".join([*out, splitter.finish()])


@given(
    st.lists(st.sampled_from([b"data: a", b"data: b\ndata: c", b": hi", b"event: x\ndata: 1"]), min_size=1),
    st.data(),
)
@pytest.mark.req("D20")
def test_any_cut_and_any_line_end_give_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    clean = b"".join(part + b"\n\n" for part in parts)
    raw = clean.replace(b"\n", end)
    sizes = data.draw(st.lists(st.integers(1, 7), max_size=len(raw)))
    bom = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    assert split(raw, *sizes) == clean
    assert split(bom + raw) == clean


def test_whole_events_pass_without_a_copy() -> None:
    block = b"data: a\n\ndata: b\n\n"
    assert EventSplitter().feed(block) is block


def test_an_event_without_end_is_bounded() -> None:
    splitter = EventSplitter()
    splitter.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: e\nid: 1\ndata: x\n\n", b"x"),
        (b"data: x\nid: 1\n\n", b"x"),
        (b": ping\n\n", None),
        (b"event: ping\n\n", None),
    ],
)
def test_what_an_event_says(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


def test_a_block_is_cut_into_its_events() -> None:
    assert list(events(b"data: a\n\ndata: b\n\n")) == [b"data: a\n\n", b"data: b\n\n"]
