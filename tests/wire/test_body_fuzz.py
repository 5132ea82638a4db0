"""Bodies put together from everything that JSON readers disagree about: each is refused with a reason, or every reader finds
in it, and in what we write for a backend, the control members that we found.
"""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from headrace.domain.inference import Api, Operation
from headrace.kernel.errors import InvalidRequest
from headrace.wire.openai import InferenceBody, decode_request

CONTROL = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
KNOWN = {
    Operation.CHAT: set(CONTROL) | {"user"},
    Operation.COMPLETION: set(CONTROL) - {"max_completion_tokens"} | {"user"},
    Operation.EMBEDDING: {"model", "user"},
}
"""Of the members that are written here, those that are looked at."""
PROMPTS = {Operation.CHAT: "messages", Operation.COMPLETION: "prompt", Operation.EMBEDDING: "input"}
_PROMPT_VALUES = {
    Operation.CHAT: b'[{"role":"user","content":"x","model":"y"}]',
    Operation.COMPLETION: b'"x"',
    Operation.EMBEDDING: b'["x"]',
}
Pairs = list[tuple[str, Any]]


# How backends read


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _number(digits: str) -> int | str:
    return int(digits) if len(digits) < 1000 else digits


def _python(keep: Callable[[Pairs], dict[str, Any]]) -> Callable[[bytes], Any]:
    def read(body: bytes) -> Any:
        return json.loads(
            body.decode(), object_pairs_hook=keep, parse_constant=_refuse_constant, parse_int=_number
        )

    return read


def _first(pairs: Pairs) -> dict[str, Any]:
    return dict(reversed(pairs))


def _last_of_any_case(pairs: Pairs) -> dict[str, Any]:
    return {name.casefold(): value for name, value in pairs}


def _first_of_any_case(pairs: Pairs) -> dict[str, Any]:
    return _last_of_any_case(pairs[::-1])


READERS: dict[str, Callable[[bytes], Any]] = {
    "the last of repeated members": _python(dict),
    "the first of them": _python(_first),
    "the last in any case": _python(_last_of_any_case),
    "the first in any case": _python(_first_of_any_case),
    "msgspec": msgspec.json.decode,
}


# How clients write


@dataclass(frozen=True)
class Written:
    """A body as bytes, and for which operation."""

    operation: Operation
    body: bytes


def _escaped(name: str, which: str) -> bytes:
    """A JSON string for *name*; `which` says for each character how it is written, over and over."""
    spelled = ""
    for index, char in enumerate(name):
        how = which[index % len(which)]
        if how == "u":
            spelled += f"\\u{ord(char):04x}"
        elif how == "U":
            spelled += f"\\u{ord(char):04X}"
        else:
            spelled += char if ord(char) >= 32 and char not in '"\\' else json.dumps(char)[1:-1]
    return f'"{spelled}"'.encode()


_spellings = st.sampled_from(["p", "p", "p", "u", "pu", "ppppU"])
_variants = ["Model", "MODEL", "mode\u200bl", "model ", "model\x00", "\u017ftream", "Stream", "N", "\u212a", "max_to\u212aens"]  # fmt: skip
_names = st.sampled_from([*CONTROL, *CONTROL, *_variants, "user", "x", "", "a\\b", 'a"b', "\xe9", "\u6a21"])
_spaces = st.sampled_from([b"", b"", b"", b" ", b"\n", b"\t\r\n "])
_odd_spaces = st.sampled_from(
    [b"\x0b", b"\x0c", b"\xc2\xa0", b"\xef\xbb\xbf", b"/*c*/", b"//c\n", b"#c\n", b"\x00"]
)
_right = {
    "model": [b'"m"', b'"org/m:7b"', b'"\\u006d"', b'"m\\/x"', b'"\xc3\xa9"', b'"\\u00e9"'],
    "stream": [b"true", b"false", b"null"],
    "stream_options": [b"null", b"{}", b'{"include_usage":true}', b'{ "include_usage" : false , "x" : 1 }',
                       b'{"include_usage":true,"include_usage":false}', b'{"Include_Usage":true}'],
    "max_tokens": [b"1", b"7", b"null", b"2147483647"],
    "max_completion_tokens": [b"1", b"9", b"null"],
    "n": [b"1", b"2", b"128", b"null"],
}  # fmt: skip
_values = st.sampled_from([
    b"null", b"true", b"1", b"0", b"-1", b"-0", b"1.0", b"1e0", b"1E+2", b"0.5", b'""', b'"true"', b'"1"',
    b"[]", b"{}", b'{"model":"inner","model":"inner2"}', b'{"stream":true}', b'[{"model":1}]', b'"\\ud83d\\ude00"',
    b'"a\\"b\\\\,\\"model\\":\\"y"', b'"},\\"model\\":{"', b"9" * 400, b"-" + b"9" * 25, b"[" * 200 + b"]" * 200,
    b'"\xf0\x9f\x98\x80"', b"[1 , 2]", b'{ "a" :1}',
])  # fmt: skip
_wrong_values = st.sampled_from([
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"undefined", b"True", b"None", b"tru", b"01", b"+1", b".5", b"1.", b"1e",
    b"0x10", b"1_000", b"-", b"'m'", b"m", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\x41"', b'"\\u12"', b'"\n"', b'"\x00"',
    b'"\x1f"', b'"\xff"', b'"\xc0\xae"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"open', b"[1,]", b"{,}", b"[", b"]",
    b"[" * 100_000, b"{1:2}", b'{"a" "b"}', b"", b"1 2",
])  # fmt: skip


