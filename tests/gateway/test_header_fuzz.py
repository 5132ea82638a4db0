"""Headers cross by allow-list, both ways, whatever is sent: of a client's, not one reaches a backend; of a backend's, none
reaches a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.kernel.clock import SystemClock
from support.answers import DONE, chunk
from support.house import KEY, House, gateway
from support.raw import RawClient, call

CHAT, EMBEDDING = "/v1/chat/completions", "/v1/embeddings"
SECRET = b"s3cr3t-0f-the-0ther"
OWN_KEY = b"Bearer sk-of-the-connector"
Fields = list[tuple[bytes, bytes]]
ASK = {
    CHAT: json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}).encode(),
    EMBEDDING: json.dumps({"model": "m", "input": "x"}).encode(),
}
ANSWER = {
    CHAT: (
        b"text/event-stream",
        chunk({"role": "assistant"}) + chunk({"content": "a"}) + chunk({}, finish="stop") + DONE,
    ),
    EMBEDDING: (
        b"application/json",
        b'{"object":"list","model":"m","data":[{"object":"embedding","index":0,"embedding":[1.0]}],'
        b'"usage":{"prompt_tokens":1,"total_tokens":1}}',
    ),
}


@dataclass
class Backend:
    """Keeps the heads that came for inference, byte by byte, and answers with the fields that the test wants."""

    fields: Fields = field(default_factory=list)
    status: bytes = b"200 OK"
    compresses: bool = False
    heads: list[bytes] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for many requests."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)\r\n", head)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(self._answer(head))
        writer.close()

    def _answer(self, head: bytes) -> bytes:
        if head.startswith(b"GET"):
            listed = b'{"object":"list","data":[{"id":"m"}]}'
            return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(listed), listed)
        self.heads.append(head)
        kind, body = ANSWER[head.split(b" ")[1].decode()]
        if self.compresses:
            body = gzip.compress(body)
        lines = b"".join([b"%b: %b\r\n" % pair for pair in self.fields])
        framing = b"Content-Type: %b\r\nContent-Length: %d\r\n" % (kind, len(body))
        return b"HTTP/1.1 " + self.status + b"\r\n" + lines + framing + b"\r\n" + body


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = Backend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield backend
    server.close()


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[House]:
    """With a connector that has credentials of its own."""
    keyed = DirectConnector(
        Endpoint.parse(backend.url), clock=SystemClock(), headers=[(b"Authorization", OWN_KEY)]
    )
    async with gateway(asgi=request.param, engines={"m": keyed}) as house:
        yield house


_tokens = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
_names = _tokens | st.sampled_from([
    b"Accept", b"accept-encoding", b"Accept-Language", b"Host", b"X-Request-Id", b"x-request-id", b"User-Agent", b"Cookie",
    b"Authorization", b"AUTHORIZATION", b"Proxy-Authorization", b"X-Api-Key", b"Api-Key", b"X-Auth-Token", b"X-Goog-Api-Key",
    b"X-Amz-Security-Token", b"OpenAI-Organization", b"X-Forwarded-For", b"Forwarded", b"Via", b"X-Real-IP", b"Origin",
    b"Referer", b"Keep-Alive", b"TE", b"Trailer", b"Proxy-Connection", b"Traceparent", b"X-Headrace-Node", b"Expect", b"Date",
    b"Content-Language", b"Content-Location", b"Content-Md5", b"Content-Length-X", b"Transfer_Encoding", b"Content_Length",
    b"If-None-Match", b"Range", b"Upgrade-Insecure-Requests", b"HTTP2-Settings", b":authority",
])  # fmt: skip
_values = (
    st.sampled_from([SECRET, b"Bearer " + SECRET, KEY.encode(), b"", b"*/*", b"gzip, br", b"100-continue", b"trailers",
                     b"a\tb", b"\xff\xfe", b"host, authorization", b"x" * 9000, b"req_" + b"0" * 24, b"a, b;q=0.5"])
    | st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127))
)  # fmt: skip
_fields = st.lists(st.tuples(_names, _values), max_size=8)
_connection = st.sampled_from([
    None, None, b"keep-alive", b"close", b"content-type", b"authorization, x-api-key", b"Keep-Alive, Host, accept",
    b"x-request-id", b"content-length", b"te, trailer",
])  # fmt: skip
_key = st.sampled_from([b"Authorization: Bearer ", b"authorization:bearer  ", b"X-API-Key: ", b"x-api-key:"])
_kept = HealthCheck.function_scoped_fixture


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[_kept])
@given(_fields, _connection, _key, st.integers(0, 8), st.sampled_from([CHAT, EMBEDDING]))
@example([(b"Authorization", b"Bearer " + SECRET)], None, b"X-API-Key: ", 0, CHAT)
@example([(b"Cookie", SECRET), (b"Cookie", SECRET)], b"cookie", b"Authorization: Bearer ", 1, CHAT)
@example([(b"X-Request-Id", b"mine\twith a tab")], None, b"Authorization: Bearer ", 0, EMBEDDING)
@example([(b"Content-Encoding", b"identity")], None, b"Authorization: Bearer ", 0, EMBEDDING)
async def test_of_a_clients_headers_none_reaches_the_backend(
    backend: Backend,
    house: House,
    fields: Fields,
    connection: bytes | None,
    key: bytes,
    place: int,
    path: str,
) -> None:
    backend.heads.clear()
    lines = [b"%b: %b" % pair for pair in fields]
    lines.insert(min(place, len(lines)), key + KEY.encode())
    if connection is not None:
        lines.append(b"Connection: " + connection)
    lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(ASK[path])]
    async with RawClient(house.port) as client:
        client.send(b"\r\n".join([b"POST " + path.encode() + b" HTTP/1.1", *lines, b"", b""]) + ASK[path])
        status, headers = await client.head()
        while status == 100:
            status, headers = await client.head()
        assert status in (200, 400, 401, 415), "a second key may be a wrong one; not every name is HTTP's"
        assert len(backend.heads) == (status == 200)
        for head in backend.heads:
            _check_upstream(head, path, backend.url)
        _check_told(headers, backend.fields)
        await _rest(client, headers)
        await _is_sane(client, house, headers)


def _check_upstream(head: bytes, path: str, url: str) -> None:
    """Exactly what we send, each field once, in any order."""
    line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert line == b"POST " + path.encode() + b" HTTP/1.1"
    pairs = [(name.lower(), value) for name, _, value in (each.partition(b": ") for each in lines)]
    given = dict(pairs)
    ident = given.pop(b"x-request-id")
    assert re.fullmatch(rb"req_[0-9a-f]{24}", ident)
    assert ident != b"req_" + b"0" * 24, "it is ours, not the client's"
    assert given.pop(b"content-length").isdigit()
    assert given == {
        b"host": url.removeprefix("http://").encode(),
        b"authorization": OWN_KEY,
        b"accept-encoding": b"identity",
        b"content-type": b"application/json",
        b"accept": b"text/event-stream" if path == CHAT else b"application/json",
    }
    assert len(pairs) == len(given) + 2
    assert SECRET not in head
    assert KEY.encode() not in head


def _check_told(headers: dict[str, str], sent: Fields) -> None:
    """Only what we say ourselves; the client's own request id may come back to it."""
    ours = {"date", "content-type", "content-length", "transfer-encoding", "x-request-id", "x-client-request-id",
            "x-headrace-node", "x-headrace-attempts", "x-headrace-overhead-ms", "x-headrace-queue-position",
            "x-headrace-queued-ms", "cache-control", "x-accel-buffering",
            "connection", "www-authenticate", "x-should-retry", "retry-after", "vary", "access-control-expose-headers"}  # fmt: skip
    assert set(headers) <= ours, set(headers) - ours
    assert headers["x-request-id"].startswith("req_")
    assert headers["content-type"] in ("application/json", "text/event-stream; charset=utf-8")
    assert headers.get("cache-control", "no-cache") == "no-cache"
    assert headers.get("vary", "Origin") == "Origin"
    assert headers.get("connection", "close") == "close"
    assert headers.get("transfer-encoding", "chunked") == "chunked"
    assert ("content-length" in headers) != ("transfer-encoding" in headers)
    for _, value in sent:
        assert not value.strip() or value.decode("latin-1") not in (
            headers["x-request-id"],
            headers.get("date"),
        )


