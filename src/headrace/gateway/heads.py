"""What the head of an inference request says, and what that of its answer tells of the way it went."""

from __future__ import annotations

import msgspec

from headrace.domain.inference import Operation
from headrace.gateway.problems import budget_lines
from headrace.ports.control import Grant


class RequestHead(msgspec.Struct):
    """The fields of a request that matter here, as they came; empty where there is none.

    modern: HTTP/1.1, so the answer may come in chunks. length: 0 where it isn't told. expects: it waits for a `100 Continue`.
    forwarded: whom it is said to come from, by whoever may say so. client: from whom it comes, once somebody wanted to know.
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
            elif name == b"expect":
                self.expects = True
            elif name == b"x-forwarded-for":
                self.forwarded = self.forwarded + b"," + value if self.forwarded else value


def way_lines(grant: Grant, asked_at: float) -> bytes:
    """Header lines that tell a client which way its request went: the node, its place in the queue, how its limits stand.

    asked_at: when the request was complete, on the clock of `Grant.granted_at`.
    """
    lines = b"x-headrace-node: %b\r\nx-headrace-attempts: %d\r\nx-headrace-overhead-ms: %.2f\r\n" % (
        grant.target.encode(),
        grant.executions,
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
