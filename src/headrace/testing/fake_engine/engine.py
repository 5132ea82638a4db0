"""The fake engine: listens, follows its script, counts."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock, SystemClock
from headrace.testing.fake_engine import answers, native
from headrace.testing.fake_engine.connection import Connection, Host, Reply
from headrace.testing.fake_engine.execution import Execution, sleep
from headrace.testing.fake_engine.script import Refuse, Script
from headrace.testing.fake_engine.slots import Full, Slots
from headrace.testing.fake_engine.stats import Diary, Received, Stats, Watch

INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
HOST = "127.0.0.1"


class FakeEngine(Host):
    """An engine as an async context manager: listening inside, everything closed after it.

    Listens on loopback TCP at *port* (0: a free one), or on a Unix socket at *socket_path*; with *tls*, over TLS.
    `script` may be replaced at any time and holds for requests that come later; *by_model* has scripts for requests
    that name certain models; `once` for the next request only. Times pass on *clock*. `diary` may be one with a file.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        by_model: Mapping[str, Script] | None = None,
        socket_path: Path | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.stats = Stats()
        self.by_model = dict(by_model or {})
        self.socket_path = socket_path
        self.port = port
        self.diary = Diary()
        self.tasks = Tasks()
        self._script = script or Script()
        self._once: deque[Script] = deque(maxlen=1000)
        self._tls = tls
        self._clock = clock or SystemClock()
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._watch = Watch(self.stats)
        self._slots = Slots(lambda: self._script.slots, self.changed)
        self._released = asyncio.Event()
        self._answers = 0
        self._pulled: dict[str, None] = {}
        self._loaded: dict[str, None] = {}
        self._loading = asyncio.Lock()

    @property
    def script(self) -> Script:
        """What it does with requests that come from now on."""
        return self._script

    @script.setter
    def script(self, script: Script) -> None:
        self._script = script
        self._slots.wake()

    @property
    def url(self) -> str:
        """The base URL, without `/v1`. Over a Unix socket the host in it means nothing."""
        name = "localhost" if self.socket_path else f"{HOST}:{self.port}"
        return f"{'https' if self._tls else 'http'}://{name}"

    def once(self, *scripts: Script) -> None:
        """Use these scripts for the next inference requests, one each, before any other."""
        self._once.extend(scripts)

    def release(self) -> None:
        """Let everything that hangs now go on."""
        self._released.set()
        self._released = asyncio.Event()

    async def until(self, reached: Callable[[Stats], bool], *, timeout_s: float = 5.0) -> None:
        """Return as soon as *reached* holds of the stats.

        Raises:
            TimeoutError: it didn't within *timeout_s*; the message has the counts.
        """
        await self._watch.until(reached, timeout_s)

    async def start(self) -> None:
        """Listen; after `stop`, again at the same address.

        Raises:
            OSError: the address is taken; nothing was started.
        """
        self.tasks = Tasks()
        loop = asyncio.get_running_loop()
        if self.socket_path is not None:
            self._server = await loop.create_unix_server(
                self._connection, str(self.socket_path), ssl=self._tls
            )
        else:
            self._server = await loop.create_server(
                self._connection, HOST, self.port, ssl=self._tls, reuse_address=True, backlog=1024
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die as a killed engine does: no answer is ended, every connection is dropped. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        self.drop_connections()
        await self.tasks.close()
        await server.wait_closed()

    def drop_connections(self) -> None:
        """Abort every open connection; go on listening."""
        for connection in tuple(self._connections):
            connection.abort()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        self.diary.close()

    # What the connections ask of their host.

    def opened(self, connection: Connection) -> None:
        """A client came."""
        self._connections.add(connection)
        self.stats.connections += 1
        self.changed()

    def lost(self, connection: Connection) -> None:
        """It went."""
        self._connections.discard(connection)
        self.changed()

    def changed(self) -> None:
        """Something that is counted here changed."""
        self.stats.connected = len(self._connections)
        self.stats.held = sum(connection.held for connection in self._connections)
        self.stats.queued = self._slots.queued
        self._watch.changed()

    def keeps_alive(self) -> bool:
        """As scripted."""
        return self._script.keep_alive

    async def handle(self, request: Received, reply: Reply) -> None:
        """Answer one request."""
        if request.method == "POST" and request.path in INFERENCE:
            await self._infer(request, reply)
        elif request.path == "/stats":
            self._json(reply, 200, self.stats.counts() | {"executions": self.stats.executions})
        elif request.path == "/script" and request.method == "PUT":
            self._replace_script(request, reply)
        else:
            self.stats.questions += 1
            await self._tell(request, reply)

    async def _tell(self, request: Received, reply: Reply) -> None:
        """Answer what is asked beside inference."""
        script = self._script
        ids = self._ids()
        if script.loading:  # before it looks at keys, as llama.cpp does
            self._json(reply, 503, answers.error(503, "Loading model", "unavailable_error"))
        elif native.is_guarded(request.path) and self._is_stranger(request, script):
            self._json(reply, 401, native.refused_key())
        elif request.path == "/v1/models":
            owner = native.OWNERS.get(script.dialect, "fake")
            self._json(reply, 200, answers.models(ids, int(self._clock.now()), owner))
        elif script.dialect == "ollama" and (request.method, request.path) == ("POST", "/api/pull"):
            await self._pull(request, reply)
        elif (script.dialect, request.path) == ("sglang", "/health"):
            self.stats.tokens += 1  # it generates one to see whether it lives
            self._json(reply, 200, {})
        elif answer := native.about(request.path, script, ids, list(self._loaded), self.stats.active):
            self._json(reply, *answer)
        else:
            self._json(reply, 404, answers.error(404, "File Not Found", "not_found_error"))

    def _ids(self) -> list[str]:
        """The models that it has."""
        return list(dict.fromkeys((*self._script.models, *self.by_model, *self._pulled)))

    def _is_stranger(self, request: Received, script: Script) -> bool:
        return bool(script.api_key) and request.header("authorization") != f"Bearer {script.api_key}"

    async def _pull(self, request: Received, reply: Reply) -> None:
        name = str(request.json().get("model"))
        known = name in self._script.pullable
        reply.stop_when_left = True
        reply.begin("application/x-ndjson")
        for line in native.pull_lines(known=known):
            await reply.send(line)
            await sleep(self._clock, self._script.interval_s)
        reply.end()
        if known:
            self._pulled[name] = None
            self.stats.pulls += 1
            self._watch.changed()

    async def _load(self, model: str, script: Script) -> None:
        """Bring a model into memory where the product does so on demand; others go, the oldest first."""
        if script.dialect not in ("ollama", "lm-studio"):
            return
        async with self._loading:
            if model in self._loaded:
                return
            self.stats.loads += 1
            self._watch.changed()
            await sleep(self._clock, script.load_s)
            self._loaded[model] = None
            while len(self._loaded) > max(1, script.most_loaded):
                del self._loaded[next(iter(self._loaded))]

    async def _infer(self, request: Received, reply: Reply) -> None:
        self.stats.received.append(request)
        request_id = request.header("x-request-id")
        body = _object(request)
        script = (
            self._once.popleft() if self._once else self.by_model.get(str(body.get("model")), self._script)
        )
        if status := self._turned_away(request, reply, body, script):
            self.diary.note(request_id, str(status))
            return
        try:
            work = self._read(request, body, script)
        except answers.BadRequest as problem:
            self._refuse(reply, 400, str(problem), "invalid_request_error")
            return
        self.diary.note(request_id, "came")
        if reply.left:  # it came late, when nobody waited any more
            return
        reply.stop_when_left = True  # while it waits for a slot; the execution decides for itself
        try:
            async with self._slots.one(may_wait=script.when_full == "queue"):
                self.diary.note(request_id, "ran")
                await self._load(str(body.get("model") or script.models[0]), script)
                execution = Execution(reply, script, self._clock, self._watch, self._released)
                await execution.run(work, request_id)
        except Full:
            self._refuse(reply, 503, "no slot is free", "unavailable_error")

    def _read(self, request: Received, body: answers.Json, script: Script) -> answers.Ask | answers.Json:
        if request.path == "/v1/embeddings":
            return answers.embeddings(body, script)
        self._answers += 1
        created = int(self._clock.now())
        return answers.read_ask(request.path, body, script, number=self._answers, created=created)

    def _turned_away(self, request: Received, reply: Reply, body: answers.Json, script: Script) -> int:
        """Refuse it where that is to be; the status, or 0."""
        known = {*script.models, *self.by_model}
        if not body:
            return self._refuse(reply, 400, "the body is not a JSON object", "invalid_request_error")
        if self._is_stranger(request, script):
            return self._refuse(reply, 401, "Invalid API Key", "authentication_error")
        if script.loading:
            return self._refuse(reply, 503, "Loading model", "unavailable_error")
        if script.checks_model and body.get("model") not in known:
            return self._refuse(reply, 404, f"model {body.get('model')!r} not found", "not_found_error")
        if not isinstance(script.fault, Refuse):
            return 0
        fault = script.fault
        made = msgspec.json.encode(answers.error(fault.status, "refused as scripted", "server_error"))
        self._count_refusal()
        reply.whole(fault.status, made if fault.body is None else fault.body.encode(), dict(fault.headers))
        return fault.status

    def _count_refusal(self) -> None:
        self.stats.refused += 1
        self._watch.changed()

    def _refuse(self, reply: Reply, status: int, message: str, kind: str) -> int:
        self._count_refusal()
        self._json(reply, status, answers.error(status, message, kind))
        return status

    def _replace_script(self, request: Received, reply: Reply) -> None:
        try:
            self.script = msgspec.json.decode(request.body, type=Script)
        except msgspec.DecodeError as problem:
            self._json(reply, 400, answers.error(400, str(problem), "invalid_request_error"))
        else:
            reply.whole(204, b"")

    def _json(self, reply: Reply, status: int, value: answers.Json | list[answers.Json]) -> None:
        reply.whole(status, msgspec.json.encode(value))

    def _connection(self) -> Connection:
        return Connection(self)


def _object(request: Received) -> answers.Json:
    """The body; empty where it isn't a JSON object."""
    try:
        body = request.json()
    except msgspec.DecodeError:
        return {}
    return body if isinstance(body, dict) else {}
