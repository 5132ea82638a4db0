"""A request hidden in another one is never executed, and never gets into another one's answer.

Raw bytes against the real listener. Whatever a peer in front of us may take for the end of a request, we answer it in one of
two ways: we refuse it and close, so that nothing behind it is read; or we read it as the standard says, to the letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.testing.fake_engine import FakeEngine, Script
from support.house import House, gateway
from support.raw import RawClient, RawResponse, call
from support.waiting import until

CHAT = "/v1/chat/completions"


def body(text: str = "hi", *, stream: bool = False) -> bytes:
    return json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": text}], "stream": stream}
    ).encode()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=2)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(engine.url, asgi=request.param) as house:
        yield house
        assert (await call(house.port, "POST", CHAT, house.auth, body())).status == 200


def request(
    house: House, payload: bytes, *fields: str, line: str = f"POST {CHAT} HTTP/1.1", end: str = "\r\n"
) -> bytes:
    """A request as bytes, with *fields* for its framing; without any, an honest content-length."""
    usual = ["host: x", f"authorization: {house.auth['authorization']}", "content-type: application/json"]
    lines = [line, *usual, *(fields or (f"content-length: {len(payload)}",)), "", ""]
    return end.join(lines).encode("latin-1") + payload


def executed(engine: FakeEngine) -> list[str]:
    """What each request that reached the backend said."""
    return [received.json()["messages"][0]["content"] for received in engine.stats.received]


async def answers(house: House, sent: bytes) -> tuple[list[RawResponse], bool]:
    """All that comes back for *sent*, and whether the connection was closed after it."""
    seen: list[RawResponse] = []
    async with RawClient(house.port) as client:
        client.send(sent)
        while True:
            try:
                async with asyncio.timeout(0.3 if seen else 20):
                    seen.append(await client.response())
            except TimeoutError:
                return seen, False
            except asyncio.IncompleteReadError as rest:
                if rest.partial:
                    pytest.fail("the connection ended inside an answer")
                return seen, True
            except ConnectionResetError:
                return seen, True


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_sent_with_the_first_one_is_not_executed_and_not_in_its_answer(
    engine: FakeEngine, house: House, stream: bool
) -> None:
    async with RawClient(house.port) as client:
        client.send(request(house, body("first", stream=stream)) + request(house, body("second")) * 3)
        response = await client.response()
        assert response.status == 200
        assert b"second" not in response.body
        if not stream:
            assert response.json["choices"][0]["message"]["content"] == "tok0 tok1"
        assert await client.closed() == b""
    assert engine.stats.started == 1


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body("first")), body("first"))
LENGTH = f"content-length: {len(body('first'))}"


@pytest.mark.parametrize(
    "fields",
    [
        ("content-length: {n}", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: {n}"),
        ("content-length: {n}", "content-length: {n}"),
        ("content-length: {n}", "content-length: 0"),
        ("content-length: 0", "content-length: {n}"),
        ("content-length: {n}, {n}",),
        ("content-length: +{n}",),
        ("content-length: -1",),
        ("content-length: 0x10",),
        ("content-length: {n}.0",),
        ("content-length: 1 0",),
        ("content-length: 99999999999999999999",),
        ("content-length: 18446744073709551617",),
        ("content-length:",),
        ("content-length : {n}",),
        ("content-length\t: {n}",),
        (" content-length: {n}",),
        ("x: y\r\n content-length: {n}",),
        ("content-length:\r\n {n}",),
        ("content-length\x00: {n}",),
        ("content-length: {n}\x00",),
        ("content-length: {n}\rx: y",),
        ("content-length: {n}\nx: y",),
        ("x: y\ncontent-length: {n}",),
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "transfer-encoding: identity"),
        ("transfer-encoding: identity", "transfer-encoding: chunked", "content-length: {n}"),
        ("transfer-encoding: identity",),
        ("transfer-encoding: xchunked",),
        ("transfer-encoding: chunkedx",),
        ("transfer-encoding: chunked, identity",),
        ("transfer-encoding: chunked, chunked",),
        ("transfer-encoding: chunked;q=1",),
        ('transfer-encoding: "chunked"',),
        ("transfer-encoding: gzip",),
        ("transfer-encoding:",),
        ("transfer-encoding:\x0bchunked",),
        ("transfer-encoding: chunked\x0b",),
        ("transfer-encoding:\r\n chunked",),
        ("transfer-encoding : chunked",),
        ("transfer-encoding\t: chunked",),
        ("transfer_encoding: chunked", "content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked\x00",),
        ("x: y\x00transfer-encoding: chunked",),
        ("\x0btransfer-encoding: chunked", "content-length: {n}"),
    ],
)
@pytest.mark.parametrize("payload", [body("first"), CHUNKED], ids=["plain", "chunked"])
async def test_a_head_whose_framing_can_be_doubted_is_refused_and_nothing_behind_it_is_read(
    engine: FakeEngine, house: House, fields: tuple[str, ...], payload: bytes
) -> None:
    framing = [field.format(n=len(payload)) for field in fields]
    seen, closed = await answers(house, request(house, payload, *framing) + request(house, body("hidden")))
    assert [response.status for response in seen] == [400]
    assert seen[0].error["code"] == "invalid_http"
    assert seen[0].headers["connection"] == "close"
    assert closed
    assert executed(engine) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"%x;ext=\n\r\n%b\r\n0\r\n\r\n",
        b"%x\n%b\r\n0\r\n\r\n",
        b"%x\r%b\r\n0\r\n\r\n",
        b"%x \r\n%b\r\n0\r\n\r\n",
        b" %x\r\n%b\r\n0\r\n\r\n",
        b"0x%x\r\n%b\r\n0\r\n\r\n",
        b"+%x\r\n%b\r\n0\r\n\r\n",
        b"-%x\r\n%b\r\n0\r\n\r\n",
        b"ffffffffffffffff%x\r\n%b\r\n0\r\n\r\n",
        b"%x\r\n%bX\r\n0\r\n\r\n",
        b"%x\r\n%b\n0\r\n\r\n",
        b"%x\r\n%b0\r\n\r\n",
        b"%x\r\n%b\r\n0\n\n",
        b"%x\r\n%b\r\n0\r\nbad trailer\r\n\r\n",
        b"%x\r\n%b\r\n0\r\ncontent-length: 5\r\n\r\n",
        b"%x\r\n%b\r\n0\r\nx: y\nz\r\n\r\n",
    ],
)
async def test_a_malformed_chunk_ends_the_connection(
    engine: FakeEngine, house: House, payload: bytes
) -> None:
    """The request isn't executed, or it is, where the fault is behind its body; what follows it never is."""
    first = body("first")
    sent = request(house, payload % (len(first), first), "transfer-encoding: chunked")
    seen, closed = await answers(house, sent + request(house, body("hidden")))
    assert closed
    assert len(seen) == 1
    assert seen[0].status in (200, 400)
    assert "hidden" not in executed(engine)
    assert len(executed(engine)) == (1 if seen[0].status == 200 else 0)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"POST {CHAT} HTTP/1.1 ", 400),
        (f"POST {CHAT} HTTP/1.1\r", 400),
        (f"POST {CHAT} HTTP/3.0", 400),
        (f"POST {CHAT} HTTP/1.10", 400),
        (f"POST {CHAT} http/1.1", 400),
        (f"post {CHAT} HTTP/1.1", 400),
        (f"POST\t{CHAT} HTTP/1.1", 400),
        (f"POST {CHAT}\x00 HTTP/1.1", 400),
        (f"POST {CHAT}\x0b HTTP/1.1", 400),
        (f"POST {CHAT} HTTP/1.1 HTTP/1.1", 400),
        (f"P\x00OST {CHAT} HTTP/1.1", 400),
        (f"CONNECT {CHAT} HTTP/1.1", 400),
        ("CONNECT host:443 HTTP/1.1", 400),
    ],
)
async def test_a_request_line_that_can_be_doubted_is_refused(
    engine: FakeEngine, house: House, line: str, status: int
) -> None:
    sent = request(house, body("first"), line=line) + request(house, body("hidden"))
    seen, closed = await answers(house, sent)
    assert [response.status for response in seen] == [status]
    assert closed
    assert executed(engine) == []


