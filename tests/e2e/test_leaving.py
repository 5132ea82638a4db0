"""Clients that leave a real engine, and clients that wait for one another."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest

from support.service import Service, until

pytestmark = pytest.mark.slow

ENDLESS = 1500
"""Tokens that take a good while, and still fit into the context."""


@pytest.fixture(scope="module")
def narrow(service: Service, client: openai.OpenAI) -> psutil.Process:
    """The engine with one slot; it is the one that says so."""
    client.chat.completions.create(model="narrow", messages=[{"role": "user", "content": "hi"}], max_tokens=1)
    (found,) = [engine for engine in service.engines() if _is_narrow(service.slots(engine))]
    return found


def _is_narrow(slots: Any) -> bool:
    return len(slots) == 1


def decoded(service: Service, engine: psutil.Process) -> int:
    """Tokens that the engine has produced for the request it works on; -1: it works on none."""
    (slot,) = service.slots(engine)
    return slot["next_token"][0]["n_decoded"] if slot["is_processing"] else -1


def endless(*, stream: bool) -> dict[str, Any]:
    return {
        "model": "narrow",
        "messages": [{"role": "user", "content": "Tell a long story."}],
        "max_tokens": ENDLESS,
        "ignore_eos": True,
        "stream": stream,
    }


@pytest.mark.compliance("O95")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_leaving_stops_the_engine_and_the_next_request_is_served(
    service: Service, client: openai.OpenAI, narrow: psutil.Process, stream: bool
) -> None:
    body = json.dumps(endless(stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    most = 0

    def stopped() -> bool:
        nonlocal most
        count = decoded(service, narrow)
        most = max(most, count)
        return count < 0

    with socket.create_connection(("127.0.0.1", service.port)) as leaving:
        leaving.sendall(head.encode() + body)
        until(lambda: decoded(service, narrow) > 3)
    until(stopped)
    assert most < ENDLESS - 100, "it was stopped, and didn't just come to its end"
    answer = client.chat.completions.create(
        model="narrow", messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )
    assert answer.choices[0].message.content


def test_three_clients_of_one_slot_are_served_in_turn(service: Service, client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        answer = client.chat.completions.create(
            model="narrow", messages=[{"role": "user", "content": f"Count to {number}."}], max_tokens=20
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(ask, range(3)))
