"""What every kind of backend must do, run over each kind and each product that speaks it.

A subclass says how the product behaves in each situation; `Site` is one running product.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import msgspec
import pytest

from headrace.domain.inference import Timeouts
from headrace.kernel.clock import SystemClock
from headrace.ports.backend import BackendKind, BackendSpec, Opened, Report, Unwell
from headrace.ports.connector import Busy, Loading, UpstreamRequest
from headrace.testing.fake_engine import FakeEngine, Refuse, Script
from support.house import gateway
from support.http_peer import HttpPeer
from support.raw import call
from support.recorder import Recorder
from support.strict import check_chat_stream

JSON = [(b"content-type", b"application/json")]
IMPATIENT = Timeouts(connect_s=0.2, first_byte_s=0.2, idle_s=0.2)
GARBAGE = [
    b"<html>hello</html>",
    b"{}",
    b"[]",
    b'{"data":[{"id":5}]}',
    b'{"data":5,"models":5}',
    b"[" * 9999,
    b"\xff",
]


@asynccontextmanager
async def opened(kind: BackendKind, spec: BackendSpec) -> AsyncIterator[Opened]:
    """The way to a backend, closed at the end."""
    way = kind.open(spec, SystemClock())
    try:
        yield way
    finally:
        await way.connector.close()


async def look(kind: BackendKind, spec: BackendSpec) -> Report:
    """One look by a fresh prober."""
    async with opened(kind, spec) as way:
        return await way.prober.look()


async def unwell(kind: BackendKind, spec: BackendSpec) -> Unwell:
    """The trouble that a look meets."""
    with pytest.raises(Unwell) as caught:
        await look(kind, spec)
    return caught.value


class BackendContract:
    """Give `kind` and `script`: a product that is well, and has the models `a` and `b/c`.

    tells_loading: it says of itself that it isn't ready yet. path, ask: how it is asked for a chat.
    busy: what it answers, and by which sign, when it doesn't begin a request.
    """

    kind: ClassVar[Any]
    script: ClassVar[Script]
    product: ClassVar[str] = ""
    slots: ClassVar[int | None] = None
    tells_loading: ClassVar[bool] = True
    busy: ClassVar[tuple[Refuse, ...]] = (Refuse(429, headers={"Retry-After": "3"}),)
    path: ClassVar[str] = "/v1/chat/completions"
    ask: ClassVar[dict[str, Any]] = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}

    async def test_its_models_are_listed_and_no_work_is_spent_on_it(self) -> None:
        async with FakeEngine(self.script) as engine, opened(self.kind, BackendSpec("b", engine.url)) as way:
            for _ in range(3):
                report = await way.prober.look()
                assert report.models is not None
                assert [info.id for info in report.models] == ["a", "b/c"]
                assert all(info.owned_by and info.created >= 0 for info in report.models)
                assert report.ready_in_s is None
                assert report.slots == self.slots
                assert report.product.startswith(self.product)
            assert (engine.stats.started, engine.stats.tokens, engine.stats.loads) == (0, 0, 0)
            assert engine.stats.questions <= 3 * 2 + 4, "a look is two questions, but for what is asked once"

    async def test_it_follows_what_changes(self) -> None:
        async with FakeEngine(self.script) as engine, opened(self.kind, BackendSpec("b", engine.url)) as way:
            await way.prober.look()
            engine.script = replace(self.script, models=("new",))
            report = await way.prober.look()
            assert [info.id for info in report.models or ()] == ["new"]

    async def test_a_dead_one_is_unwell_and_is_seen_when_it_lives(self) -> None:
        with socket.socket() as bound:  # never listens: refuses
            bound.bind(("127.0.0.1", 0))
            trouble = await unwell(self.kind, BackendSpec("b", f"http://127.0.0.1:{bound.getsockname()[1]}"))
            assert not trouble.refused_key
            assert trouble.message.startswith("Can't connect to ")
        engine = FakeEngine(self.script)
        await engine.start()
        async with opened(self.kind, BackendSpec("b", engine.url)) as way:
            await way.prober.look()
            await engine.stop()
            with pytest.raises(Unwell):
                await way.prober.look()
            await engine.start()
            assert (await way.prober.look()).models
        await engine.stop()

    async def test_a_key_that_it_refuses_is_told_as_such_and_never_shown(self) -> None:
        async with FakeEngine(replace(self.script, api_key="sk-right")) as engine:
            trouble = await unwell(self.kind, BackendSpec("b", engine.url, api_key="sk-wrong"))
            assert trouble.refused_key
            assert "sk-" not in trouble.message
            assert (await unwell(self.kind, BackendSpec("b", engine.url))).refused_key
            report = await look(self.kind, BackendSpec("b", engine.url, api_key="sk-right"))
            assert report.models

    @pytest.mark.parametrize("body", GARBAGE)
    async def test_garbage_is_not_taken_for_an_answer(self, body: bytes) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            assert not (await unwell(self.kind, BackendSpec("b", url))).refused_key

    async def test_one_that_only_fails_is_unwell(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 500 X\r\nconnection: close\r\ncontent-length: 4\r\n\r\noops")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for models in ((), ("given",)):
                assert "500" in (await unwell(self.kind, BackendSpec("b", url, models=models))).message

    @pytest.mark.parametrize("drips", [False, True])
    async def test_a_slow_one_is_not_waited_for(self, drips: bool) -> None:
        async with HttpPeer() as peer:
            spec = BackendSpec("b", peer.url, timeouts=IMPATIENT)
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(unwell(self.kind, spec))
                connection = await peer.connection()
                await connection.request()
                if drips:
                    connection.send(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
                    )
                    for _ in range(1000):
                        if connection.gone.is_set():
                            break
                        connection.send(b" ")
                        await asyncio.sleep(0.02)
            assert not looking.result().refused_key
            assert time.monotonic() - began < 15

    async def test_while_it_loads_it_says_so(self) -> None:
        if not self.tells_loading:
            async with FakeEngine(replace(self.script, loading=True)) as engine:
                await unwell(self.kind, BackendSpec("b", engine.url))
            return
        async with (
            FakeEngine(replace(self.script, loading=True)) as engine,
            opened(self.kind, BackendSpec("b", engine.url)) as way,
        ):
            assert (await way.prober.look()).ready_in_s is not None
            sink = Recorder()
            way.connector.start(self._request(), sink)
            assert isinstance((await sink.last()).failure, Loading)
            assert sink.status is None
            engine.script = self.script
            report = await way.prober.look()
            assert (report.ready_in_s, bool(report.models)) == (None, True)

    async def test_a_refusal_before_the_work_began_is_busy(self) -> None:
        for refuse in self.busy:
            async with (
                FakeEngine(replace(self.script, fault=refuse)) as engine,
                opened(self.kind, BackendSpec("b", engine.url)) as way,
            ):
                sink = Recorder()
                way.connector.start(self._request(), sink)
                failure = (await sink.last()).failure
                assert isinstance(failure, Busy), f"{refuse} became {failure}"
                retry_after = refuse.headers.get("Retry-After")
                assert failure.retry_after_s == (float(retry_after) if retry_after else None)
                assert sink.status is None

    @pytest.mark.parametrize("status", [400, 404, 500, 502, 503])
    async def test_any_other_answer_comes_as_it_is(self, status: int) -> None:
        body = b'{"error": {"message": "it broke", "type": "server_error"}}'
        async with (
            FakeEngine(replace(self.script, fault=Refuse(status, body.decode(), {"X-Own": "1"}))) as engine,
            opened(self.kind, BackendSpec("b", engine.url)) as way,
        ):
            sink = Recorder()
            way.connector.start(self._request(), sink)
            await sink.last()
            assert (sink.status, bytes(sink.body), sink.ended) == (status, body, True)
            assert (b"x-own", b"1") in sink.headers

    async def test_a_long_error_is_not_held_back(self) -> None:
        body = "x" * 1_000_000
        async with (
            FakeEngine(replace(self.script, fault=Refuse(503, body))) as engine,
            opened(self.kind, BackendSpec("b", engine.url)) as way,
        ):
            sink = Recorder()
            way.connector.start(self._request(), sink)
            await sink.last()
            assert (sink.status, len(sink.body), sink.ended) == (503, 1_000_000, True)
            assert sink.chunks > 1

    async def test_whole_and_streamed_answers_come_through_a_gateway(self) -> None:
        async with (
            FakeEngine(self.script) as engine,
            opened(self.kind, BackendSpec("b", engine.url)) as way,
            gateway(engines={"a": way.connector}) as house,
        ):
            body = msgspec.json.encode(self.ask)
            whole = await call(house.port, "POST", self.path, house.auth, body)
            assert whole.status == 200, whole.body
            assert whole.json["choices"][0]["message"]["content"] == "tok0 tok1 tok2"
            assert whole.json["usage"]["completion_tokens"] == 3
            body = msgspec.json.encode(self.ask | {"stream": True, "stream_options": {"include_usage": True}})
            streamed = await call(house.port, "POST", self.path, house.auth, body)
            said = check_chat_stream(streamed.body, usage=True, choices=1)
            assert said[0]["content"] == "tok0 tok1 tok2"
            assert engine.stats.finished == 2

    async def test_who_leaves_stops_the_work(self) -> None:
        async with (
            FakeEngine(replace(self.script, tokens=1000, interval_s=0.01)) as engine,
            opened(self.kind, BackendSpec("b", engine.url)) as way,
        ):
            sink = Recorder()
            exchange = way.connector.start(self._request(stream=True), sink)
            await sink.grown()
            exchange.cancel()
            await sink.last()
            await engine.until(lambda stats: stats.aborted == 1)

    def _request(self, **members: Any) -> UpstreamRequest:
        return UpstreamRequest("POST", self.path, JSON, msgspec.json.encode(self.ask | members))