@pytest.mark.parametrize("end", ["\n", "\r", "\r\r\n", "\n\r"])
async def test_only_crlf_ends_a_line(engine: FakeEngine, house: House, end: str) -> None:
    sent = request(house, body("first"), end=end) + request(house, body("hidden"))
    seen, closed = await answers(house, sent)
    assert [response.status for response in seen] == [400]
    assert closed
    assert executed(engine) == []


@pytest.mark.parametrize("version", ["0.9", "1.0", "2.0"])
async def test_another_version_is_the_last_request_on_its_connection(
    engine: FakeEngine, house: House, version: str
) -> None:
    sent = request(house, body("first"), line=f"POST {CHAT} HTTP/{version}")
    seen, closed = await answers(house, sent + request(house, body("hidden")))
    assert [response.status for response in seen] in ([200], [400])
    assert closed
    assert "hidden" not in executed(engine)


@pytest.mark.parametrize("answer", ["waited for", "at once"])
async def test_what_a_content_length_leaves_over_is_no_request_of_its_own_while_one_is_answered(
    engine: FakeEngine, house: House, answer: str
) -> None:
    """A front that takes a longer body for granted has its connection closed; its next client isn't answered with this."""
    first = body("first") if answer == "waited for" else b"{}"
    hidden = request(house, body("hidden"))
    sent = request(house, first + hidden, f"content-length: {len(first)}")
    seen, closed = await answers(house, sent)
    if answer == "waited for":
        assert [response.status for response in seen] == [200]
        assert closed
        assert executed(engine) == ["first"]
    elif closed:
        assert [response.status for response in seen] == [400]
        assert executed(engine) == []
    else:  # the first was over and done with: the second one is a request like any other
        assert [response.status for response in seen] == [400, 200]
        assert executed(engine) == ["hidden"]


