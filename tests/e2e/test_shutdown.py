"""How it ends: in order when asked once, at once when asked twice."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support.service import Service, gone, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("demo_model"),
    pytest.mark.req("D02", "D25"),
]

CONFIG = """
[server]
drain = "{drain}"

[[engines]]
id = "smollm2"
model = "demo"
threads = 1
"""


@contextlib.contextmanager
def streaming(home: Path, *, drain: str, tokens: int) -> Iterator[tuple[Service, Any]]:
    """A service, and a stream of *tokens* tokens from it that has begun."""
    with Service(home, CONFIG.format(drain=drain)) as service, service.client() as client:
        stream = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Tell a long story."}],
            max_tokens=tokens,
            extra_body={"ignore_eos": True},
            stream=True,
        )
        chunks = iter(stream)
        next(chunks)
        yield service, chunks


def refused(service: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", service.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_running_stream_finishes_and_nobody_else_gets_in(tmp_path: Path, signum: signal.Signals) -> None:
    with streaming(tmp_path, drain="60s", tokens=400) as (service, chunks):
        engines = service.engines()
        service.send(signum)
        service.console.until("Stopping")
        until(lambda: refused(service))
        assert service.process.poll() is None, "it waits for the stream"
        assert list(chunks)[-1].choices[0].finish_reason == "length"
        assert service.ended() == 0
        assert gone(engines)


def test_what_is_not_done_by_the_deadline_ends_with_an_error_event(tmp_path: Path) -> None:
    with streaming(tmp_path, drain="0s", tokens=1500) as (service, chunks):
        service.send(signal.SIGTERM)
        with pytest.raises(openai.APIError) as cut:
            list(chunks)
        assert cut.value.code == "shutting_down"
        assert service.ended() == 0
        service.log.until("answers cut off by the shutdown")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with streaming(tmp_path, drain="1h", tokens=1500) as (service, chunks):
        engines = service.engines()
        service.send(signal.SIGINT)
        service.console.until("Once more")
        service.send(signal.SIGINT)
        with pytest.raises(openai.APIError):
            list(chunks)
        assert service.ended() == 0
        assert gone(engines)


def test_an_idle_service_ends_with_nothing_to_say(tmp_path: Path) -> None:
    with Service(tmp_path, CONFIG.format(drain="1h")) as service:
        until(lambda: bool(service.engines()))
        engines = service.engines()
        service.send(signal.SIGTERM)
        assert service.ended() == 0
        assert gone(engines)
        assert "Traceback" not in service.log.text
        assert "error" not in service.log.text
