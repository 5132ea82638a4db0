"""A server double that speaks TensorFlow Serving's REST API over real sockets, as scripted.

async with FakeTfServing({"half": FakeModel()}) as server:
    ...                                             # talk to server.url
    await server.until(lambda: server.left == 1)

Its models halve each number and add two. Paths, messages and statuses are those of TensorFlow Serving's source.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from headrace.kernel.aio import Tasks
from headrace.testing.fake_engine.connection import Connection, Host, Reply
from headrace.testing.fake_engine.stats import Received

_HOST = "127.0.0.1"
_PART = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_PREDICTION = re.compile(_PART + ":(classify|regress|predict)", re.IGNORECASE)
_QUESTION = re.compile(_PART + "(/metadata)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FakeModel:
    """One model. states: of its versions, by number; what went wrong is the `error` of those that ended."""

    states: Mapping[int, str] = field(default_factory=lambda: {1: "AVAILABLE"})
    labels: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


class Refused(Exception):
    """The server answers with this status, and the message as its error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeTfServing(Host):
    """The server, as an async context manager: listening inside, everything closed after it.

    models, fault and hangs may be changed at any time. fault: a status and a message for every prediction; hangs: predictions
    wait for `release`. asked, predicted: the latest questions and predictions. finished: predictions answered, whether or not
    somebody was there to hear it. left: clients that went before their answer.
    """

    def __init__(self, models: Mapping[str, FakeModel] | None = None, *, api_key: str = "") -> None:
        self.models: Mapping[str, FakeModel] = {"half": FakeModel()} if models is None else models
        self.fault: tuple[int, str] | None = None
        self.hangs = False
        self.asked: deque[Received] = deque(maxlen=100)
        self.predicted: deque[Received] = deque(maxlen=100)
        self.finished = 0
        self.left = 0
        self.port = 0
        self.tasks = Tasks()
        self._api_key = api_key
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._released = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, without `/v1`."""
        return f"http://{_HOST}:{self.port}"

    def release(self) -> None:
        """Let everything that hangs now go on."""
        self._released.set()
        self._released = asyncio.Event()

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Return when *holds* does; looked at whenever something that is counted here changed.

        Raises:
            TimeoutError: it didn't within *timeout_s*.
        """
        async with asyncio.timeout(timeout_s):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def __aenter__(self) -> Self:
        self.tasks = Tasks()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), _HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self.tasks.close()
        await self._server.wait_closed()

    # -- its connections' host -----------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A client came."""
        self._connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """It went."""
        self._connections.discard(connection)
        self.changed()

    def changed(self) -> None:
        """Something that is counted here changed."""
        self._news.set()

    def keeps_alive(self) -> bool:
        """Always."""
        return True

    def handle(self, request: Received, reply: Reply) -> Coroutine[Any, Any, None]:
        """Answer one request. What has begun is worked on to the end, as TensorFlow Serving does, whoever leaves."""
        return self._handle(request, reply)

    async def _handle(self, request: Received, reply: Reply) -> None:
        try:
            if self._api_key and request.header("authorization") != f"Bearer {self._api_key}":
                raise Refused(401, "Unauthorized")
            if request.method == "POST" and (match := _PREDICTION.fullmatch(request.path)):
                self.predicted.append(request)
                self.changed()
                answer = await self._predict(request, reply, match)
            elif request.method == "GET" and (match := _QUESTION.fullmatch(request.path)):
                self.asked.append(request)
                answer = self._tell(match)
            else:
                raise Refused(400, f"Malformed request: {request.method} {request.path}")
        except Refused as refused:
            body = json.dumps({"error": str(refused)}).encode()
            reply.whole(HTTPStatus(refused.status), body, {"Content-Type": "application/json"})
        else:
            reply.whole(200, answer, {"Content-Type": "application/json"})
        self.changed()

    # -- what it knows -------------------------------------------------------------------------------------------------

    async def _predict(self, request: Received, reply: Reply, match: re.Match[str]) -> bytes:
        name, version, label, verb = match.groups()
        if self.fault is not None:
            raise Refused(*self.fault)
        self._find(unquote(name), version, label)
        try:
            body = json.loads(request.body)
        except ValueError as error:
            raise Refused(400, f"JSON Parse error: {error}") from None
        if self.hangs:
            await self._released.wait()
        self.left += reply.left
        self.finished += 1
        return json.dumps(_answer(verb.lower(), body), indent=4).encode()

    def _tell(self, match: re.Match[str]) -> bytes:
        name, version, label, metadata = match.groups()
        model = self.models.get(unquote(name))
        if metadata:
            number = self._find(unquote(name), version, label)
            spec = {"name": unquote(name), "signature_name": "", "version": str(number)}
            return json.dumps({"model_spec": spec, "metadata": {"signature_def": {}}}, indent=1).encode()
        if model is None:
            raise Refused(404, f"Could not find any versions of model {unquote(name)}")
        wanted = int(version) if version else model.labels.get(unquote(label)) if label else None
        told = [
            {
                "version": str(which),
                "state": state,
                "status": {"error_code": "UNKNOWN" if model.error else "OK", "error_message": model.error},
            }
            for which, state in model.states.items()
            if wanted in (None, which)
        ]
        if not told:
            raise Refused(404, f"Could not find version {wanted} of model {unquote(name)}")
        return json.dumps({"model_version_status": told}, indent=1).encode()

    def _find(self, name: str, version: str | None, label: str | None) -> int:
        """The number of the version that is asked for."""
        model = self.models.get(name)
        ready = [number for number, state in model.states.items() if state == "AVAILABLE"] if model else []
        if label is not None and (model is None or unquote(label) not in model.labels):
            raise Refused(400, f"Unrecognized servable version label: {unquote(label)}")
        if version is None and label is None:
            if not ready:
                raise Refused(404, f"Servable not found for request: Latest({name})")
            return max(ready)
        number = int(version) if version else model.labels[unquote(label or "")] if model else 0
        if number not in ready:
            raise Refused(404, f"Servable not found for request: Specific({name}, {number})")
        return number


def _answer(verb: str, body: Any) -> object:
    if verb == "predict":
        if "instances" in body:
            return {"predictions": [number / 2 + 2 for number in body["instances"]]}
        if "inputs" in body:
            return {"outputs": [number / 2 + 2 for number in body["inputs"]]}
        raise Refused(400, "Missing 'inputs' or 'instances' key")
    if "examples" not in body:
        raise Refused(400, "When method is classify, key 'examples' is expected and was not found")
    numbers = [example["x"] for example in body["examples"]]
    if verb == "regress":
        return {"results": [number / 2 + 2 for number in numbers]}
    return {"results": [[["low", 1.0 - number], ["high", number]] for number in numbers]}