@pytest.mark.parametrize("key", ["wrong", ""])
async def test_the_body_of_a_refused_request_is_never_read_as_a_request(
    engine: FakeEngine, house: House, key: str
) -> None:
    """The answer comes before the body has: what is left of that is dropped, and then the connection goes on."""
    hidden = request(house, body("hidden"))
    head = f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer {key}\r\ncontent-length: {len(hidden) * 3}\r\n\r\n"
    async with RawClient(house.port) as client:
        client.send(head.encode() + hidden)
        assert (await client.response()).status == 401
        client.send(hidden)
        client.send(hidden[:50])
        await asyncio.sleep(0.05)
        client.send(hidden[50:] + request(house, body("honest")))
        assert (await client.response()).status == 200
    assert executed(engine) == ["honest"]


@pytest.mark.parametrize("rest", [b"zz\r\n", b"0\r\nbad\r\n\r\n"])
async def test_a_refused_request_whose_body_then_goes_wrong_gets_no_second_answer(
    engine: FakeEngine, house: House, rest: bytes
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nauthorization: Bearer wrong\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    async with RawClient(house.port) as client:
        client.send(head.encode())
        assert (await client.response()).status == 401
        client.send(rest + request(house, body("hidden")))
        assert await client.closed() == b""
    assert executed(engine) == []


# A head that is known again must mean what it would mean to somebody who never saw it before


@dataclass(frozen=True)
class Sent:
    """One request, in pieces as they are sent."""

    fields: tuple[str, ...]
    text: str
    length: str = "{n}"
    cut: int = 0
    behind: bytes = b""

    def encode(self, house: House) -> bytes:
        """Its bytes."""
        payload = body(self.text)
        key = house.auth["authorization"]
        fields = [field.format(n=self.length.format(n=len(payload)), key=key) for field in self.fields]
        lines = [f"POST {CHAT} HTTP/1.1", *fields, "", ""]
        return "\r\n".join(lines).encode("latin-1") + payload + self.behind


HEADS = [
    ("authorization: {key}", "content-length: {n}"),
    ("content-length: {n}", "authorization: {key}"),
    ("Content-Length:{n}", "Authorization: {key}"),
    ("authorization: {key}", "content-length: {n} ", "x: content-lengths"),
    ("authorization: {key}", "x-content-length: 5", "content-length: {n}"),
    ("authorization: {key}", "content-length: {n}", "connection: close"),
    ("authorization: {key}", "content-length: {n}", "content-type: text/plain"),
    ("authorization: {key}", "content-length: {n}", "expect: 100-continue"),
    ("authorization: {key}", "content-length: {n}", "x-request-id: mine"),
    ("authorization: Bearer wrong", "content-length: {n}"),
    ("authorization: {key}", "content-length: {n}", "content-length: {n}"),
    ("authorization: {key}", "content-length: {n}", "transfer-encoding: chunked"),
]
sent_requests = st.builds(
    Sent,
    st.sampled_from(HEADS),
    st.sampled_from(["a", "bb", "c" * 300]),
    st.sampled_from(["{n}", "{n}", "{n}", "000{n}", "5", "0", "{n}0", "{n};", "0x{n}", "+{n}", "", "1" * 16]),
    st.sampled_from([0, 0, 1, 20, 60, 120, 200]),
    st.sampled_from([b"", b"", b"\r\n", b"G", b"GET /health HTTP/1.1\r\n\r\n"]),
)


@pytest.mark.parametrize("begun", [b"P", b"PO", b"GET / HTTP/1.1\r\nx:"])
async def test_a_head_that_was_begun_is_not_forgotten_for_one_that_is_known(
    engine: FakeEngine, house: House, begun: bytes
) -> None:
    async with RawClient(house.port) as client:
        client.send(request(house, body("first")))
        assert (await client.response()).status == 200
        client.send(request(house, b"[]") + begun)  # refused at once: what follows begins a request
        assert (await client.response()).status == 400
        client.send(request(house, body("hidden")))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            assert (await client.response()).status in (400, 404)
    assert executed(engine) == ["first"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.sampled_from(HEADS[:5]), second=sent_requests)
async def test_behind_another_request_a_head_means_what_it_means_alone(
    engine: FakeEngine, house: House, first: tuple[str, ...], second: Sent
) -> None:
    alone = await _told(engine, house, None, second)
    behind = await _told(engine, house, Sent(first, "before"), second)
    same = Sent(second.fields, "before")
    assert behind == alone
    if same.fields in HEADS[:5]:
        assert await _told(engine, house, same, second) == alone


async def _told(engine: FakeEngine, house: House, first: Sent | None, second: Sent) -> list[object]:
    """Statuses of the answers to *second*, what of it reached the backend, and whether the connection was then closed."""
    async with RawClient(house.port) as client:
        if first is not None:
            client.send(first.encode(house))
            assert (await client.response()).status == 200
        engine.stats.received.clear()
        data = second.encode(house)
        client.send(data[: second.cut])
        if second.cut:
            await asyncio.sleep(0.01)
        client.send(data[second.cut :])
        told: list[object] = []
        while True:
            try:
                async with asyncio.timeout(0.15):
                    status, headers = await client.head()
                    told.append((status, headers.get("connection"), headers.get("x-client-request-id")))
                    if "content-length" in headers:
                        await client.reader.readexactly(int(headers["content-length"]))
            except TimeoutError:
                told.append("open")
                break
            except (asyncio.IncompleteReadError, ConnectionResetError):
                told.append("closed")
                break
    await until(lambda: house.listener.connections == 0)
    return [*told, *executed(engine)]
