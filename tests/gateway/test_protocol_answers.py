"""What a client gets when its backend ends badly: exactly one ending, whatever comes behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from headrace.kernel.aio import Tasks
from support.answers import DONE, chunk
from support.house import House, gateway
from support.http_peer import HttpPeer, PeerConnection
from support.raw import RawClient, RawResponse
from support.strict import check_chat_stream

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = chunk({"role": "assistant"}) + chunk({"content": "a"}) + chunk({"content": "b"})
END = chunk({}, finish="stop") + DONE


def coded(data: bytes) -> bytes:
    """*data* as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Served:
    """A gateway over one peer. `asked`: connections on which an inference request has come."""

    house: House
    asked: asyncio.Queue[PeerConnection]

    async def ask(self, *, stream: bool, sends: bytes) -> RawResponse:
        """One chat request, for which the backend sends *sends* and hangs up."""
        async with RawClient(self.house.port) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}
            client.request("POST", CHAT, self.house.auth, json.dumps(body).encode())
            connection = await self.asked.get()
            connection.send(sends)
            connection.finish()
            return await client.response()


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    asked: asyncio.Queue[PeerConnection] = asyncio.Queue()
    async with HttpPeer() as peer, Tasks() as tasks:

        async def take(connection: PeerConnection) -> None:
            """Tell the list of models to those who ask for it: the gateway does so again and again."""
            if (await connection.request()).line.startswith(b"POST"):
                asked.put_nowait(connection)
                return
            body = b'{"object":"list","data":[{"id":"m"}]}'
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            connection.send(head % len(body) + body)
            connection.finish()

        async def accept() -> None:
            while True:
                tasks.spawn(take(await peer.accepted.get()), name="peer")

        tasks.spawn(accept(), name="peer")
        async with gateway(peer.url, asgi=request.param) as house:
            yield Served(house, asked)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "behind",
    [
        b"",
        coded(chunk({"content": "late"})),
        coded(b"data: {"),
        coded(b"data: " + b"x" * 1_100_000),
        b"zz\r\n",
        coded(chunk(error={"message": "late"})),
    ],
    ids=["cut", "a chunk", "half an event", "too large an event", "no chunk", "an error"],
)
async def test_what_happens_behind_done_is_nobodys_business(
    served: Served, stream: bool, behind: bytes
) -> None:
    response = await served.ask(stream=stream, sends=HEAD + coded(ANSWER + END) + behind)
    assert response.status == 200
    if stream:
        assert check_chat_stream(response.body, usage=False)[0]["content"] == "ab"
    else:
        assert response.json["choices"][0]["message"]["content"] == "ab"


async def test_a_chunk_behind_done_in_the_same_piece_is_dropped(served: Served) -> None:
    response = await served.ask(
        stream=True, sends=HEAD + coded(ANSWER + DONE + chunk({"content": "late"})) + b"0\r\n\r\n"
    )
    assert check_chat_stream(response.body, usage=False)[0]["content"] == "ab"


@pytest.mark.parametrize(
    "behind", [b"", b"zz\r\n", coded(b"data: {\n\n"), coded(chunk(error={"message": "x"}))]
)
async def test_an_answer_that_breaks_before_its_end_ends_in_one_error(served: Served, behind: bytes) -> None:
    response = await served.ask(stream=True, sends=HEAD + coded(ANSWER) + behind)
    assert response.status == 200
    *events, last = [json.loads(e.removeprefix(b"data: ")) for e in response.body.rstrip().split(b"\n\n")]
    assert last["error"]["type"] == "api_error"
    assert all("error" not in event for event in events)
    whole = await served.ask(stream=False, sends=HEAD + coded(ANSWER) + behind)
    assert (whole.status, whole.error["type"]) == (502, "api_error")
