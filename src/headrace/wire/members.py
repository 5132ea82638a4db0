"""The top level of a JSON object as raw members: looked at, edited, and always written again.

A body is never passed on as it came: it is written again from the raw slices of its members, so that a repeated member,
or one in another case, can't mean one thing to us and another to the backend.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection

import msgspec

from headrace.kernel.errors import InvalidRequest

Members = dict[str, msgspec.Raw]
"""Name → the member's value as it came, without white space around it."""

_top_level = msgspec.json.Decoder(Members)
_walker = json.JSONDecoder(parse_int=len)  # values are only walked over; int() refuses very long numbers
_MAX_CACHED_CHARS = 512
"""A client can make names as long as a body: only short ones are remembered."""
_SPACE = " \t\r\n"
_SPACE_BYTES = _SPACE.encode()


def split(body: bytes, control: frozenset[str]) -> Members:
    """The members of the JSON object *body*, in order; of repeated ones the last.

    No member of *control* is repeated, nor present under a name that differs from it in case alone. The values are
    well-formed JSON and the body is UTF-8, but what the values are is not looked at.

    Raises:
        InvalidRequest: not UTF-8, not JSON, too deeply nested, not an object, or such a repetition.
    """
    try:
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid UTF-8 (at byte {error.start}).", code="invalid_json"
        ) from None
    try:
        members = _top_level.decode(body)
        if len(body) == _compact_length(members, control):
            return members
        names = members if _has_no_others(body, members) else _names(body.decode())
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    _refuse_repeated(names, control)
    return members


def join(members: Members) -> bytes:
    """The members as one compact JSON object."""
    pieces = [
        (_known_key(name) if len(name) <= _MAX_CACHED_CHARS else _key(name)) + value
        for name, value in members.items()
    ]
    return b"{" + b",".join(pieces) + b"}"


def raw(value: object) -> msgspec.Raw:
    """*value* as JSON, to be set as a member."""
    return msgspec.Raw(msgspec.json.encode(value))


def _compact_length(members: Members, control: frozenset[str]) -> int:
    """Bytes of the shortest object with these members. A body of this length has no others, and no escaped names."""
    frame_length = _frame_length if sum(map(len, members)) <= _MAX_CACHED_CHARS else _frame_length.__wrapped__
    total = frame_length(tuple(members), control)
    for value in members.values():
        total += len(memoryview(value))
    return total


@functools.lru_cache(maxsize=1024)
def _frame_length(names: tuple[str, ...], control: frozenset[str]) -> int:
    """Bytes of the shortest object with members of these *names*, without its values. Clients use the same few sets of names
    again and again.

    Raises:
        InvalidRequest: one of them differs from a name of *control* in case alone.
    """
    _refuse_repeated(names, control)
    return 1 + max(1, len(names)) + sum(3 + len(name.encode()) for name in names)


def _has_no_others(body: bytes, members: Members) -> bool:
    """Whether *body* is these members and white space, and nothing else: then none is repeated, none has an escaped name."""
    position = _after_space(body, 0) + 1
    for name, value in members.items():
        position = _after_space(body, position)
        if not body.startswith(key := b'"%b"' % name.encode(), position):
            return False
        position = _after_space(body, _after_space(body, position + len(key)) + 1)  # past the colon
        if not body.startswith(memoryview(value), position):
            return False
        position = _after_space(body, position + len(memoryview(value))) + 1  # past the comma, or the end
    return not body[position:].strip()


def _names(text: str) -> list[str]:
    """Every name at the top level of the valid JSON object *text*, repeated ones too, unescaped. Linear in its length."""
    names = []
    position = _after_space(text, _after_space(text, 0) + 1)
    while text[position] != "}":
        name, position = _walker.raw_decode(text, position)
        names.append(name)
        position = _after_space(text, _after_space(text, position) + 1)  # past the colon
        _, position = _walker.raw_decode(text, position)
        position = _after_space(text, position)
        if text[position] == ",":
            position = _after_space(text, position + 1)
    return names


def _after_space(text: str | bytes, position: int) -> int:
    space: str | bytes = _SPACE if isinstance(text, str) else _SPACE_BYTES
    while text[position] in space:
        position += 1
    return position


def _refuse_repeated(names: Collection[str], control: Collection[str]) -> None:
    seen = set()
    for name in names:
        if name in control:
            if name in seen:
                raise InvalidRequest(
                    f"The member {name!r} is given twice.", param=name, code="repeated_member"
                )
            seen.add(name)
        elif not (name.isascii() and name.islower()) and (folded := name.casefold()) in control:
            # Backends in Go match names without regard to case: "Model" would win over "model" there.
            raise InvalidRequest(
                f"The member {name!r} is not known; did you mean {folded!r}?",
                param=folded,
                code="repeated_member",
            )


def _key(name: str) -> bytes:
    return msgspec.json.encode(name) + b":"


_known_key = functools.lru_cache(maxsize=1024)(_key)
