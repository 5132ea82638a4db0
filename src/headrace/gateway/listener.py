"""The open port: accepts connections, and closes down in order."""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial
from typing import cast

import structlog
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from headrace.gateway.gate import ConnectionLimits, Gate
from headrace.gateway.protocol import GatewayProtocol
from headrace.gateway.token_lane import TokenLane
from headrace.kernel.aio import Tasks
from headrace.kernel.errors import StartupError

log = structlog.get_logger(__name__)

CLOSE_PATIENCE_S = 5.0
"""How long requests may take to notice that their client was cut off."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on *host* and *port* (0: any free one).

    Raises:
        StartupError: the port is taken, or the address isn't ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, or asyncio leaves Nagle's algorithm on: an answer in two writes would take 40 ms more.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(4096)
    except (OSError, OverflowError) as error:
        listening.close()
        raise StartupError(_bind_failure(host, port, error)) from None
    listening.setblocking(False)
    return listening


class Listener:
    """Serves an ASGI application on one socket, and inference requests on the token lane, where there is one."""

    def __init__(
        self, app: ASGIApp, listening: socket.socket, limits: ConnectionLimits, lane: TokenLane | None = None
    ) -> None:
        self._socket = listening
        self._gate = Gate(limits)
        self._lane = lane
        self._config = Config(
            app,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        self._state = ServerState()
        self._tasks = Tasks()
        self._server: asyncio.AbstractServer | None = None

    @property
    def connections(self) -> int:
        """Clients that are connected now."""
        return len(self._state.connections)

    @property
    def answering(self) -> int:
        """Requests that are being answered now, on both lanes."""
        return len(self._gate.answering) + len(self._state.tasks)

    async def start(self) -> None:
        """Accept connections from now on."""
        self._config.load()
        self._tasks.spawn(self._gate.sweep(self._connections), name="connection deadlines")
        loop = asyncio.get_running_loop()
        protocol = partial(GatewayProtocol, self._config, self._state, {}, self._gate, self._lane)
        self._server = await loop.create_server(protocol, sock=self._socket, backlog=4096)

    def stop_accepting(self) -> None:
        """Take no new connections, close idle ones; running requests go on, each the last on its connection."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._state.connections):
            connection.shutdown()

    async def drained(self) -> None:
        """Wait until the last running request has been answered."""
        while self._state.tasks or self._gate.answering:
            if self._state.tasks:
                await asyncio.wait(tuple(self._state.tasks))
            await self._gate.quiet()

    async def close(self) -> None:
        """Cut what is still open; each request sees its client gone, and ends."""
        self.stop_accepting()
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        try:
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await self.drained()
        except TimeoutError:
            log.error("requests didn't end", action="listener.close", requests=len(self._state.tasks))
            for task in tuple(self._state.tasks):
                task.cancel()
        await self._tasks.close()
        self._socket.close()

    def _connections(self) -> tuple[GatewayProtocol, ...]:
        if self._gate.date:
            self._state.default_headers = [(b"date", self._gate.date[6:-2])]
        return tuple(cast("set[GatewayProtocol]", self._state.connections))


def _bind_failure(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"Port {port} on {host} is taken: another headrace may be running. Choose another with --port."
    if number == errno.EACCES:
        return f"Port {port} needs more rights than this user has: choose one above 1023 with --port."
    return f"Can't listen on {host} port {port}: {getattr(error, 'strerror', None) or error}."