@st.composite
def _member(draw: st.DrawFn, name: str, value: bytes) -> bytes:
    spaces = [draw(_spaces) for _ in range(4)]
    if draw(st.integers(0, 60)) == 60:
        spaces[draw(st.integers(0, 3))] = draw(_odd_spaces)
    before, after_name, after_colon, after = spaces
    return before + _escaped(name, draw(_spellings)) + after_name + b":" + after_colon + value + after


@st.composite
def _bodies(draw: st.DrawFn) -> Written:
    """Mostly right ones: what is wrong is rare, so that it comes alone."""
    operation = draw(st.sampled_from(Operation.of(Api.OPENAI)))
    named = {name: draw(st.sampled_from(_right[name])) for name in draw(st.sets(st.sampled_from(CONTROL)))}
    if draw(st.integers(0, 7)) < 7:
        named.setdefault("model", b'"m"')
    if named.get("stream_options", b"null") != b"null" and draw(st.integers(0, 3)) < 3:
        named["stream"] = b"true"
    members = [*named.items(), (PROMPTS[operation], _PROMPT_VALUES[operation])]
    for _ in range(draw(st.integers(0, 2))):
        value = draw(_wrong_values if draw(st.integers(0, 9)) == 9 else _values)
        members.append((draw(_names), value))
    written = [draw(_member(name, value)) for name, value in draw(st.permutations(members))]
    before, behind = draw(_spaces), draw(_spaces)
    if draw(st.integers(0, 20)) == 20:
        before = draw(_odd_spaces | st.just(b"\xff\xfe"))
    if draw(st.integers(0, 20)) == 20:
        behind = draw(
            _odd_spaces | st.sampled_from([b"{}", b'{"model":"z"}', b",", b"}", b"x", b"\xff", b"\n{"])
        )
    return Written(operation, before + b"{" + b",".join(written) + b"}" + behind)


_CHAT = b'"messages":[{"role":"user","content":"x"}]'


def _chat(members: bytes, behind: bytes = b"") -> Written:
    return Written(Operation.CHAT, b"{" + members + b"," + _CHAT + b"}" + behind)


@pytest.mark.slow
@settings(max_examples=800, deadline=None)
@given(_bodies())
@example(_chat(b'"model":"m","mod\\u0065l":"z"'))
@example(_chat(b'"mod\\u0065l":"m"'))
@example(_chat(b'"model":"m","model" :"z"'))
@example(_chat(b'"model":"m","Model":"z"'))
@example(_chat(b'"model":"m","max_to\xe2\x84\xaaens":5'))
@example(_chat(b'"model":"m","\\u017ftream":true'))
@example(_chat(b'"model":"m","stream":true,"stream_options":{"include_usage":true,"include_usage":false}'))
@example(_chat(b'"model":"m","x":"a\\",\\"model\\":\\"z"'))
@example(_chat(b'"model":"m","n":1.0'))
@example(_chat(b'"model":"m","n":2,"x":NaN'))
@example(_chat(b'"model":"m","seed":' + b"9" * 5000))
@example(_chat(b'"model":"\\ud800"'))
@example(_chat(b'"model":"m","x":"\xed\xa0\x80"'))
@example(_chat(b'"model":"m"', b'{"model":"z"}'))
@example(Written(Operation.CHAT, b'\xef\xbb\xbf{"model":"m",' + _CHAT + b"}"))
def test_a_body_is_refused_or_means_the_same_to_every_reader(written: Written) -> None:
    read = _read(written)
    if isinstance(read, InvalidRequest):
        assert read.code or read.param
        return
    expected = _control(read)
    for how, reader in READERS.items():
        given = _without_nulls(reader(written.body), written.operation)
        for name in KNOWN[read.operation] - {"user", "stream_options"}:  # of the last, we write our own
            assert given.get(name) == expected.get(name), f"{how} finds another {name} in what came"
    for model in (read.model, "else\u0000where"):
        for stream, ask_usage in ((False, False), (True, False), (True, True)):
            _check_rendered(read, read.render(model=model, stream=stream, ask_usage=ask_usage), model, stream, ask_usage)  # fmt: skip


