"""A server on this machine's loopback, asked once at a time: to see that it's up, to set it, to read its counters."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

ASK_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and whole body."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """127.0.0.1:`port`; `key` is sent as a bearer token."""

    port: int
    key: str = "sk-bench"

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request on a connection of its own.

        Raises:
            OSError: nobody listens, or it broke off.
            http.client.HTTPException: what came back isn't HTTP.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self.key}"} | (
            {"Content-Type": "application/json"} if body else {}
        )
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def answers(self, path: str) -> bool:
        """Whether GET `path` gives a 200 now."""
        try:
            return self.ask("GET", path).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_until_up(self, path: str, within_s: float, alive: Callable[[], bool] = lambda: True) -> bool:
        """Look until GET `path` gives a 200; False when it didn't `within_s`, or `alive` says that it never will."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and alive():
            if self.answers(path):
                return True
            time.sleep(LOOK_EVERY_S)
        return False


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
