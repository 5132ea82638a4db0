"""kill -9 of a service that counts: nothing that was used is forgotten, and little is charged that wasn't."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from headrace.adapters.ledger.blocks import BlockSize
from headrace.domain.quota import Measure
from headrace.testing.fake_engine import FakeEngine, Script
from support.service import COMMAND, PATIENCE_S, Service, environment

KEY = "sk-crash"
LIMIT = 100_000
CLIENTS = 8
BODY = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}).encode()
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


def config(url: str) -> str:
    return (
        f'[auth]\napi_keys = ["{KEY}"]\n[limits]\nrequests_per_month = {LIMIT}\n'
        f'[[upstreams]]\nname = "fake"\nurl = "{url}"\ncapacity = 256\nmodels = ["fake"]\n'
    )


class Hammer:
    """Clients that ask again and again until the service is gone; `answered` counts whole answers."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self._count = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(port,)) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _run(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            while True:
                connection.request("POST", "/v1/chat/completions", BODY, HEADERS)
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                with self._count:
                    self.answered += 1
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()


def used(service: Service) -> int:
    """What the service counts as used, by its own word in the head of an answer; the request that asked included."""
    status, headers, _ = service.raw("POST", "/v1/chat/completions", BODY, HEADERS)
    assert status == 200
    assert int(headers["x-ratelimit-limit-requests"]) == LIMIT
    return LIMIT - int(headers["x-ratelimit-remaining-requests"])


def crash(home: Path, text: str, moment_s: float) -> tuple[int, int]:
    """Start the service, ask what it remembers, load it, kill it: (what it remembered, answers given since)."""
    with Service(home, text) as service:
        remembered = used(service) - 1
        hammer = Hammer(service.port)
        threading.Event().wait(moment_s)
        service.send(signal.SIGKILL)
        service.ended()
        hammer.join()
        return remembered, hammer.answered + 1


@pytest.mark.slow
@pytest.mark.req("C09", "E03", "E15")
@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.timeout(600)
async def test_a_killed_service_forgets_nothing_and_overcharges_little(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(20261121)
    block = BlockSize().of(Measure.REQUESTS, LIMIT)
    answered = 0
    async with FakeEngine(Script(tokens=2, slots=256)) as engine:
        text = config(engine.url)
        for killed in range(rounds):
            remembered, more = await asyncio.to_thread(crash, tmp_path, text, chance.uniform(0.05, 0.6))
            assert remembered >= answered, "an answer that was given is forgotten"
            assert remembered <= engine.stats.started - more + killed * (block + CLIENTS)
            answered += more
        async with Service(tmp_path, text) as service:
            remembered = await asyncio.to_thread(used, service)
            assert answered <= remembered - 1 <= engine.stats.started + rounds * (block + CLIENTS)
    checked = await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, "db", "check", "--json"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
async def test_an_orderly_end_charges_exactly_what_was_used(tmp_path: Path) -> None:
    async with FakeEngine(Script(tokens=2, slots=256)) as engine:
        text = config(engine.url)
        for expected in (1, 2, 3):
            async with Service(tmp_path, text) as service:
                assert await asyncio.to_thread(used, service) == expected
                service.send(signal.SIGTERM)
                assert await asyncio.to_thread(service.ended) == 0
