"""The doctor on streams: a real nginx that holds them back, compresses them or lets them through, and backends that do."""

from __future__ import annotations

import http.server
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from headrace.cli.checks_arrivals import Passage, blocks, pace, passage
from headrace.cli.checks_finding import Finding, Level
from headrace.cli.checks_through import judge, skew_of, through
from headrace.testing import Script
from support.administration import ADMIN_KEY, AdministeredHouse
from support.command_line import Engine, Result
from support.house import KEY
from support.servers.nginx import nginx

Command = Callable[..., Result]
GZIP = "gzip on; gzip_types text/event-stream; gzip_proxied any; gzip_min_length 0; gzip_http_version 1.0;"
IGNORE = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"


@pytest.fixture(scope="module")
def house() -> Iterator[AdministeredHouse]:
    """A service with an administrator, for all tests here."""
    with AdministeredHouse() as house:
        yield house


def by_check(findings: Sequence[Finding], url: str) -> dict[str, Finding]:
    return {finding.check.removeprefix(f"through {url}").lstrip(": "): finding for finding in findings}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.level.value for name, finding in found.items()}


@pytest.mark.slow
def test_without_a_proxy_all_is_well(house: AdministeredHouse) -> None:
    skews: dict[str, float] = {}
    found = by_check(through(house.url, ADMIN_KEY, skews), house.url)
    assert levels(found) == {"streams": "ok", "request id": "ok"}
    assert [abs(skew) < 5 for skew in skews.values()] == [True]


@pytest.mark.slow
def test_an_nginx_that_buffers_and_compresses(house: AdministeredHouse, tmp_path: Path) -> None:
    with nginx(tmp_path / "n", house.url, http=GZIP, location=IGNORE) as url:
        found = by_check(through(url, ADMIN_KEY, {}), url)
    assert found["streams"].level is Level.FAILED
    assert "nginx" in found["streams"].detail
    assert "in one piece" in found["streams"].detail
    assert "proxy_buffering off" in found["streams"].advice


@pytest.mark.slow
def test_an_nginx_that_buffers(house: AdministeredHouse, tmp_path: Path) -> None:
    with nginx(tmp_path / "n", house.url, location=IGNORE) as url:
        found = by_check(through(url, ADMIN_KEY, {}), url)
    assert levels(found) == {"streams": "failed", "request id": "ok"}


@pytest.mark.slow
def test_an_nginx_that_collects_what_it_compresses(house: AdministeredHouse, tmp_path: Path) -> None:
    """With HTTP/1.1 towards us its buffering holds nothing back, but for what it compresses."""
    location = f"{IGNORE} proxy_http_version 1.1;"
    with nginx(tmp_path / "n", house.url, http=GZIP, location=location) as url:
        found = by_check(through(url, ADMIN_KEY, {}), url)
    assert levels(found) == {"streams": "failed", "request id": "ok"}
    assert "to compress them" in found["streams"].detail


@pytest.mark.slow
def test_an_nginx_that_compresses_only(house: AdministeredHouse, tmp_path: Path) -> None:
    with nginx(tmp_path / "n", house.url, http=GZIP, location="proxy_buffering off;") as url:
        found = by_check(through(url, ADMIN_KEY, {}), url)
    assert levels(found) == {"streams": "ok", "compression": "warning", "request id": "ok"}


@pytest.mark.slow
@pytest.mark.parametrize("location", ["proxy_buffering off;", "proxy_buffering on;"])
def test_an_nginx_that_lets_streams_through(house: AdministeredHouse, tmp_path: Path, location: str) -> None:
    """With buffering on, too: our header switches it off for streams."""
    with nginx(tmp_path / "n", house.url, location=location) as url:
        found = by_check(through(url, ADMIN_KEY, {}), url)
    assert levels(found) == {"streams": "ok", "request id": "ok"}


@pytest.mark.slow
def test_an_nginx_that_takes_the_request_id_away(house: AdministeredHouse, tmp_path: Path) -> None:
    hidden = "proxy_hide_header X-Request-Id;"
    with nginx(tmp_path / "n", house.url, location=hidden) as url:
        assert by_check(through(url, ADMIN_KEY, {}), url)["request id"].level is Level.WARNING
    with nginx(tmp_path / "o", house.url, location=f"{hidden} add_header X-Request-Id other;") as url:
        found = by_check(through(url, ADMIN_KEY, {}), url)["request id"]
    assert "another" in found.detail


