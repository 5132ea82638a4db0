"""What a proxy in front of our running service does to its streams."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from headrace.cli.checks_arrivals import MOST_BYTES, Passage, blocks, passage
from headrace.cli.checks_finding import Finding, Level
from headrace.client.errors import read_error
from headrace.kernel.errors import ConfigError

_PATH = "/admin/stream-test"
_LIMIT_S = 20.0
_PAUSE_S = 15.0
_READ_BYTES = 16 * 1024
_STREAMS = "streams"


@dataclass(frozen=True)
class Answer:
    """What came, and when: seconds since the request. Names of *headers* in lower case."""

    status: int
    headers: Mapping[str, str]
    pieces: list[tuple[float, bytes]]

    @property
    def passage(self) -> Passage:
        """What became of the test stream."""
        return passage(blocks(self.pieces, compressed=self.headers.get("content-encoding", "").lower()))


def through(url: str, key: str | None, skews: MutableMapping[str, float]) -> list[Finding]:
    """Ask our own service for a test stream at *url*, where clients reach it, and judge what comes. Blocks.

    *key*: of an administrator. How far the clock there is ahead of ours goes into *skews*.
    """
    name = f"through {url}"
    try:
        packed = ask(url, key, "gzip")  # as clients ask for it
        if packed.status != 200:
            return [_refused(name, packed)]
        skew_of(packed.headers, name, skews)
        found = packed.passage
        if found.events == 0:
            told = packed.headers.get("content-type") or "nothing"
            advice = "Is this the address of the service itself, and does the proxy pass /admin/ on to it?"
            return [Finding(name, Level.FAILED, f"No test stream comes, but {told}.", advice)]
        plain = ask(url, key, "identity").passage if found.held else found
    except ConfigError as error:
        return [Finding(name, Level.FAILED, error.message, "Correct the URL or the key.")]
    except (OSError, http.client.HTTPException) as error:
        reason = (
            getattr(error, "verify_message", None) or getattr(error, "strerror", None) or type(error).__name__
        )
        advice = "Is the proxy running, and does its name lead here?"
        return [Finding(name, Level.FAILED, f"It can't be reached: {reason}.", advice)]
    return list(judge(name, packed.headers, found, plain))


def ask(url: str, key: str | None, encoding: str) -> Answer:
    """The test stream of the service at *url*, as it comes. Our own client doesn't serve here: it never asks for compression.

    Raises:
        ConfigError: *url* or *key* can't be one.
        OSError, HTTPException: there is no answer.
    """
    connection, prefix = _connection(url)
    headers = {"accept": "text/event-stream", "accept-encoding": encoding}
    if key:
        headers["authorization"] = f"Bearer {key}"
    try:
        began = time.monotonic()
        try:
            connection.request("GET", f"{prefix}{_PATH}", headers=headers)
        except ValueError as error:
            raise ConfigError("The URL or the key has characters that can't be sent.") from error
        response = connection.getresponse()
        pieces: list[tuple[float, bytes]] = []
        size = 0
        while (
            size < MOST_BYTES
            and time.monotonic() - began < _LIMIT_S
            and (piece := response.read1(_READ_BYTES))
        ):
            pieces.append((time.monotonic() - began, piece))
            size += len(piece)
        told = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, told, pieces)
    finally:
        connection.close()


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigError("A URL looks like https://llm.example.com.")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_PAUSE_S), prefix
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(host, port, timeout=_PAUSE_S, context=context), prefix


def _refused(name: str, answer: Answer) -> Finding:
    status = answer.status
    told = read_error(b"".join(piece for _, piece in answer.pieces))[0] or "no reason given"
    advice = {
        401: "Give an admin key with --key or HEADRACE_API_KEY; and let the proxy pass the header Authorization on.",
        403: "Give an admin key with --key or HEADRACE_API_KEY.",
        404: "Let the proxy pass /admin/ on, at least while you test; or is that service older than this program?",
        502: "The proxy doesn't reach the service: correct the address that it has of it.",
        504: "The proxy doesn't reach the service: correct the address that it has of it.",
    }.get(status, "The log of the proxy, and that of the service, tell more.")
    if 300 <= status < 400:
        told, advice = (
            f"to {answer.headers.get('location', 'nowhere')[:200]}",
            "Give the URL that it leads to.",
        )
    return Finding(name, Level.FAILED, f"It answers {status}: {told.rstrip('.')}.", advice)


def judge(name: str, headers: Mapping[str, str], packed: Passage, plain: Passage) -> Iterator[Finding]:
    """What is to be said of a stream with these *headers*. *plain*: the same, asked for without compression."""
    server = proxy_name(headers) or "what stands in between"
    compressed = headers.get("content-encoding", "identity") != "identity"
    if packed.held and not plain.held and compressed:
        yield Finding(
            f"{name}: {_STREAMS}",
            Level.FAILED,
            f"{server} collects events to compress them: they come {packed.late_s:.1f} s late.",
            "Don't compress text/event-stream (nginx: take it out of gzip_types).",
        )
    elif packed.held:
        how = "in one piece" if packed.one_piece else f"{packed.late_s:.1f} s late"
        yield Finding(
            f"{name}: {_STREAMS}",
            Level.FAILED,
            f"{server} holds events back: they come {how}.",
            _unbuffer(headers),
        )
    else:
        yield Finding(f"{name}: {_STREAMS}", Level.OK, f"{packed.events} events came as they were sent")
    if compressed and not packed.held:
        yield Finding(
            f"{name}: compression",
            Level.WARNING,
            f"{server} compresses event streams ({headers['content-encoding']}).",
            "It costs time for each token; leave text/event-stream out of what is compressed.",
        )
    if not packed.comments:
        yield Finding(
            f"{name}: keep-alives",
            Level.WARNING,
            f"{server} drops the comments that keep a waiting client's connection alive.",
            "Let it pass the stream on as it is, or raise its time-outs above limits.queue_wait.",
        )
    yield from _identity(name, server, headers.get("x-request-id", ""), packed.request_id)


def _unbuffer(headers: Mapping[str, str]) -> str:
    if "x-accel-buffering" in headers:
        return "It doesn't heed the header x-accel-buffering: switch its response buffering off for /v1/ and /admin/."
    if "nginx" in proxy_name(headers) or "openresty" in proxy_name(headers):
        return (
            "It takes x-accel-buffering away without heeding it: set proxy_buffering off for /v1/, and take "
            "proxy_ignore_headers X-Accel-Buffering out."
        )
    return "It takes the header x-accel-buffering away: switch its response buffering off for /v1/ (nginx: proxy_buffering off)."


def _identity(name: str, server: str, shown: str, sent: str) -> Iterator[Finding]:
    check = f"{name}: request id"
    if shown == sent:
        yield Finding(check, Level.OK, "x-request-id comes through")
        return
    what = "takes x-request-id away" if not shown else "puts another x-request-id in the place of ours"
    yield Finding(
        check,
        Level.WARNING,
        f"{server} {what}.",
        "Let it pass the header on: it is what a client names when it reports an error.",
    )


def proxy_name(headers: Mapping[str, str]) -> str:
    """What stands before a server, as the fields `Via` and `Server` tell it; empty where they tell of nothing."""
    known = (
        "nginx",
        "openresty",
        "envoy",
        "cloudflare",
        "haproxy",
        "varnish",
        "caddy",
        "traefik",
        "apache",
        "awselb",
    )
    server = headers.get("server", "")
    found = next((word for word in known if word in server.lower()), "")
    return (server[:40] if found else "") or headers.get("via", "")[:40]


def skew_of(headers: Mapping[str, str], who: str, skews: MutableMapping[str, float]) -> None:
    """Put how far a server's clock is ahead of ours, by its field Date, into *skews*; nothing where it says none, or where a
    cache gave an old answer."""
    if "age" in headers:
        return
    try:
        its = parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return
    skews[who] = its + 0.5 - time.time()  # it has whole seconds
