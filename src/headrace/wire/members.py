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
_SPACE = " \t\r\n"
_SPACE_BYTES = _SPACE.encode()


def split(body: bytes, control: Collection[str]) -> Members:
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
    return b"{" + b",".join([_key(name) + value for name, value in members.items()]) + b"}"


def raw(value: object) -> msgspec.Raw:
    """*value* as JSON, to be set as a member."""
    return msgspec.Raw(msgspec.json.encode(value))


def _compact_length(members: Members) -> int:
    """Bytes of the shortest object with these members. A body of this length has no others, and no escaped names."""
    total = 1 + max(1, len(members))
    for name, value in members.items():
        total += 3 + (len(name) if name.isascii() else len(name.encode())) + len(memoryview(value))
    return total


def _has_no_others(body: bytes, members: Members) -> bool:
    """Whether *body* is these members and white space, and nothing else: then none is repeated, none has an escaped name."""
    if len(body) == _compact_length(members):
        return True
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


@functools.lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return msgspec.json.encode(name) + b":"
