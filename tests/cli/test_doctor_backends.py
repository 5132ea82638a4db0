"""The doctor on upstreams: what it says of one that is dead, refuses us, speaks something else or has no models."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from headrace.cli.checks_backends import Backends
from headrace.cli.checks_finding import Finding
from headrace.settings import Upstream
from headrace.testing import Script
from support.command_line import Engine

Serve = Callable[[Script], Engine]


def look(url: str, **more: object) -> Finding:
    """What is said of one upstream; that a proxy stands before it is left out."""
    upstream = Upstream.model_validate({"name": "u", "url": url, **more})
    found = Backends({}).examine([upstream])
    (finding,) = [each for each in found if each.check == "upstream u"]
    return finding


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


@pytest.mark.parametrize("kind", ["openai", "ollama", "anthropic"])
def test_one_that_is_dead(port: int, kind: str) -> None:
    found = look(f"http://127.0.0.1:{port}", kind=kind)
    assert (found.level, "connection is refused" in found.detail) == ("failed", True)
    assert "Start that server" in found.advice


def test_one_whose_name_nobody_knows() -> None:
    found = look("http://gpu-box.invalid:8000")
    assert (found.level, "no machine called 'gpu-box.invalid'" in found.detail) == ("failed", True)


@pytest.mark.slow
def test_one_that_does_not_answer_when_it_is_connected_to() -> None:
    """Its queue of connections is full, which looks from here like a firewall that drops them."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        found = look(f"http://127.0.0.1:{full.getsockname()[1]}", timeouts={"connect": 1})
    assert (found.level, "no connection within" in found.detail) == ("failed", True)
    assert "firewall" in found.advice


def test_one_that_refuses_our_key(serve: Serve) -> None:
    url = serve(Script(api_key="right")).url
    assert look(url, api_key="right").level == "ok"
    wrong, none = look(url, api_key="wrong"), look(url)
    assert (wrong.level, "refuses our key" in wrong.detail) == ("failed", True)
    assert "Correct api_key" in wrong.advice
    assert "It wants one" in none.advice
    assert "wrong" not in wrong.detail + wrong.advice


def test_those_of_another_kind(serve: Serve) -> None:
    openai, ollama = serve(Script(dialect="openai")), serve(Script(dialect="ollama"))
    found = look(openai.url, kind="ollama")
    assert (found.level, 'kind = "openai"' in found.advice) == ("failed", True)
    found = look(ollama.url)
    assert (found.level, 'kind = "ollama"' in found.advice) == ("warning", True)
    assert look(ollama.url, kind="ollama").level == "ok"


def test_one_that_lists_no_models_or_others(serve: Serve) -> None:
    none, some = (
        serve(Script(dialect="openai", models=())),
        serve(Script(dialect="openai", models=("a", "b"))),
    )
    found = look(none.url)
    assert (found.level, "lists no models" in found.detail) == ("warning", True)
    found = look(some.url, models=["a", "c"])
    assert (found.level, "doesn't list c; it lists a, b" in found.detail) == ("warning", True)
    assert look(some.url, models=["a"]).level == "ok"


def test_one_that_is_still_loading(serve: Serve) -> None:
    found = look(serve(Script(loading=True)).url)
    assert (found.level, "loading" in found.detail) == ("warning", True)


def test_one_that_is_a_kind_of_nobody_or_lacks_its_files(tmp_path: Path, port: int) -> None:
    url = f"https://127.0.0.1:{port}"
    assert "no kind of backends" in look(url, kind="nonsense").detail
    for key in ("api_key_file", "ca_file"):
        found = look(url, **{key: str(tmp_path / "nowhere")})
        assert (found.level, "nowhere" in found.detail) == ("failed", True)


class Answer(http.server.BaseHTTPRequestHandler):
    """Lists a model, an hour ahead of everybody, and says that it is behind a proxy."""

    def do_GET(self) -> None:
        body = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'
        self.send_response(200) if self.path == "/v1/models" else self.send_response(404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("via", "1.1 corner-cache")
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        import time

        return super().date_time_string(time.time() + 3600)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name for it
        """Nothing."""


@contextlib.contextmanager
def answering(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on a port of its own, which speaks TLS where it has a *context*."""

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Who doesn't trust our certificate hangs up."""

    server = Quiet(("127.0.0.1", 0), Answer)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_its_clock_and_a_proxy_before_it() -> None:
    skews: dict[str, float] = {}
    with answering() as port:
        upstream = Upstream.model_validate({"name": "u", "url": f"http://127.0.0.1:{port}"})
        found = {each.check: each for each in Backends(skews).examine([upstream])}
    assert found["upstream u"].level == "ok"
    assert "corner-cache" in found["proxy of u"].detail
    assert 3590 < skews["u"] < 3610


def test_trouble_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))

    def server(*names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        return context

    with answering(server("localhost", "127.0.0.1")) as port:
        assert look(f"https://127.0.0.1:{port}", ca_file=str(ca_file)).level == "ok"
        strange = look(f"https://127.0.0.1:{port}")
        assert (strange.level, "isn't accepted" in strange.detail) == ("failed", True)
        assert "ca_file" in strange.advice
        plain = look(f"http://127.0.0.1:{port}")
        assert (plain.level, plain.advice) == ("failed", "Write https:// in url.")
    with answering(server("other.example")) as port:
        other = look(f"https://127.0.0.1:{port}", ca_file=str(ca_file))
        assert (other.level, "name that stands in its certificate" in other.advice) == ("failed", True)
    with answering() as port:
        none = look(f"https://127.0.0.1:{port}", ca_file=str(ca_file))
        assert (none.level, "doesn't speak TLS" in none.detail) == ("failed", True)


def test_several_are_told_in_their_order(port: int, serve: Serve) -> None:
    urls = [f"http://127.0.0.1:{port}", serve(Script()).url]
    upstreams = [Upstream.model_validate({"name": f"u{n}", "url": url}) for n, url in enumerate(urls)]
    found = [(each.check, each.level.value) for each in Backends({}).examine(upstreams)]
    assert found == [("upstream u0", "failed"), ("upstream u1", "ok")]
