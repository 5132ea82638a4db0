"""Addresses: URLs, Unix sockets, and TLS that is always checked."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.connector import Lost, NotSent, UpstreamRequest
from support.http_peer import HttpPeer
from support.recorder import Recorder

GET = UpstreamRequest("GET", "/x")
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix"),
    [
        ("http://gpu", "gpu", 80, "gpu", ""),
        ("http://gpu:80/", "gpu", 80, "gpu", ""),
        ("http://GPU:8000/base/", "gpu", 8000, "gpu:8000", "/base"),
        ("https://gpu/a/b", "gpu", 443, "gpu", "/a/b"),
        ("https://gpu:80", "gpu", 80, "gpu:80", ""),
        ("http://[::1]:8000", "::1", 8000, "[::1]:8000", ""),
        ("http://[fe80::1%eth0]/", "fe80::1%eth0", 80, "[fe80::1]", ""),
        ("http://10.0.0.5:1", "10.0.0.5", 1, "10.0.0.5:1", ""),
    ],
)
@pytest.mark.req("C25")
def test_urls(url: str, host: str, port: int, authority: str, prefix: str) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.host, endpoint.port, endpoint.authority, endpoint.prefix) == (
        host,
        port,
        authority,
        prefix,
    )
    assert (endpoint.tls is not None) == url.startswith("https")


@pytest.mark.parametrize(
    "url",
    [
        "", "gpu", "gpu:8000", "//gpu", "ftp://gpu", "http://", "http:///x", "http://u:secret@gpu", "http://secret@gpu",
        "http://gpu?secret", "http://gpu/#secret", "http://gpu:0", "http://gpu:99999", "http://gpu:x", "http://[::1",
        "http://g pu", "http://gpu\r\nX: secret", "http://gpu\t", "http://gpü", "unix:", "unix://host/x", "http://gpu/a\0",
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse(url)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("by_url", [True, False])
async def test_unix_socket(tmp_path: Path, by_url: bool) -> None:
    path = tmp_path / "engine.sock"
    async with HttpPeer(unix_path=path) as peer:
        endpoint = Endpoint.parse(peer.url) if by_url else Endpoint.unix(path)
        connector = DirectConnector(endpoint, clock=SystemClock())
        sink = Recorder()
        connector.start(GET, sink)
        connection = await peer.connection()
        assert (await connection.request()).header(b"host") == b"localhost"
        connection.send(ANSWER)
        assert bytes((await sink.last()).body) == b"hi"
        await connector.close()


async def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    connector = DirectConnector(Endpoint.unix(tmp_path / "none.sock"), clock=SystemClock())
    sink = Recorder()
    connector.start(GET, sink)
    assert isinstance((await sink.last()).failure, NotSent)
    await connector.close()


async def test_a_name_that_does_not_resolve() -> None:
    connector = DirectConnector(Endpoint.parse("http://nowhere.invalid"), clock=SystemClock())
    sink = Recorder()
    connector.start(GET, sink)
    assert isinstance((await sink.last()).failure, NotSent)
    await connector.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """Its certificate."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
async def secure_peer(authority: trustme.CA) -> AsyncIterator[HttpPeer]:
    """A backend with a certificate for gpu.test and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("gpu.test", "127.0.0.1").configure_cert(context)
    async with HttpPeer(tls=context) as peer:
        yield peer


async def attempt(peer: HttpPeer, tls: Tls | None) -> Recorder:
    """An exchange that must fail before anything is sent."""
    connector = DirectConnector(Endpoint.parse(peer.url, tls=tls), clock=SystemClock())
    sink = Recorder()
    connector.start(GET, sink)
    await sink.last()
    assert connector.open_connections == 0
    await connector.close()
    assert all(not connection.received for connection in peer.connections)
    return sink


@pytest.mark.parametrize("server_name", [None, "gpu.test"])
@pytest.mark.req("C25", "D39")
async def test_tls_with_a_private_authority(
    secure_peer: HttpPeer, ca_file: Path, server_name: str | None
) -> None:
    tls = Tls(ca_file=ca_file, server_name=server_name)
    endpoint = Endpoint.parse(secure_peer.url, tls=tls)
    connector = DirectConnector(endpoint, clock=SystemClock(), limits=Limits(settle_s=0))
    connection = None
    for _ in range(3):
        sink = Recorder()
        connector.start(GET, sink)
        connection = connection or await secure_peer.connection()
        await connection.request()
        connection.send(ANSWER)
        assert bytes((await sink.last()).body) == b"hi"
    assert len(secure_peer.connections) == 1
    await connector.close()
    assert connection is not None
    await connection.left()


async def test_tls_carries_large_bodies_and_pauses(secure_peer: HttpPeer, ca_file: Path) -> None:
    connector = DirectConnector(
        Endpoint.parse(secure_peer.url, tls=Tls(ca_file=ca_file)), clock=SystemClock()
    )
    body = bytes(range(256)) * 12_000
    sink = Recorder(lambda _: exchange.pause())
    exchange = connector.start(UpstreamRequest("POST", "/x", body=body), sink)
    connection = await secure_peer.connection()
    assert (await connection.request()).body == body
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
    connection.send(body)
    await sink.grown()
    while len(sink.body) < len(body):
        seen = sink.chunks
        exchange.resume()
        await sink.grown(seen)
    exchange.resume()
    assert bytes((await sink.last()).body) == body
    await connector.close()


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_tls_body_that_ends_with_the_connection(
    secure_peer: HttpPeer, ca_file: Path, in_order: bool
) -> None:
    """It is only whole when TLS says so: else anyone on the way could shorten it."""
    connector = DirectConnector(
        Endpoint.parse(secure_peer.url, tls=Tls(ca_file=ca_file)), clock=SystemClock()
    )
    sink = Recorder()
    connector.start(GET, sink)
    connection = await secure_peer.connection()
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    await sink.grown()
    if in_order:
        connection.finish()
    else:
        connection.transport.abort()
    await sink.last()
    assert sink.ended == in_order
    assert isinstance(sink.failure, Lost) != in_order
    await connector.close()


async def test_an_unknown_authority_is_not_trusted(secure_peer: HttpPeer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    for tls in (None, Tls(ca_file=other)):
        sink = await attempt(secure_peer, tls)
        assert isinstance(sink.failure, NotSent)
        assert "certificate" in sink.failure.reason


async def test_a_certificate_for_another_name_is_not_accepted(secure_peer: HttpPeer, ca_file: Path) -> None:
    sink = await attempt(secure_peer, Tls(ca_file=ca_file, server_name="other.test"))
    assert isinstance(sink.failure, NotSent)
    assert "certificate" in sink.failure.reason


async def test_tls_to_a_peer_without_it_is_not_sent() -> None:
    async with HttpPeer() as peer:
        connector = DirectConnector(Endpoint.parse(peer.url.replace("http:", "https:")), clock=SystemClock())
        sink = Recorder()
        connector.start(GET, sink)
        connection = await peer.connection()
        await connection.news()
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert isinstance((await sink.last()).failure, NotSent)
        await connector.close()


def test_a_ca_file_that_is_not_one(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for path in (tmp_path / "none.pem", empty):
        with pytest.raises(ConfigError, match="CA file"):
            Endpoint.parse("https://gpu", tls=Tls(ca_file=path))
