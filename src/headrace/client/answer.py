"""One chat answer: its text as it comes, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from headrace.client.errors import ClientError, from_failure, from_response, read_error, request_id
from headrace.client.inbox import Failed, Inbox
from headrace.domain.inference import Usage
from headrace.wire import sse

_MAX_WHOLE_BYTES = 8 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_DONE = b"[DONE]"


class Answer:
    """Iterate over it once, for the text. The request is sent when the iteration begins; breaking off cancels it.

    Afterwards: model, finish_reason, usage and request_id, each None where the gateway didn't say.
    """

    def __init__(self, begin: Callable[[], Inbox], url: str) -> None:
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.request_id: str | None = None
        self._begin: Callable[[], Inbox] | None = begin
        self._url = url

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        """The text, in pieces as they come.

        Raises:
            ClientError: there is no answer, or no complete one. What was given out before is all there is.
            RuntimeError: it was iterated over before.
        """
        begin, self._begin = self._begin, None
        if begin is None:
            raise RuntimeError("an answer can be read once; ask again for another")
        inbox = begin()
        try:
            await inbox.wait_for_head()
            self.request_id = request_id(inbox.headers)
            pieces = self._streamed(inbox) if await self._is_stream(inbox) else self._whole(inbox)
            async for piece in pieces:
                yield piece
        except Failed as failed:
            error = from_failure(failed.failure, self._url, began=bool(inbox.status))
            error.request_id = self.request_id
            raise error from None
        finally:
            await inbox.close()

    async def text(self) -> str:
        """All of it, once it is complete.

        Raises:
            ClientError: there is no complete answer.
        """
        return "".join([piece async for piece in self])

    async def _is_stream(self, inbox: Inbox) -> bool:
        if inbox.status != 200:
            body = await self._read_up_to(inbox, _MAX_ERROR_BYTES)
            raise from_response(inbox.status, inbox.headers, body)
        return any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in inbox.headers
        )

    async def _whole(self, inbox: Inbox) -> AsyncGenerator[str, None]:
        body = await self._read_up_to(inbox, _MAX_WHOLE_BYTES)
        if text := self._note(body, "message"):
            yield text

    async def _streamed(self, inbox: Inbox) -> AsyncGenerator[str, None]:
        splitter = sse.EventSplitter()
        while chunk := await inbox.read():
            try:
                block = splitter.feed(chunk)
            except sse.EventTooLarge:
                raise self._error("The answer has an event that is too large.", "invalid_answer") from None
            for event in sse.events(block):
                data = sse.data_of(event)
                if data == _DONE:
                    return
                if data is not None and (text := self._note(data, "delta")):
                    yield text
        raise self._error("The answer ended before it was complete.", "incomplete")

    def _note(self, data: bytes, member: str) -> str:
        """Remember what one object says beside the text; its text."""
        try:
            told: Any = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError):
            raise self._error("The answer is not JSON.", "invalid_answer") from None
        if not isinstance(told, dict):
            raise self._error("The answer is not a JSON object.", "invalid_answer")
        if told.get("error") is not None:
            message, code = read_error(data)
            raise self._error(message or "The server reported an error without saying which.", code)
        self.model = _text(told.get("model")) or self.model
        self.usage = _usage(told.get("usage")) or self.usage
        choices = told.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            return ""
        self.finish_reason = _text(first.get("finish_reason")) or self.finish_reason
        said = first.get(member)
        return (_text(said.get("content")) or "") if isinstance(said, dict) else ""

    async def _read_up_to(self, inbox: Inbox, most_bytes: int) -> bytes:
        body = b""
        while len(body) <= most_bytes and (chunk := await inbox.read()):
            body += chunk
        if len(body) > most_bytes:
            raise self._error(f"The answer is over {most_bytes} bytes.", "invalid_answer")
        return body

    def _error(self, message: str, code: str | None) -> ClientError:
        return ClientError(message, code=code, request_id=self.request_id)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens", 0), value.get("completion_tokens", 0)
    if not (isinstance(prompt, int) and isinstance(completion, int)):
        return None
    return Usage(prompt, completion, estimated=value.get("estimated") is True)
