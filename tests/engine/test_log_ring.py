from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.log_ring import LogRing


def test_it_keeps_the_last_lines() -> None:
    ring = LogRing(max_lines=3)
    ring.feed(b"one\ntwo\nthree\nfour\nfi")
    assert ring.tail() == ("two", "three", "four")
    ring.feed(b"ve\n")
    assert ring.tail(2) == ("four", "five")


def test_a_line_without_end_stays_bounded() -> None:
    ring = LogRing(max_lines=3, max_line_bytes=10)
    for _ in range(1000):
        ring.feed(b"x" * 1000)
    ring.feed(b"\nnext\n")
    assert ring.tail() == ("x" * 10, "next")


@given(
    lines=st.lists(st.text("abc é", min_size=1, max_size=30).map(str.strip).filter(bool)),
    cut=st.integers(1, 7),
)
def test_cuts_do_not_matter(lines: list[str], cut: int) -> None:
    data = "".join(line + "\n" for line in lines).encode()
    ring = LogRing(max_lines=1000, max_line_bytes=1000)
    for start in range(0, len(data), cut):
        ring.feed(data[start : start + cut])
    assert ring.tail(1000) == tuple(lines)


@pytest.mark.parametrize(
    "line",
    [
        b'1.11.500.992 W srv operator(): got exception: {"message":"last read: SECRET"}',
        b"0.1 E srv: parse error at line 1: SECRET",
        b"0.1 D srv: prompt: SECRET",
    ],
)
def test_what_a_client_sent_does_not_stay(line: bytes) -> None:
    ring = LogRing()
    ring.feed(line + b"\n")
    assert "SECRET" not in ring.tail()[0]
    assert ring.tail()[0].endswith("…")


def test_the_first_error_in_plain_words() -> None:
    ring = LogRing()
    ring.feed(b"0.00.001 I srv load_model: loading\n0.02 W srv init: hm\n")
    assert ring.first_error() == ""
    ring.feed(
        b"0.00.034.641 E llama_model_load: error loading model: no tensor\n0.1 E srv    load_model: failed\n"
    )
    assert ring.first_error() == "error loading model: no tensor"
    other = LogRing()
    other.feed(b"0.00.002.140 E srv         start: couldn't bind\n")
    assert other.first_error() == "couldn't bind"