async def _rest(client: RawClient, headers: dict[str, str]) -> bytes:
    """The body behind a head that was read."""
    if "content-length" in headers:
        return await client.reader.readexactly(int(headers["content-length"]))
    return b"".join([part async for part in client._chunks()])


async def _is_sane(client: RawClient, house: House, headers: dict[str, str]) -> None:
    """Closed, where that was said; else good for another request."""
    if headers.get("connection") == "close":
        assert await client.closed() == b""
        return
    client.request("GET", "/v1/models", house.auth)
    assert (await client.response()).status == 200


_upstream_names = st.sampled_from([
    b"Set-Cookie", b"Server", b"X-Powered-By", b"X-Request-Id", b"x-request-id", b"X-Headrace-Node", b"Via", b"Date", b"ETag",
    b"Cache-Control", b"Vary", b"WWW-Authenticate", b"Location", b"Retry-After", b"Strict-Transport-Security", b"Alt-Svc",
    b"Access-Control-Allow-Origin", b"Access-Control-Allow-Credentials", b"X-RateLimit-Remaining", b"OpenAI-Organization",
    b"Trailer", b"Content-Disposition", b"Content-Location", b"X-Accel-Redirect", b"X-Accel-Buffering", b"X-Should-Retry",
    b"Proxy-Authenticate", b"Refresh", b"Link", b"Clear-Site-Data", b"X-Content-Length", b"X-Client-Request-Id",
]) | _tokens.map(b"x-".__add__)  # fmt: skip
_upstream_connection = st.sampled_from([
    None, None, b"close", b"keep-alive", b"set-cookie, x-request-id", b"keep-alive, content-type-x",
])  # fmt: skip
_statuses = st.sampled_from([b"200 OK", b"200 OK", b"400 Bad", b"404 No", b"429 Busy", b"401 Key", b"500 No", b"302 There"])  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[_kept])
@given(
    st.lists(st.tuples(_upstream_names, _values), max_size=8),
    _upstream_connection,
    _statuses,
    st.sampled_from([CHAT, EMBEDDING]),
)
@example([(b"Set-Cookie", SECRET)], b"close", b"200 OK", CHAT)
async def test_of_a_backends_headers_none_reaches_the_client(
    backend: Backend, house: House, fields: Fields, connection: bytes | None, status: bytes, path: str
) -> None:
    backend.fields = [
        (name, value) for name, value in fields if b"429" not in status or name != b"Retry-After"
    ]
    backend.status = status
    if connection is not None:
        backend.fields.append((b"Connection", connection))
    try:
        async with asyncio.timeout(None if status != b"429 Busy" else 0.2), RawClient(house.port) as client:
            client.request("POST", path, house.auth, ASK[path])
            told, headers = await client.head()
            _check_told(headers, backend.fields)
            assert headers.get("x-headrace-node", "local/m") == "local/m"
            assert headers.get("x-should-retry", "false") == "false"
            assert (told == 200) is (status == b"200 OK")
            assert SECRET not in str(headers).encode() + await _rest(client, headers)
    except TimeoutError:
        assert status == b"429 Busy", "it waits until the backend takes it"
    finally:
        backend.fields, backend.status = [], b"200 OK"
        node = house.registry.get("local/m")
        assert node is not None
        house.registry.remove(node.id)  # what it did wrong in one example isn't held against it in the next
        house.registry.upsert(node)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Content-Length", b"5")],
        [(b"Content-Length", b"5, 5")],
        [(b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip")],
        [(b"Content-Length ", b"5")],
        [(b" folded", b"x")],
        [(b"X", b"a\x00b")],
        [(b"X", b"a\r\n folded")],
        [(b"X", b"a\nSet-Cookie: b")],
    ],
)
@pytest.mark.parametrize("path", [CHAT, EMBEDDING])
async def test_a_head_of_a_backend_that_can_be_doubted_becomes_a_502(
    backend: Backend, house: House, fields: Fields, path: str
) -> None:
    backend.fields = fields
    response = await call(house.port, "POST", path, house.auth, ASK[path])
    assert (response.status, response.error["code"]) == (502, "upstream_failed")
    _check_told(response.headers, fields)


async def test_a_body_that_a_backend_compressed_all_the_same_becomes_a_502(
    backend: Backend, house: House
) -> None:
    """We asked for identity, and can't read it; a client that is told nothing of the coding couldn't, either."""
    backend.fields, backend.compresses = [(b"Content-Encoding", b"gzip")], True
    for path in (CHAT, EMBEDDING):
        response = await call(house.port, "POST", path, house.auth, ASK[path])
        assert (response.status, response.error["code"]) == (502, "upstream_failed")
