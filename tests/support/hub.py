"""A model hub on loopback that breaks off, changes its mind and redirects, as a test says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What it serves, and what it saw. break_after: bytes after which each of the next answers breaks off.
    claims: another length than it has. statuses: for the next requests, before anything is served. cdn: where it redirects to."""

    content: bytes
    ranges: bool = True
    etag: str | None = None
    claims: int | None = None
    cdn: str = ""
    break_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def ranges_seen(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.seen]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve *hub* at `hub.address` until the end of the block."""

    class Handler(_Handler):
        it = hub

    server = _Server(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no error here."""


class _Handler(BaseHTTPRequestHandler):
    it: Hub

    def do_GET(self) -> None:
        hub = self.it
        hub.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        etag = f'"{hub.etag if hub.etag is not None else hub.sha256}"'
        if hub.statuses:
            self.send_error(hub.statuses.pop(0))
        elif hub.cdn:
            self.send_response(302)
            self.send_header("Location", hub.cdn + self.path)
            self.send_header("X-Linked-Etag", etag)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._serve(hub, etag)

    def _serve(self, hub: Hub, etag: str) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
        if start and start >= len(hub.content):
            self.send_error(416)
            return
        body = hub.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(hub.claims or len(body)))
        self.end_headers()
        if hub.break_after:
            body = body[: hub.break_after.pop(0)]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""
