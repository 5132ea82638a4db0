"""The measuring tools themselves: what the load generator says it did is what the upstream saw, and faults are seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.endpoint import Endpoint, free_port
from bench.procs import cpu_s, resident_mb, running
from bench.programs import Programs, Upstream
from bench.scenarios import EVENTS
from bench.site import Site, Stack

from bench import cancel

STREAM = ["--mode", "stream", "--conns", "8"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Built anew: they compile without a warning."""
    return Programs.build(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def upstream(programs: Programs) -> Iterator[Upstream]:
    with programs.serving() as serving:
        yield serving


def test_every_plain_answer_counted_by_the_load_was_given_by_the_upstream(
    programs: Programs, upstream: Upstream
) -> None:
    result = programs.offer(upstream.endpoint.port, 1.0, ["--conns", "8"])
    stats = upstream.stats()
    assert result.ok > 100
    assert (result.bad, result.cut, result.left) == (0, 0, 0)
    assert (stats["answered"], stats["started"], stats["pending"]) == (result.ok, 0, 0)
    assert result.requests_per_s <= result.ok
    assert 0 < result.latency_p50_ms <= result.latency_p99_ms <= result.latency_max_ms


@pytest.mark.parametrize(("mode", "events"), [("stream", EVENTS), ("stream-no-usage", EVENTS - 1)])
def test_every_stream_ends_with_all_its_events_and_usage_only_when_asked_for(
    programs: Programs, upstream: Upstream, mode: str, events: int
) -> None:
    upstream.set({"interval_us": 500})
    options = ["--mode", mode, "--conns", "8", "--expect-events", str(events)]
    result = programs.offer(upstream.endpoint.port, 0.3, options)
    stats = upstream.stats()
    assert result.ok > 8
    assert (result.bad, result.cut) == (0, 0)
    assert (stats["started"], stats["finished"], stats["aborted"]) == (result.ok, result.ok, 0)
    assert result.events == result.ok * events
    assert 0 < result.first_event_p50_ms < result.latency_p50_ms


def test_a_load_that_leaves_is_seen_by_the_upstream_as_aborts(programs: Programs, upstream: Upstream) -> None:
    upstream.set({"interval_us": 1000, "tokens": 10_000})
    result = programs.offer(upstream.endpoint.port, 0.2, [*STREAM, "--leave-after", "5"])
    assert cancel.wait_for(upstream, lambda now: now["active"] == 0)
    stats = upstream.stats()
    assert result.left > 8
    assert (result.ok, result.bad) == (0, 0)
    assert (stats["started"], stats["aborted"], stats["finished"]) == (result.left, result.left, 0)


def test_streams_that_outlast_the_drain_are_cut_not_lost(programs: Programs, upstream: Upstream) -> None:
    upstream.set({"interval_us": 10_000, "tokens": 10_000})
    result = programs.offer(upstream.endpoint.port, 0.1, [*STREAM, "--drain", "0.1"])
    assert (result.ok, result.bad, result.cut) == (0, 0, 8)
    assert cancel.wait_for(upstream, lambda now: now["aborted"] == 8)


def test_a_stream_with_too_few_events_is_an_error(programs: Programs, upstream: Upstream) -> None:
    upstream.set({"tokens": 3})
    result = programs.offer(upstream.endpoint.port, 0.1, [*STREAM, "--expect-events", str(EVENTS)])
    assert result.ok == 0
    assert result.bad >= 8
    assert result.first_error == "not the expected number of events, status 200, 7 events"


@pytest.mark.parametrize("mode", cancel.MODES)
def test_the_upstream_tells_when_it_saw_a_client_leave(
    programs: Programs, upstream: Upstream, mode: cancel.Mode, tmp_path: Path
) -> None:
    site = Site(programs, upstream, tmp_path)
    found = cancel.measure(site, Stack("direct", upstream.endpoint, None, ""), mode, 3)
    assert found.unseen == 0
    assert found.ms is not None
    assert 0 <= found.ms.median < cancel.SEEN_WITHIN_S * 1000


def test_a_client_that_stays_is_not_taken_for_one_that_left(upstream: Upstream) -> None:
    upstream.endpoint.ask("POST", "/v1/chat/completions", b'{"stream":true}')
    assert upstream.stats()["last_abort_us"] == 0
    assert upstream.stats()["finished"] == 1


def test_the_upstream_reads_a_chunked_request(upstream: Upstream) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [
        b'4\r\n{"st',
        b'\r\nb;x=1\r\nream":true}',
        b"\r\n0\r\nTrailer: 1\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
    ]
    with socket.create_connection(("127.0.0.1", upstream.endpoint.port), timeout=10) as client:
        for piece in [head, *pieces]:
            client.sendall(piece)
        received = b""
        while not received.endswith(b'{"status":"ok"}'):  # the pipelined request's answer, behind the stream
            more = client.recv(65536)
            assert more
            received += more
    assert received.count(b"data: ") == EVENTS - 1


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@contextmanager
def answering(answer: bytes, cut: int) -> Iterator[int]:
    """A server whose every answer is `answer`, written in pieces of `cut` bytes; each connection has one."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.settimeout(0.05)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            with client:
                client.settimeout(10)
                client.recv(65536)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(0, len(answer), cut):
                    client.sendall(answer[at : at + cut])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join(10)
        listener.close()


@pytest.mark.parametrize(("size", "cut"), [(7, 3), (1, 1), (1000, 4000)])
def test_events_are_counted_however_they_are_cut(programs: Programs, size: int, cut: int) -> None:
    closing = HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = closing + chunked(EVENT * 5 + b"data: [DONE]\n\n", size)
    with answering(answer, cut) as port:
        options = ["--mode", "stream", "--conns", "1", "--expect-events", "6"]
        result = programs.offer(port, 0.1, options)
    assert result.ok > 0
    assert (result.bad, result.first_error) == (0, "")
    assert result.events == 6 * result.ok


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (HEAD + chunked(EVENT, 1000)[:-5], "the connection broke off, status 200, 1 events"),
        (HEAD + chunked(EVENT, 1000), "no [DONE], status 200, 1 events"),
        (
            HEAD + chunked(b'data: {"error":{"message":"no"}}\n\ndata: [DONE]\n\n', 1000),
            "an error event, status 200, 2 events",
        ),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}", "not a 200, status 503, 0 events"),
    ],
)
def test_a_bad_answer_is_an_error_that_names_itself(programs: Programs, answer: bytes, error: str) -> None:
    with answering(answer, 1 << 20) as port:
        result = programs.offer(port, 0.05, ["--mode", "stream", "--conns", "1"])
    assert result.ok == 0
    assert result.bad > 0
    assert result.first_error == error


def test_connections_that_are_dialled_late_are_not_all_there_at_once(
    programs: Programs, upstream: Upstream
) -> None:
    options = ["--conns", "20", "--mode", "stream", "--spread-us", "200000", "--dial-late"]
    upstream.set({"interval_us": 100_000, "tokens": 4})
    with programs.offering(upstream.endpoint.port, 0.1, options) as offer:
        assert cancel.wait_for(upstream, lambda now: now["active"] > 0)
        first = upstream.stats()
        result = offer.result(20)
        assert offer.ended()
    last = upstream.stats()
    assert first["accepted"] < last["accepted"]
    assert (result.ok, result.bad, result.redials) == (20, 0, 0)


def test_nobody_listening_ends_the_load_with_an_error(programs: Programs) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        programs.offer(free_port(), 0.1, [])


def test_cpu_time_is_finer_than_the_ticks_of_the_kernel() -> None:
    seen = {cpu_s(os.getpid(), children=False) for _ in range(50)}
    assert len(seen) > 10
    assert max(seen) - min(seen) < 1
    assert abs(max(seen) - time.process_time()) < 1


BURN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"


def test_cpu_time_counts_the_children_and_both_end_with_the_block() -> None:
    parent = (
        f"import signal, subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n"
        "print('done', flush=True)\nsignal.pause()"
    )
    with running([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert cpu_s(process.pid) - cpu_s(process.pid, children=False) >= 0.19
        assert resident_mb(process.pid) > 1
    assert process.returncode is not None
    assert cpu_s(process.pid) == 0.0


def test_an_endpoint_that_never_comes_up_is_given_up() -> None:
    assert not Endpoint(free_port()).wait_until_up("/health", 0.02)
    assert not Endpoint(free_port()).wait_until_up("/health", 60, lambda: False)
