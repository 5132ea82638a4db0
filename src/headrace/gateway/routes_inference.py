"""The OpenAI inference paths, as ASGI routes."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from headrace.control.access import read_key
from headrace.core.call import Call
from headrace.core.inference import Origin
from headrace.domain.access import Principal
from headrace.domain.inference import Operation
from headrace.gateway.answer import PulledAnswer
from headrace.gateway.heads import SESSION, TAGS, read_hints, way_fields
from headrace.gateway.problems import problem
from headrace.gateway.requests import ClientGone, read_json_body
from headrace.gateway.responses import send_body, send_head, send_problem
from headrace.gateway.token_lane import TokenLane
from headrace.wire.openai import decode_request


class AnsweredRoute(ABC):
    """Answers one kind of request: who asks, what for, and then bytes until the end. An ASGI application."""

    def __init__(self, lane: TokenLane) -> None:
        self._lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        principal = self._lane.keys.authenticate(read_key(scope["headers"]))
        try:
            raw_body = await read_json_body(request, self._lane.limits) if request.method == "POST" else b""
        except ClientGone:
            return
        fields = dict(scope["headers"])
        hints = read_hints(fields.get(TAGS, b""), fields.get(SESSION, b""))
        answer = PulledAnswer(time.monotonic())
        origin = Origin(answer.asked_at, scope["state"].get("client_address", ""), *hints)
        call = self._start(request, principal, raw_body, answer, origin)
        try:
            answer.attach(call)
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(self._pump(answer, scope, principal.id, send))
                group.create_task(_watch(receive, call, pump))
        finally:
            call.cancel()

    @abstractmethod
    def _start(
        self, request: Request, principal: Principal, raw_body: bytes, answer: PulledAnswer, origin: Origin
    ) -> Call[Any]:
        """Check what is asked, and ask for it.

        Raises:
            InvalidRequest: it is wrong; nothing was asked for.
        """

    async def _pump(self, answer: PulledAnswer, scope: Scope, key_id: str, send: Send) -> None:
        await answer.begin()
        if answer.grant is None:
            assert answer.error is not None, "an answer without a head has failed"
            address = scope["state"].get("client_address", "")
            refusal = self._lane.guard.refused(answer.error, address, key_id=key_id, given=True)
            await send_problem(send, problem(refusal))
            return
        way = way_fields(answer.grant, answer.asked_at)
        if answer.content_type != _EVENT_STREAM:
            await send_body(send, 200, {b"content-type": answer.content_type} | way, await answer.whole())
            return
        await send_head(send, 200, _STREAM_HEADERS | way)
        more = True
        while more:
            block, more = await answer.pull()
            await send({"type": "http.response.body", "body": block, "more_body": more})


class InferenceRoute(AnsweredRoute):
    """One of OpenAI's operations. The token lane takes these requests first; this is for listeners without one."""

    def __init__(self, operation: Operation, lane: TokenLane) -> None:
        super().__init__(lane)
        self._operation = operation

    def _start(
        self, request: Request, principal: Principal, raw_body: bytes, answer: PulledAnswer, origin: Origin
    ) -> Call[Any]:
        body = decode_request(self._operation, raw_body, self._lane.default(self._operation))
        ident = request.scope["state"]["request_id"]
        return self._lane.inference.start(ident, principal, body, answer, origin)


async def _watch(receive: Receive, call: Call[Any], pump: asyncio.Task[None]) -> None:
    """Cancel everything as soon as the client is gone. ASGI says so after the response, too: then it means nothing."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.cancel()
    pump.cancel()


_EVENT_STREAM = b"text/event-stream"
_STREAM_HEADERS = {
    b"content-type": b"text/event-stream; charset=utf-8",
    b"cache-control": b"no-cache",
    b"x-accel-buffering": b"no",
}
