"""One request being worked on: what a slot is taken for."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from headrace.kernel.clock import Clock
from headrace.testing.fake_engine import answers
from headrace.testing.fake_engine.connection import Reply
from headrace.testing.fake_engine.script import Cut, ErrorEvent, Garbage, Hang, Script
from headrace.testing.fake_engine.stats import Stats, Watch

Ending = Literal["finished", "aborted", "wasted", "broken"]


class Execution:
    """Runs one request to its scripted end, and counts what became of it."""

    def __init__(
        self, reply: Reply, script: Script, clock: Clock, watch: Watch, released: asyncio.Event
    ) -> None:
        self._reply = reply
        self._script = script
        self._clock = clock
        self._watch = watch
        self._released = released

    async def run(self, work: answers.Ask | answers.Json, request_id: str | None) -> None:
        """Answer *work*: an `Ask`, or the finished body of an embeddings answer. The caller holds a slot."""
        stats: Stats = self._watch.stats
        stats.execute(request_id)
        self._watch.changed()
        streamed = isinstance(work, answers.Ask) and work.stream
        self._reply.stop_when_left = streamed or self._script.cancels_unstreamed
        ending: Ending = "aborted"
        try:
            if isinstance(work, answers.Ask) and work.stream:
                ending = await self._stream(work)
            else:
                ending = await self._whole(work)
        finally:
            stats.active -= 1
            setattr(stats, ending, getattr(stats, ending) + 1)
            self._watch.changed()

    async def _stream(self, ask: answers.Ask) -> Ending:
        if await self._breaks_at(-1):
            return "broken"
        await self._pass(self._script.delay_s)
        self._reply.begin()
        number = 0
        first = True
        for number, event in enumerate(answers.events(ask)):
            if await self._breaks_at(number):
                return "broken"
            if event.tokens and not first:
                await self._pass(self._script.interval_s)
            first = first and not event.tokens
            await self._reply.send(event.encode())
            self._produced(event.tokens)
        if await self._breaks_at(number + 1):
            return "broken"
        await self._reply.send(answers.DONE)
        self._reply.end()
        return "finished"

    async def _breaks_at(self, events_sent: int) -> bool:
        """Carry out the fault if this is its moment; True when the answer is over."""
        fault = self._script.fault
        match fault:
            case Hang(after_events=after) if after == events_sent:
                await self._released.wait()
                return False
            case Cut(after_events=after) if after == events_sent:
                self._reply.cut()
                return True
            case Garbage(after_events=after) if after == events_sent:
                await self._reply.send(b'data: {"choices": [{"delta": \xff\n\n')
                self._reply.end()
                return True
            case ErrorEvent(after_events=after, message=message) if after == events_sent:
                await self._reply.send(answers.Event(answers.error(500, message, "server_error")).encode())
                self._reply.end()
                return True
        return False

    async def _whole(self, work: answers.Ask | answers.Json) -> Ending:
        if isinstance(self._script.fault, Hang):
            await self._released.wait()
        await self._pass(self._script.delay_s)
        if isinstance(work, answers.Ask):
            for number in range(len(work.pieces())):
                await self._pass(self._script.interval_s if number else 0)
                self._produced(work.n)
            body = msgspec.json.encode(answers.whole(work))
        else:
            body = msgspec.json.encode(work)
        if self._reply.left:
            return "wasted"
        return self._send_whole(body)

    def _send_whole(self, body: bytes) -> Ending:
        match self._script.fault:
            case Cut(after_events=-1):
                self._reply.cut()
            case Cut():
                self._reply.part(200, body[: len(body) // 2], promised_bytes=len(body))
                self._reply.cut()
            case Garbage():
                self._reply.whole(200, b'{"choices": [{"message": \xff')
            case ErrorEvent(message=message):
                self._reply.whole(500, msgspec.json.encode(answers.error(500, message, "server_error")))
            case _:
                self._reply.whole(200, body)
                return "finished"
        return "broken"

    async def _pass(self, seconds: float) -> None:
        await sleep(self._clock, seconds)

    def _produced(self, tokens: int) -> None:
        if tokens:
            self._watch.stats.tokens += tokens
            self._watch.changed()


async def sleep(clock: Clock, seconds: float) -> None:
    """Let *seconds* pass on *clock*; with 0, let others run first."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    passed = asyncio.Event()
    timer = clock.call_later(seconds, passed.set)
    try:
        await passed.wait()
    finally:
        timer.cancel()
