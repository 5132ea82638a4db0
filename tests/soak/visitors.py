"""The clients of the soak: each asks in some way, checks to the letter what it gets, or leaves."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from soak.backends import LARGE, LARGE_TEXT, LONELY, MODEL, MOST_TOKENS
from support.raw import RawClient, RawResponse
from support.strict import check_chat_stream, parse_stream

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
FAILURES = (502, 503, 504)
_MESSAGES = '"messages":[{"role":"user","content":"x"}]'
WRONG_BODIES = [
    (400, b""),
    (400, b"{"),
    (400, b"[]"),
    (400, b"\xff\xfe{}"),
    (400, b'{"model":"fake"}'),
    (400, f'{{"model":"fake",{_MESSAGES},"n":0}}'.encode()),
    (400, f'{{"model":"fake",{_MESSAGES},"stream":"yes"}}'.encode()),
    (400, f'{{"model":"fake","Model":"x",{_MESSAGES}}}'.encode()),
    (400, b'{"model":"fake","messages":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    (404, f'{{"model":"nobody",{_MESSAGES}}}'.encode()),
]
WRONG_HEADERS = [
    (401, {"authorization": "Bearer wrong"}),
    (401, {"authorization": "Basic x"}),
    (415, {"content-type": "text/plain"}),
    (415, {"content-encoding": "gzip"}),
]
WRONG_HEADS = [
    (400, b"nonsense\r\n\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    (400, b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}"),
    (400, b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 500 + b"\r\n"),
]  # fmt: skip


@dataclass(frozen=True)
class Door:
    """Where the gateway is, and what opens it."""

    port: int
    auth: dict[str, str]


class Visitors:
    """Clients of one gateway. `door`: where it is; `seen`: how many requests ended in which way."""

    def __init__(self, door: Door, chance: random.Random) -> None:
        self.seen: Counter[str] = Counter()
        self.door = door
        self._chance = chance
        plans: list[tuple[Callable[[RawClient], Awaitable[bool]], int]] = [
            (self._chat, 400),
            (self._completion, 80),
            (self._embedding, 80),
            (self._wrong_body, 60),
            (self._wrong_header, 30),
            (self._wrong_head, 20),
            (self._other_path, 60),
            (self._old_client, 30),
            (self._pipelined, 30),
            (self._leave, 80),
            (self._leave_before_the_end, 30),
            (self._half_close, 30),
            (self._slow_reader, 2),
        ]
        self._plans, self._weights = [plan for plan, _ in plans], [weight for _, weight in plans]

    @property
    def requests(self) -> int:
        """How many were sent."""
        return sum(self.seen.values())

    async def visit(self, deadline: float) -> None:
        """One client, on one connection after another, until *deadline*."""
        while time.monotonic() < deadline:
            async with RawClient(self.door.port) as client:
                for _ in range(self._chance.randint(1, 8)):
                    [plan] = self._chance.choices(self._plans, self._weights)
                    if not await plan(client):
                        break

    # What is asked for, and answered. Each says whether the connection can be used again.

    async def _chat(self, client: RawClient) -> bool:
        body, check = self._conversation()
        if self._chance.random() < 0.2:
            self._send_in_chunks(client, CHAT, body)
        else:
            client.request("POST", CHAT, self.door.auth, json.dumps(body).encode())
        return self._checked(await client.response(), check)

    async def _completion(self, client: RawClient) -> bool:
        tokens, stream = self._tokens(), self._chance.random() < 0.5
        body = {"model": MODEL, "prompt": "once", "max_tokens": tokens, "stream": stream}
        client.request("POST", COMPLETION, self.door.auth, json.dumps(body).encode())

        def check(answer: bytes) -> str:
            if not stream:
                assert json.loads(answer)["choices"][0]["text"] == visible(tokens)
                return "completion"
            if broken(answer, visible(tokens)):
                return "broken stream"
            chunks = parse_stream(answer)[:-1]
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == visible(tokens)
            return "streamed completion"

        return self._checked(await client.response(), check)

    async def _embedding(self, client: RawClient) -> bool:
        text = "x" * self._chance.randint(1, 30)
        client.request(
            "POST", EMBEDDING, self.door.auth, json.dumps({"model": MODEL, "input": [text, "y"]}).encode()
        )

        def check(answer: bytes) -> str:
            vectors = [item["embedding"] for item in json.loads(answer)["data"]]
            assert vectors == [
                [((len(t) + i + p) % 17 - 8) / 8 for p in range(4)] for i, t in enumerate((text, "y"))
            ]
            return "embedding"  # fmt: skip

        return self._checked(await client.response(), check)

    async def _other_path(self, client: RawClient) -> bool:
        path, status = self._chance.choice(
            [("/v1/models", 200), ("/health", 200), ("/nothing", 404), (CHAT, 405)]
        )
        client.request("GET", path, self.door.auth)
        response = await client.response()
        assert response.status == status, response
        assert response.json if status == 200 else response.error
        self.seen["other path"] += 1
        return True

    async def _old_client(self, client: RawClient) -> bool:
        """HTTP/1.0: the answer ends with the connection."""
        body, check = self._conversation()
        payload = json.dumps(body).encode()
        fields = f"authorization: {self.door.auth['authorization']}\r\ncontent-length: {len(payload)}\r\n"
        client.send(f"POST {CHAT} HTTP/1.0\r\n{fields}\r\n".encode() + payload)
        status, headers = await client.head()
        assert "transfer-encoding" not in headers
        self._checked(RawResponse(status, headers, await client.closed()), check)
        return False

    async def _slow_reader(self, client: RawClient) -> bool:
        """An answer too large for the sockets, read late, or never to its end."""
        transport: Any = client.writer.transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        transport.pause_reading()
        body = {"model": LARGE, "messages": [{"role": "user", "content": "x"}], "stream": True}
        client.request("POST", CHAT, self.door.auth, json.dumps(body).encode())
        await asyncio.sleep(self._chance.uniform(0, 0.5))
        if self._chance.random() < 0.4:
            self.seen["left without reading"] += 1
            return False
        transport.resume_reading()
        response = await client.response()

        def check(answer: bytes) -> str:
            if broken(answer, LARGE_TEXT):
                return "broken stream"
            assert check_chat_stream(answer, usage=False)[0]["content"] == LARGE_TEXT
            return "slow reader"

        self._checked(response, check)
        return False  # the gateway sent the last of it long ago, and may find the connection idle

    # What is wrong with the request

    async def _wrong_body(self, client: RawClient) -> bool:
        status, body = self._chance.choice(WRONG_BODIES)
        client.request("POST", CHAT, self.door.auth, body)
        return self._refused(await client.response(), status)

    async def _wrong_header(self, client: RawClient) -> bool:
        status, headers = self._chance.choice(WRONG_HEADERS)
        client.request("POST", CHAT, self.door.auth | headers, json.dumps(self._conversation()[0]).encode())
        return self._refused(await client.response(), status)

    async def _wrong_head(self, client: RawClient) -> bool:
        status, head = self._chance.choice(WRONG_HEADS)
        client.send(head)
        self._refused(await client.response(), status)
        assert await client.closed() == b""
        return False

    # Who doesn't wait for the answer

    async def _pipelined(self, client: RawClient) -> bool:
        """What comes behind a running request is dropped, and the connection ends with its answer. (One that was refused at
        once was never running.)"""
        body, check = self._conversation()
        payload = json.dumps(body).encode()
        fields = f"authorization: {self.door.auth['authorization']}\r\ncontent-length: {len(payload)}\r\n"
        client.send((f"POST {CHAT} HTTP/1.1\r\n{fields}\r\n".encode() + payload) * 2)
        response = await client.response()
        self._checked(response, check)
        assert response.status == 503 or await client.closed() == b""
        return False

    async def _leave(self, client: RawClient) -> bool:
        client.request("POST", CHAT, self.door.auth, json.dumps(self._conversation()[0]).encode())
        await asyncio.sleep(self._chance.choice([0, 0.001, 0.02, 0.2]) * self._chance.random())
        self.seen["left"] += 1
        return False

    async def _leave_before_the_end(self, client: RawClient) -> bool:
        """In the middle of the head, of the body, or with a reset."""
        head = f"POST {CHAT} HTTP/1.1\r\nauthorization: {self.door.auth['authorization']}\r\ncontent-length: 999\r\n\r\n{{"
        client.send(head.encode()[: self._chance.randint(1, len(head))])
        await asyncio.sleep(self._chance.choice([0, 0.001, 0.02]))
        self.seen["left before the request was whole"] += 1
        return False

    async def _half_close(self, client: RawClient) -> bool:
        """A client that sends no more counts as gone."""
        client.request("POST", CHAT, self.door.auth, json.dumps(self._conversation()[0]).encode())
        await asyncio.sleep(self._chance.choice([0, 0.001, 0.02]))
        client.writer.write_eof()
        await client.closed()
        self.seen["half closed"] += 1
        return False

    # How an answer is checked

    def _conversation(self) -> tuple[dict[str, Any], Callable[[bytes], str]]:
        """The body of a chat request, and the check of its answer, which says what it was."""
        chance = self._chance
        tokens, stream, usage = self._tokens(), chance.random() < 0.65, chance.random() < 0.3
        choices = 2 if chance.random() < 0.1 else 1
        body: dict[str, Any] = {
            "model": LONELY if chance.random() < 0.1 else MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": tokens,
            "stream": stream,
            "n": choices,
        }
        if stream and usage:
            body["stream_options"] = {"include_usage": True}

        def check(answer: bytes) -> str:
            if not stream:
                said = [choice["message"]["content"] for choice in json.loads(answer)["choices"]]
                assert said == [visible(tokens)] * choices
                return "chat"
            if broken(answer, visible(tokens)):
                return "broken stream"
            messages = check_chat_stream(answer, usage=usage, choices=choices)
            assert [messages[index]["content"] for index in messages] == [visible(tokens)] * choices
            return "streamed chat"

        return body, check

    def _checked(self, response: RawResponse, check: Callable[[bytes], str]) -> bool:
        """A valid request ends in a right answer, or in one clean error that says that the backend is to blame."""
        assert response.headers["x-request-id"].startswith("req_")
        if response.status == 200:
            self.seen[check(without_comments(response.body))] += 1
        else:
            assert response.status in FAILURES, response
            assert response.error["type"] == "api_error"
            self.seen[f"error {response.status}"] += 1
        return response.headers.get("connection") != "close"

    def _refused(self, response: RawResponse, status: int) -> bool:
        assert response.status == status, response
        assert response.error["type"] == "invalid_request_error"
        self.seen[f"refused {status}"] += 1
        return response.headers.get("connection") != "close"

    def _send_in_chunks(self, client: RawClient, path: str, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        auth = self.door.auth["authorization"]
        client.send(
            f"POST {path} HTTP/1.1\r\nauthorization: {auth}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        for start in range(0, len(payload), 50):
            piece = payload[start : start + 50]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")

    def _tokens(self) -> int:
        return self._chance.randint(1, MOST_TOKENS)


def visible(tokens: int) -> str:
    """What a backend says when nothing goes wrong."""
    return " ".join(f"tok{number}" for number in range(tokens))


def broken(answer: bytes, expected: str) -> bool:
    """Whether a stream ends in an error: then in exactly one, which is its last event, behind a beginning of *expected*."""
    if answer.endswith(b"data: [DONE]\n\n"):
        return False
    events = [
        json.loads(event.removeprefix(b"data: ")) for event in answer.removesuffix(b"\n\n").split(b"\n\n")
    ]
    assert events.pop()["error"]["message"]
    said: Counter[int] = Counter()
    for choice in [choice for event in events for choice in event["choices"]]:
        piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
        start = said[choice["index"]]
        assert expected[start : start + len(piece)] == piece, answer
        said[choice["index"]] += len(piece)
    return True


def without_comments(answer: bytes) -> bytes:
    """A stream without the comments that kept it alive while it waited."""
    if b": still working\n\n" not in answer:
        return answer
    events = answer.removesuffix(b"\n\n").split(b"\n\n")
    return b"".join([event + b"\n\n" for event in events if not event.startswith(b":")])