def test_a_key_that_is_no_administrators(house: AdministeredHouse) -> None:
    for key in (KEY, None):
        (finding,) = through(house.url, key, {})
        assert finding.level is Level.FAILED
        assert "--key" in finding.advice


def test_a_proxy_that_does_not_reach_the_service(house: AdministeredHouse, tmp_path: Path) -> None:
    with nginx(tmp_path / "n", "http://127.0.0.1:9") as url:
        (finding,) = through(url, ADMIN_KEY, {})
    assert (finding.level, "502" in finding.detail) == (Level.FAILED, True)
    assert "doesn't reach the service" in finding.advice


def test_what_is_no_service_of_ours(house: AdministeredHouse, tmp_path: Path) -> None:
    with nginx(tmp_path / "n", house.url, location="return 200 'hello';") as url:
        (finding,) = through(url, ADMIN_KEY, {})
    assert (finding.level, "No test stream" in finding.detail) == (Level.FAILED, True)
    (finding,) = through("http://127.0.0.1:9", ADMIN_KEY, {})
    assert (finding.level, "can't be reached" in finding.detail) == (Level.FAILED, True)
    (finding,) = through("nonsense", ADMIN_KEY, {})
    assert finding.level is Level.FAILED


@pytest.mark.slow
def test_the_command_says_it(headrace: Command, house: AdministeredHouse, tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(
        f"[server]\nport = {house.house.port}\n[ollama]\nprobe = false\n"
        '[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:9"\n'
    )
    result = headrace("doctor", "--through", house.url, "--key", ADMIN_KEY, "--json")
    found = {each["check"]: each["level"] for each in result.json()}
    assert found[f"through {house.url}: streams"] == "ok"
    assert found["gateway"] == "ok"
    assert result.status == 1, "the upstream is dead"


def test_no_key_is_sent_to_another_machine_unasked(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "first-key").write_text("sk-local-0123456789")
    result = headrace("doctor", "--through", "http://headrace.invalid", "--json")
    (finding,) = [each for each in result.json() if each["check"].startswith("through ")]
    assert finding["level"] == "failed"
    from headrace.cli import office

    assert office.find_gateway("http://headrace.invalid", None, None).key is None


# -- how it is judged ----------------------------------------------------------------------------------------------------

SENT = [
    (number / 10, f'data: {{"n": {number}, "at_s": {number / 10}, "request_id": "r"}}') for number in range(6)
]


def test_the_passage_of_a_stream() -> None:
    prompt = passage([(5.0 + at_s, text) for at_s, text in SENT])
    assert (prompt.held, prompt.one_piece, prompt.request_id) == (False, False, "r")
    whole = passage([(5.5, text) for _, text in SENT])
    assert (whole.held, whole.one_piece) == (True, True)
    one_late = passage([(at_s + (0.4 if n == 2 else 0.0), text) for n, (at_s, text) in enumerate(SENT)])
    assert not one_late.held, "a machine that hiccups is no proxy that buffers"
    assert passage([(0.0, "hello")]) == Passage(0, held=False, one_piece=False, late_s=0.0, comments=False)
    assert passage([*SENT, (0.6, ": 6 0.600000")]).comments


def test_events_in_pieces_and_compressed() -> None:
    assert blocks([(0.1, b"data: a\n"), (0.2, b"\n: c\r\n\r\ndata"), (0.3, b": b\n\n")]) == [
        (0.2, "data: a"), (0.2, ": c"), (0.3, "data: b"),
    ]  # fmt: skip
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(b"data: a\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    assert blocks([(0.1, first), (0.2, packer.compress(b"data: b\n\n") + packer.flush())], compressed="gzip") == [
        (0.1, "data: a"), (0.2, "data: b"),
    ]  # fmt: skip
    assert blocks([(0.1, b"junk")], compressed="gzip") == []
    assert blocks([(0.1, b"junk")], compressed="br") == []


def test_the_pace_of_a_backend() -> None:
    one_by_one = pace([(n / 100, f"data: {n}") for n in range(20)])
    assert (one_by_one.events, one_by_one.bursts, one_by_one.held) == (20, 20, False)
    assert pace([(3.0, f"data: {n}") for n in range(20)]).held
    assert pace([(3.0, "data: 1"), (3.0, "data: [DONE]")]).held is None
    assert pace([]).held is None


def test_compression_that_collects_is_told_apart() -> None:
    held = Passage(10, held=True, one_piece=True, late_s=0.6, comments=True, request_id="r")
    free = Passage(10, held=False, one_piece=False, late_s=0.0, comments=True, request_id="r")
    headers = {"content-encoding": "gzip", "x-request-id": "r", "via": "1.1 box"}
    (streams, ident) = judge("p", headers, held, free)
    assert "compress" in streams.detail
    assert "1.1 box" in streams.detail
    assert ident.level is Level.OK
    (streams, *_) = judge("p", {"x-accel-buffering": "no", "x-request-id": "r"}, held, held)
    assert "doesn't heed" in streams.advice
    dropped = Passage(10, held=False, one_piece=False, late_s=0.0, comments=False, request_id="r")
    assert [finding.check for finding in judge("p", {"x-request-id": "r"}, dropped, dropped)] == [
        "p: streams", "p: keep-alives", "p: request id",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "headers", [{}, {"date": "yesterday"}, {"date": "Sat, 21 Nov 2026 10:00:00 GMT", "age": "7"}]
)
def test_servers_that_do_not_tell_the_time(headers: dict[str, str]) -> None:
    skews: dict[str, float] = {}
    skew_of(headers, "u", skews)
    assert skews == {}


# -- backends ------------------------------------------------------------------------------------------------------------


def streamed(headrace: Command, folder: Path, url: str, model: str = "fake") -> list[dict[str, str]]:
    (folder / "headrace.toml").write_text(
        f'[ollama]\nprobe = false\n[server]\nport = 1\n[[upstreams]]\nname = "u"\nurl = "{url}"\n'
    )
    found: list[dict[str, str]] = headrace("doctor", "--stream-test", model, "--json").json()
    return [each for each in found if each["check"].startswith("stream")]


class Teller(http.server.BaseHTTPRequestHandler):
    """A backend of the old kind: its streams have no chunks, and end with the connection."""

    def do_GET(self) -> None:
        self._answer("application/json", [b'{"object": "list", "data": [{"id": "fake", "object": "model"}]}'])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer("text/event-stream", [b'data: {"n": %d}\n\n' % number for number in range(30)])

    def _answer(self, kind: str, pieces: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            time.sleep(0.01)  # as long as a token takes

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name for it
        """Nothing."""


@pytest.fixture
def teller() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Teller)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_backend_behind_an_nginx_that_buffers(headrace: Command, teller: str, tmp_path: Path) -> None:
    with nginx(tmp_path / "n", teller) as url:
        (held,) = streamed(headrace, tmp_path, url)
    with nginx(tmp_path / "o", teller, location="proxy_buffering off;") as url:
        (free,) = streamed(headrace, tmp_path, url)
    assert (held["check"], held["level"], free["level"]) == ("stream u", "warning", "ok")
    assert "nginx" in held["detail"]
    assert "doesn't send x-accel-buffering" in held["advice"]
    assert "one by one" in free["detail"]


def test_a_model_that_no_upstream_has(
    headrace: Command, serve: Callable[[Script], Engine], tmp_path: Path
) -> None:
    (found,) = streamed(headrace, tmp_path, serve(Script()).url, "other")
    assert (found["level"], "'other'" in found["detail"]) == ("failed", True)


def test_a_backend_that_answers_too_little_or_not_at_all(
    headrace: Command, serve: Callable[[Script], Engine], tmp_path: Path
) -> None:
    from headrace.testing.fake_engine import Refuse

    (few,) = streamed(headrace, tmp_path, serve(Script(tokens=2)).url)
    assert (few["level"], "too few" in few["detail"]) == ("ok", True)
    (none,) = streamed(
        headrace, tmp_path, serve(Script(fault=Refuse(500, '{"error": {"message": "broken"}}'))).url
    )
    assert (none["level"], "broken" in none["detail"]) == ("failed", True)
