"""The bytes of the exchanges that are counted: those of the load generator and the upstream beside this package."""

from __future__ import annotations

from dataclasses import dataclass

KEY = "sk-bench"
MODEL = "bench"
_OPENING = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
)
_USAGE = b'"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}'
_ANSWER = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":['
    b'{"index":0,"message":{"role":"assistant","content":"A wheel turns because water wants to be lower than it '
    b'is, and we let it go there in our own way."},"finish_reason":"stop"}],' + _USAGE % (20, 32) + b"}"
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Talk:
    """One exchange: what the client sends at once, what the backend sends read by read, what the client must get."""

    asked: bytes
    answered: tuple[bytes, ...]
    opening: bytes
    ending: bytes
    events: int = 0

    def check(self, got: bytes) -> None:
        """Raise RuntimeError unless the client got its whole answer."""
        right = (
            got.startswith(self.opening) and got.endswith(self.ending) and got.count(b"data: ") == self.events
        )
        if not right:
            raise RuntimeError(f"the client did not get the answer that it should have: {got!r}")


def plain() -> Talk:
    """A request that is answered whole."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return Talk(_request(b""), (head % len(_ANSWER) + _ANSWER,), b"HTTP/1.1 200 OK\r\n", _ANSWER)


def stream(tokens: int) -> Talk:
    """A streamed answer of *tokens* tokens, each in a read of its own."""
    role = _chunk(_choice(b'{"role":"assistant","content":""}'))
    pieces = [_chunk(_choice(b'{"content":" tok%d"}' % number)) for number in range(tokens)]
    usage = _OPENING + b'"choices":[],' + _USAGE % (tokens, 12 + tokens) + b"}\n\n"
    end = _chunk(_choice(b"{}", b'"stop"')) + _chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    asked = _request(b',"stream":true,"stream_options":{"include_usage":true}')
    answered = (_STREAM_HEAD + role, *pieces, end)
    return Talk(asked, answered, b"HTTP/1.1 200 OK\r\n", b"data: [DONE]\n\n\r\n0\r\n\r\n", events=tokens + 4)


def _request(more: bytes) -> bytes:
    messages = b'[{"role":"user","content":"Tell me about water wheels, please."}]'
    body = b'{"model":"%b","messages":%b,"max_tokens":64%b}' % (MODEL.encode(), messages, more)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:11435\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\nAccept: */*\r\nContent-Length: %d\r\n\r\n"
    )
    return head % (KEY.encode(), len(body)) + body


def _choice(delta: bytes, reason: bytes = b"null") -> bytes:
    return _OPENING + b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n' % (delta, reason)


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


FURTHER_TOKENS = 63
TALKS = {"plain": plain(), "stream": stream(1), "long": stream(1 + FURTHER_TOKENS)}
"""The kinds of talk that are counted. What a token costs is the difference of the last two."""
