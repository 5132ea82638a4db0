"""Clients that ask a running service again and again, each with one request at a time, and remember what they were told."""

from __future__ import annotations

import http.client
import json
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

from support.service import PATIENCE_S
from support.service import until as wait_until

_REFUSED_PAUSE_S = 0.02  # who is refused asks again after a moment, as clients do


class Answer(NamedTuple):
    """What one request was told. code: of the error, empty without."""

    request_id: str
    status: int
    code: str
    took_s: float


class Load:
    """So many *clients* with *key*, from `with` to its end; half of what they ask for is streamed."""

    def __init__(self, port: int, key: str, *, clients: int = 3) -> None:
        self._port = port
        self._key = key
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.answers: list[Answer] = []
        self.troubles: list[str] = []
        """Requests that weren't answered at all, or not to their end."""

    @property
    def served(self) -> list[str]:
        """The ids of the requests that were answered as they asked."""
        return [answer.request_id for answer in list(self.answers) if answer.status == 200]

    def since(self, mark: int) -> list[Answer]:
        """What came after the first *mark* answers."""
        return self.answers[mark:]

    def until(self, status: int, count: int = 1, since: int | None = None) -> None:
        """Wait for *count* answers with *status* after the first *since*, or from now on."""
        mark = len(self.answers) if since is None else since
        wait_until(lambda: sum(answer.status == status for answer in self.since(mark)) >= count)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        streamed = False
        while not self._stopped.is_set():
            streamed = not streamed
            try:
                answer = ask(connection, self._key, streamed=streamed)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.troubles.append(repr(error))
                connection.close()
            else:
                self.answers.append(answer)
                if answer.status != 200:
                    self._stopped.wait(_REFUSED_PAUSE_S)
        connection.close()


def ask(connection: http.client.HTTPConnection, key: str, *, streamed: bool = False) -> Answer:
    """One request for a short answer, read to its end."""
    body = json.dumps(
        {
            "model": "fake",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
            "stream": streamed,
        }
    )
    began = time.monotonic()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    answer = response.read()
    took_s = time.monotonic() - began
    code = ""
    if response.status != 200:
        code = json.loads(answer)["error"]["code"]
    elif streamed:
        assert answer.endswith(b"data: [DONE]\n\n"), answer
    return Answer(response.headers["x-request-id"], response.status, code, took_s)
