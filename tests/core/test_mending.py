"""Careless backends, strict streams."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.chunks import ChunkStream
from headrace.domain.inference import Operation
from headrace.kernel.errors import UpstreamFailed
from headrace.wire.sse import EventSplitter
from support.strict import check_chat_stream, parse_stream

BASE = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def chunk(delta: Any = None, finish: str | None = None, index: Any = 0, **members: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {**BASE, "choices": [choice], **members}


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")
USAGE = {**BASE, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


def run(*chunks: Any, usage: bool = True, cut: int = 0, end: str = "\n\n", done: bool = True) -> bytes:
    """Send *chunks* as a backend would, cut into pieces of *cut* bytes, and collect what is passed on."""
    texts = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in chunks]
    raw = "".join(f"data: {text}{end}" for text in [*texts, *(["[DONE]"] if done else [])]).encode()
    stream = ChunkStream(Operation.CHAT, "m", created=9, ask_usage=usage, prompt_tokens=3)
    splitter = EventSplitter()
    pieces = [raw[i : i + cut] for i in range(0, len(raw), cut)] if cut else [raw]
    out = [stream.feed(block) for piece in pieces if (block := splitter.feed(piece))]
    return b"".join([*out, stream.feed(splitter.finish()), stream.finish()])


def text_of(body: bytes, *, usage: bool = True, choices: int = 1) -> list[str]:
    said = check_chat_stream(body, usage=usage, choices=choices)
    return [said[index]["content"] for index in sorted(said)]


@pytest.mark.parametrize("usage", [True, False])
def test_a_clean_stream_passes_byte_for_byte(usage: bool) -> None:
    chunks = [
        ROLE,
        chunk({"content": "a"}),
        chunk({"content": 'quote " and \\ and \n'}),
        chunk({"content": "é"}),
        STOP,
    ]
    chunks = [{**c, "usage": None} if usage else c for c in chunks]
    last = b"data: %b\n\n" % json.dumps(USAGE).encode()
    raw = b"".join(b"data: %b\n\n" % json.dumps(c).encode() for c in chunks)
    stream = ChunkStream(Operation.CHAT, "m", created=9, ask_usage=usage, prompt_tokens=3)
    done = b"data: [DONE]\n\n"
    assert stream.feed(raw + last + done) == raw + (last if usage else b"") + done
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens, stream.usage.estimated) == (
        3,
        2,
        False,
    )


BROKEN: dict[str, list[Any]] = {
    "repeated role": [ROLE, *[chunk({"role": "assistant", "content": c}) for c in "ab"], STOP, USAGE],
    "no role": [chunk({"content": "a"}), chunk({"content": "b"}), STOP, USAGE],
    "no index": [ROLE, *[{**BASE, "choices": [{"delta": {"content": c}}]} for c in "ab"], STOP, USAGE],
    "no delta at the end": [
        ROLE,
        chunk({"content": "ab"}),
        {**BASE, "choices": [{"index": 0, "finish_reason": "stop"}]},
        USAGE,
    ],
    "id and created change": [
        ROLE,
        *[chunk({"content": c}, id=c, created=n) for n, c in enumerate("ab")],
        STOP,
        USAGE,
    ],
    "no id, no object, no created, no model": [
        *[{"choices": [{"index": 0, "delta": {"content": c}}]} for c in "ab"],
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ],
    "usage in every chunk": [{**c, "usage": USAGE["usage"]} for c in (ROLE, chunk({"content": "ab"}), STOP)],
    "usage in the last chunk with choices": [
        ROLE,
        chunk({"content": "ab"}),
        {**STOP, "usage": USAGE["usage"]},
    ],
    "usage null in every chunk": [
        *[{**c, "usage": None} for c in (ROLE, chunk({"content": "ab"}), STOP)],
        USAGE,
    ],
    "usage chunk before the end": [ROLE, chunk({"content": "a"}), USAGE, chunk({"content": "b"}), STOP],
    "usage twice": [ROLE, chunk({"content": "ab"}), STOP, USAGE, USAGE],
    "no usage": [ROLE, chunk({"content": "ab"}), STOP],
    "finish reason twice": [ROLE, chunk({"content": "ab"}), STOP, STOP, USAGE],
    "no finish reason": [ROLE, chunk({"content": "ab"}), USAGE],
    "empty finish reason": [ROLE, *[chunk({"content": c}, "") for c in "ab"], STOP, USAGE],
    "unknown finish reason": [ROLE, chunk({"content": "ab"}), chunk({}, "eos"), USAGE],
    "text after the finish": [ROLE, chunk({"content": "ab"}), STOP, chunk({"content": "c"}), USAGE],
    "chunk without choices": [
        {**BASE, "choices": [], "prompt_filter_results": []},
        ROLE,
        chunk({"content": "ab"}),
        STOP,
        USAGE,
    ],
    "choices null": [{**BASE, "choices": None}, ROLE, chunk({"content": "ab"}), STOP, USAGE],
    "message instead of delta": [
        {
            **BASE,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}
            ],
        }
    ],
}


@pytest.mark.compliance("O10", "O11", "O12", "O13")
@pytest.mark.req("D20")
@pytest.mark.parametrize("cut", [0, 1, 13])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_stream_is_mended(case: str, usage: bool, end: str, cut: int) -> None:
    assert text_of(run(*BROKEN[case], usage=usage, end=end, cut=cut), usage=usage) == ["ab"]


def test_a_stream_without_done_is_closed() -> None:
    assert text_of(run(ROLE, chunk({"content": "ab"}), STOP, done=False)) == ["ab"]


@pytest.mark.compliance("O02", "O04")
def test_a_last_event_without_a_blank_line_a_bom_and_comments() -> None:
    raw = "\ufeff: hello\n\n" + "".join(
        f"data: {json.dumps(c)}\n\n" for c in (ROLE, chunk({"content": "ab"}))
    )
    raw += ": ping\n\nevent: message\nid: 5\nretry: 3\ndata:" + json.dumps(STOP)
    stream, splitter = (
        ChunkStream(Operation.CHAT, "m", created=9, ask_usage=False, prompt_tokens=3),
        EventSplitter(),
    )
    out = stream.feed(splitter.feed(raw.encode()))
    assert text_of(out + stream.feed(splitter.finish()) + stream.finish(), usage=False) == ["ab"]


@pytest.mark.compliance("O02")
def test_an_event_in_several_data_lines_is_joined() -> None:
    text = json.dumps(chunk({"content": "ab"}), indent=1).replace("\n", "\ndata: ")
    assert text_of(run(ROLE, text, STOP, USAGE)) == ["ab"]


@pytest.mark.compliance("O03")
def test_ids_of_events_are_dropped_because_the_sdk_trips_over_comments_after_them() -> None:
    assert b"id: 5" not in run(ROLE, json.dumps(chunk({"content": "ab"})) + "\nid: 5", STOP, USAGE)


@pytest.mark.compliance("O15")
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_choices_of_n_begin_in_order_whatever_comes_first(order: tuple[int, ...]) -> None:
    said = [chunk({"content": "abc"[index]}, index=index) for index in order]
    ends = [chunk({}, "stop", index) for index in order]
    assert text_of(run(*said, *ends, USAGE), choices=3) == ["a", "b", "c"]
    together = {**BASE, "choices": [choice for one in said for choice in one["choices"]]}
    assert text_of(run(together, *ends, USAGE), choices=3) == ["a", "b", "c"]


def test_an_index_that_no_choice_can_have_is_not_believed() -> None:
    body = run(chunk({"content": "a"}, index=10**9), chunk({}, "stop", 10**9), USAGE)
    assert text_of(body) == ["a"]


def call(arguments: Any, **members: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": members.pop("name")} if "name" in members else {})
    return {"function": function, **members}


CALLS: dict[str, list[list[dict[str, Any]]]] = {
    "clean": [
        [call("", index=0, id="1", type="function", name="f")],
        [call('{"a"', index=0)],
        [call(":1}", index=0)],
        [call("", index=1, id="2", type="function", name="g")],
        [call("{}", index=1)],
    ],
    "id and name in every piece": [
        [call("", index=0, id="1", type="function", name="f")],
        [call('{"a"', index=0, id="1", type="function", name="f")],
        [call(":1}", index=0, id="1", type="function", name="f")],
        [call("{}", index=1, id="2", type="function", name="g")],
    ],
    "no index": [
        [call('{"a"', id="1", type="function", name="f")],
        [call(":1}")],
        [call("{}", id="2", type="function", name="g")],
    ],
    "all of index 0": [
        [call('{"a":1}', index=0, id="1", type="function", name="f")],
        [call("{}", index=0, id="2", type="function", name="g")],
    ],
    "indexes from 1": [
        [call('{"a":1}', index=1, id="1", type="function", name="f")],
        [call("{}", index=2, id="2", type="function", name="g")],
    ],
    "both at once": [
        [
            call('{"a":1}', index=0, id="1", type="function", name="f"),
            call("{}", index=1, id="2", type="function", name="g"),
        ]
    ],
    "arguments as an object": [
        [call({"a": 1}, index=0, id="1", type="function", name="f")],
        [call({}, index=1, id="2", type="function", name="g")],
    ],
    "no id, no type": [[call('{"a":1}', index=0, name="f")], [call("{}", index=1, name="g")]],
}


@pytest.mark.compliance("O20", "O21", "O22")
@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_tool_calls_are_mended(case: str, finish: str) -> None:
    pieces = [chunk({"tool_calls": calls}) for calls in CALLS[case]]
    said = check_chat_stream(run(ROLE, *pieces, chunk({}, finish), USAGE), usage=True)
    assert [(c["name"], json.loads(c["arguments"])) for c in said[0]["calls"]] == [("f", {"a": 1}), ("g", {})]
    assert len({c["id"] for c in said[0]["calls"]}) == 2
    assert said[0]["finish_reason"] == "tool_calls"


@pytest.mark.compliance("O06")
@pytest.mark.parametrize(
    "chunks",
    [
        ([ROLE, {"error": {"message": "boom"}}]),
        ([ROLE, "<html>"]),
        ([ROLE, "[1]"]),
        ([ROLE, '{"a":' + "[" * 5000]),
    ],
)
def test_what_is_no_chunk_ends_the_stream(chunks: list[Any]) -> None:
    with pytest.raises(UpstreamFailed):
        run(*chunks)


@pytest.mark.parametrize("chunks", [[], [ROLE], [ROLE, chunk({"content": "a"})]])
def test_a_stream_that_just_ends_is_not_called_complete(chunks: list[Any]) -> None:
    with pytest.raises(UpstreamFailed, match="without finishing"):
        run(*chunks, done=False)


def test_an_estimate_counts_the_chunks_that_carried_something() -> None:
    stream = ChunkStream(Operation.CHAT, "m", created=9, ask_usage=False, prompt_tokens=3)
    for one in (
        ROLE,
        chunk({"content": "a"}),
        chunk({"content": "b"}),
        chunk({"reasoning_content": "c"}),
        STOP,
    ):
        stream.feed(b"data: " + json.dumps(one).encode() + b"\n\n")
    assert (stream.usage.completion_tokens, stream.usage.estimated) == (3, True)


@pytest.mark.compliance("O10", "O13")
def test_text_completions_are_mended_too() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    base = {"id": "x", "object": "text_completion", "created": 1, "model": "m"}
    pieces = [{**base, "created": n, "choices": [{"text": t, "index": 0}]} for n, t in enumerate("ab")]
    last = {**base, "choices": [{"text": "", "index": 0, "finish_reason": "stop"}], "usage": usage}
    stream = ChunkStream(Operation.COMPLETION, "m", created=9, ask_usage=True, prompt_tokens=3)
    out = b"".join(stream.feed(b"data: " + json.dumps(one).encode() + b"\n\n") for one in [*pieces, last])
    events = parse_stream(out + stream.finish())
    assert "".join(event["choices"][0]["text"] for event in events[:-2]) == "ab"
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None, None, "stop"]
    assert events[-2]["usage"] == usage
    assert len({(event["id"], event["created"]) for event in events[:-1]}) == 1


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.mark.compliance("O01")
@given(st.lists(texts, max_size=12), st.integers(0, 40), st.booleans(), st.booleans(), st.randoms())
def test_text_is_never_changed(
    pieces: list[str], cut: int, ascii_only: bool, drifting: bool, chance: Any
) -> None:
    """Whatever the text, however it is escaped and cut: what the client puts together is what the backend said."""
    chunks = [chunk({"content": t}, created=chance.randrange(3) if drifting else 7) for t in pieces]
    encoded = [
        json.dumps(c, ensure_ascii=ascii_only, separators=chance.choice([(",", ":"), None])) for c in chunks
    ]
    [text] = text_of(run(ROLE, *encoded, STOP, USAGE, cut=cut))
    assert text == "".join(pieces)


@given(st.binary(max_size=60), st.integers(1, 9))
def test_garbage_never_raises_anything_else(garbage: bytes, cut: int) -> None:
    stream, splitter = (
        ChunkStream(Operation.CHAT, "m", created=9, ask_usage=True, prompt_tokens=3),
        EventSplitter(),
    )
    for start in range(0, len(garbage), cut):
        try:
            stream.feed(splitter.feed(b"data: " + garbage[start : start + cut] + b"\n\n"))
        except UpstreamFailed:
            return