def _check_rendered(read: InferenceBody, body: bytes, model: str, stream: bool, ask_usage: bool) -> None:
    expected, known = _control(read) | {"model": model}, KNOWN[read.operation]
    if read.operation.streams:
        expected |= {"stream": stream}
        expected.pop("stream_options", None)
        if stream and ask_usage:
            expected["stream_options"] = {"include_usage": True}
    for how, reader in READERS.items():
        found = reader(body)
        assert {name: found[name] for name in CONTROL if name in found and name in known} == {
            name: value for name, value in expected.items() if name in known
        }, f"{how} finds something else in what we write"


@given(_bodies())
def test_members_that_are_not_ours_to_edit_reach_the_backend_as_they_came(written: Written) -> None:
    read = _read(written)
    if isinstance(read, InvalidRequest):
        return
    for reader in (READERS["the last of repeated members"], READERS["msgspec"]):
        sent = reader(read.render(model=read.model, stream=False, ask_usage=False))
        came = _without_nulls(reader(written.body), written.operation)
        edited = {"stream", "stream_options"} if read.operation.streams else set()
        assert {k: v for k, v in sent.items() if k not in edited} == {
            k: v for k, v in came.items() if k not in edited
        }


def _control(read: InferenceBody) -> dict[str, Any]:
    """What we read, as the members would stand in a body. What isn't there can't be told from its default: from `members`."""
    present = {name for name in read.members if name in CONTROL}
    control = {name: msgspec.json.decode(read.members[name]) for name in present} | {"model": read.model}
    known = {name: value for name, value in control.items() if name in KNOWN[read.operation]}
    assert read.stream is known.get("stream", False)
    assert read.choices == known.get("n", 1)
    assert read.max_tokens == known.get("max_completion_tokens", known.get("max_tokens"))
    assert read.include_usage is bool(known.get("stream_options", {}).get("include_usage"))
    return control


def _without_nulls(body: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """A member that we know and that is null counts as absent."""
    return {name: value for name, value in body.items() if value is not None or name not in KNOWN[operation]}


def _read(written: Written) -> InferenceBody | InvalidRequest:
    try:
        return decode_request(written.operation, written.body)
    except InvalidRequest as refusal:
        return refusal


@pytest.mark.slow
def test_the_bodies_are_of_all_kinds() -> None:
    """Else the tests above would prove little."""
    seen: Counter[str] = Counter()

    @settings(max_examples=800, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(_bodies())
    def look(written: Written) -> None:
        read = _read(written)
        if isinstance(read, InvalidRequest):
            seen[f"refused: {read.code}"] += 1
            return
        seen[f"accepted: {read.operation}"] += 1
        seen["escaped"] += b"\\u00" in written.body
        seen["spaced"] += b"\t\r\n " in written.body
        seen["limited and streamed"] += read.stream and read.max_tokens is not None
        seen["choices"] += read.choices > 1

    look()
    kinds = ["invalid_json", "repeated_member", "invalid_value", "missing_member"]
    wanted = [f"refused: {kind}" for kind in kinds] + [
        f"accepted: {operation}" for operation in Operation.of(Api.OPENAI)
    ]
    wanted += ["escaped", "spaced", "limited and streamed", "choices"]
    assert {kind for kind in wanted if not seen[kind]} == set(), seen


def test_what_bodies_say_is_remembered_only_while_it_is_short() -> None:
    """Clients choose the names of members: nothing that they send is kept, but for a bounded number of short ones."""

    def send(number: int) -> None:
        name = b"%d" % number + b"x" * 100_000
        body = decode_request(Operation.CHAT, b'{"model":"m","' + name + b'":1,' + _CHAT + b"}")
        body.render(model="m", stream=False, ask_usage=False)

    send(0)
    tracemalloc.start()
    try:
        for number in range(1, 50):
            send(number)
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
