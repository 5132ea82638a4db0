"""Questions to a backend about itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.connectors.asking import Asker
from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.kernel.clock import SystemClock
from headrace.ports.backend import BackendSpec, Unwell
from support.http_peer import HttpPeer

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
async def peer() -> AsyncIterator[HttpPeer]:
    async with HttpPeer() as peer:
        yield peer


@pytest.fixture
async def asker(peer: HttpPeer) -> AsyncIterator[Asker]:
    connector = DirectConnector(Endpoint.parse(peer.url), clock=SystemClock())
    yield Asker(connector, BackendSpec("b", peer.url))
    await connector.close()


async def test_a_question_is_asked_again_where_the_server_hung_up_without_a_word(
    asker: Asker, peer: HttpPeer
) -> None:
    asked = asyncio.ensure_future(asker.get("/first"))
    first = await peer.connection()
    await first.request()
    first.send(ANSWER)
    assert (await asked).status == 200
    asked = asyncio.ensure_future(asker.get("/second"))
    await first.request()
    first.finish()
    second = await peer.connection()
    assert (await second.request()).line.startswith(b"GET /second ")
    second.send(ANSWER)
    assert (await asked).status == 200


async def test_it_is_not_asked_a_third_time(asker: Asker, peer: HttpPeer) -> None:
    asked = asyncio.ensure_future(asker.get("/x"))
    for _ in range(2):
        connection = await peer.connection()
        await connection.request()
        connection.finish()
    with pytest.raises(Unwell):
        await asked
    assert len(peer.connections) == 2
