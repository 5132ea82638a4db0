"""What the head of an inference request says, and what that of its answer tells of the way it went."""

from __future__ import annotations

import msgspec

from headrace.core.inference import Origin
from headrace.domain.inference import Operation
from headrace.domain.routing import MOST_TAGS, TAG
from headrace.gateway.problems import budget_lines
from headrace.kernel.errors import InvalidRequest
from headrace.ports.control import Grant

TAGS, SESSION = b"x-headrace-tags", b"x-headrace-session"
MOST_SESSION = 512


class RequestHead(msgspec.Struct):
    """The fields of a request that matter here, as they came; empty where there is none.

    modern: HTTP/1.1, so the answer may come in chunks. length: 0 where it isn't told. expects: it waits for a `100 Continue`.
    forwarded: whom it is said to come from, by whoever may say so. client: from whom it comes, once somebody wanted to know.
    tags, session: what it says about the backend that it wants.
    """

    operation: Operation
    modern: bool = True
    key: bytes = b""
    media: bytes = b"application/json"
    encoding: bytes = b""
    length: int = 0
    origin: bytes = b""
    given_id: bytes = b""
    expects: bool = False
    forwarded: bytes = b""
    client: str = ""
    tags: bytes = b""
    session: bytes = b""

    def origin_of(self, asked_at: float, client: str) -> Origin:
        """What is known of the request beside its body.

        Raises:
            InvalidRequest: its tags aren't such, or too many.
        """
        if not self.tags and not self.session:
            return Origin(asked_at, client)
        return Origin(asked_at, client, *read_hints(self.tags, self.session))

    def read(self, fields: list[tuple[bytes, bytes]]) -> None:
        """Take over what *fields* say; their names are in lower case."""
        for name, value in fields:
            if name == b"authorization":
                self.key = value[7:].strip() if value[:7].lower() == b"bearer " else self.key
            elif name == b"x-api-key":
                self.key = self.key or value.strip()
            elif name == b"content-type":
                self.media = value
            elif name == b"content-encoding":
                self.encoding = value
            elif name == b"content-length":
                self.length = int(value)
            elif name == b"origin":
                self.origin = value
            elif name == b"x-request-id":
                self.given_id = value
            else:
                self._read_rare(name, value)

    def _read_rare(self, name: bytes, value: bytes) -> None:
        if name == b"expect":
            self.expects = True
        elif name == b"x-forwarded-for":
            self.forwarded = self.forwarded + b"," + value if self.forwarded else value
        elif name == TAGS:
            self.tags = value
        elif name == SESSION:
            self.session = value


def read_hints(tags: bytes, session: bytes) -> tuple[tuple[str, ...], str]:
    """Tags and a session, from the fields `x-headrace-tags` (words, with commas between them) and `x-headrace-session`.

    Raises:
        InvalidRequest: a tag isn't one, there are too many, or the session's name is too long.
    """
    words = tuple(dict.fromkeys(word.strip() for word in tags.decode("latin-1").split(",") if word.strip()))
    if len(words) > MOST_TAGS or not all(map(TAG.fullmatch, words)):
        raise InvalidRequest(
            f"'x-headrace-tags' takes up to {MOST_TAGS} words of letters, digits, '_', '.' and '-', with commas between.",
            param="x-headrace-tags",
            code="invalid_value",
        )
    if len(session) > MOST_SESSION:
        raise InvalidRequest(
            f"'x-headrace-session' has at most {MOST_SESSION} bytes.",
            param="x-headrace-session",
            code="invalid_value",
        )
    return words, session.decode("latin-1")


def way_lines(grant: Grant, asked_at: float) -> bytes:
    """Header lines that tell a client which way its request went: the node, its place in the queue, how its limits stand.

    asked_at: when the request was complete, on the clock of `Grant.granted_at`.
    """
    lines = b"x-headrace-node: %b\r\nx-headrace-attempts: %d\r\nx-headrace-overhead-ms: %.2f\r\n" % (
        grant.target.encode(),
        grant.attempts,
        (grant.granted_at - asked_at) * 1000,
    )
    if grant.position:
        lines += b"x-headrace-queue-position: %d\r\nx-headrace-queued-ms: %.0f\r\n" % (
            grant.position,
            grant.waited_s * 1000,
        )
    if grant.budgets:
        lines += b"".join([b"%b: %b\r\n" % line for line in budget_lines(grant.budgets).items()])
    return lines


def way_fields(grant: Grant, asked_at: float) -> dict[bytes, bytes]:
    """The same, for who sends fields. The token lane sends lines, and putting them together from fields would cost it more."""
    lines = way_lines(grant, asked_at).splitlines()
    return {name: value for name, _, value in (line.partition(b": ") for line in lines)}
