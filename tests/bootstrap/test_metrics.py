"""`/metrics` of the whole service: what its quota, its records and its buffers say under real traffic."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.gateway import metrics_table
from headrace.testing.fake_engine import FakeEngine, Script
from support.raw import RawClient, call
from support.servers.redis import redis_server
from support.service import Service

CHAT = "/v1/chat/completions"
BODY = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
KEY, ADMIN = {"authorization": "Bearer sk-one"}, {"authorization": "Bearer sk-root"}
CONFIG = """
[auth]
api_keys = ["sk-one"]
admin_keys = ["sk-root"]
[limits]
requests_per_minute = 1000
tokens_per_day = 100_000
concurrency = 10
[[upstreams]]
name = "fake"
url = "{url}"
models = ["fake"]
[quota]
url = "{ledger}"
"""
_SAMPLE = re.compile(r"^([a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@pytest.fixture(params=["embedded", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the quota is counted."""
    if request.param == "embedded":
        yield "embedded"
        return
    with redis_server(tmp_path / "redis") as server:
        yield server.url


async def scrape(service: Service) -> dict[str, float]:
    """Every sample, by its name and labels."""
    answer = await call(service.port, "GET", "/metrics", ADMIN)
    assert answer.status == 200
    return {
        f"{name}{{{labels}}}" if labels else name: float(value)
        for name, labels, value in _SAMPLE.findall(answer.body.decode())
    }


async def scraped_until(service: Service, **wanted: float) -> dict[str, float]:
    """Scrape until these samples have these values."""
    async with asyncio.timeout(60):
        while True:
            found = await scrape(service)
            if all(found[name] == value for name, value in wanted.items()):
                return found


async def ask(service: Service, **more: object) -> dict[str, int]:
    """One whole answer; its usage."""
    answer = await call(service.port, "POST", CHAT, KEY, json.dumps({**BODY, **more}).encode())
    assert answer.status == 200, answer.body
    usage: dict[str, int] = answer.json["usage"]
    return usage


@pytest.mark.slow
@pytest.mark.req("E21", "E22", "C47")
async def test_all_that_is_documented_is_there_and_follows_the_traffic(tmp_path: Path, ledger: str) -> None:
    script = Script(models=("fake",), tokens=5, interval_s=0.02)
    async with (
        FakeEngine(script) as engine,
        Service(tmp_path / "home", CONFIG.format(url=engine.url, ledger=ledger)) as service,
    ):
        used = [await ask(service) for _ in range(3)]
        unknown = json.dumps({**BODY, "model": "unknown"}).encode()
        assert (await call(service.port, "POST", CHAT, KEY, unknown)).status == 404
        documented = {metric.name for metric in (*metrics_table.ALWAYS, *metrics_table.OPTIONAL)}
        buffers = ("ledger_waiting", "ledger_unwritten", "journal_buffered", "records_buffered")
        inside = ("database_writes_waiting", "database_writes_waiting_bytes", "database_reads_waiting")
        now = await scraped_until(
            service, **dict.fromkeys([f"headrace_{name}" for name in buffers + inside], 0)
        )
        assert documented <= {name.partition("{")[0] for name in now}
        total = sum(usage["total_tokens"] for usage in used)
        assert now["ml_tokens_processed_total"] == total
        assert now['headrace_tokens_total{kind="prompt"}'] == sum(one["prompt_tokens"] for one in used)
        assert now["headrace_quota_settled_tokens_total"] == total
        assert now["headrace_quota_reserved_tokens_total"] >= 3 * 50
        assert now["headrace_quota_open_tokens"] == 0
        assert now["headrace_records_lag_seconds"] == now["headrace_records_dropped_total"] == 0
        if ledger == "embedded":
            assert now["headrace_ledger_windows"] == 3  # requests, tokens, concurrency
            assert now["headrace_ledger_remembered"] >= 6  # of each request its entry and its tokens


@pytest.mark.slow
@pytest.mark.req("E22", "C47")
async def test_what_is_reserved_is_seen_until_its_request_has_ended(tmp_path: Path, ledger: str) -> None:
    script = Script(models=("fake",), tokens=100_000, interval_s=0.02)
    async with (
        FakeEngine(script) as engine,
        Service(tmp_path / "home", CONFIG.format(url=engine.url, ledger=ledger)) as service,
    ):
        async with RawClient(service.port) as client:
            client.request("POST", CHAT, KEY, json.dumps({**BODY, "stream": True}).encode())
            await client.reader.readuntil(b"data: ")
            running = await scraped_until(service, headrace_running=1)
            assert (
                running["headrace_quota_open_tokens"] == running["headrace_quota_reserved_tokens_total"] >= 50
            )
            assert running["headrace_ledger_open_reservations"] == 2
            assert running["headrace_quota_settled_tokens_total"] == 0
        ended = await scraped_until(service, headrace_quota_open_tokens=0, headrace_running=0)
        assert ended["headrace_ledger_open_reservations"] == 0
        assert ended["headrace_quota_settled_tokens_total"] == ended["ml_tokens_processed_total"] > 0
        assert ended['headrace_requests_total{ending="cancelled"}'] == 1
