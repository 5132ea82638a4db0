"""A running service whose Redis or PostgreSQL stands still, goes away, is full or comes back: every request is answered, others
are served as ever, and what was used is counted once."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.fake_engine import FakeEngine, Script
from support.load import Load, ask
from support.servers import postgres
from support.servers.postgres import Postgres
from support.servers.redis import RedisServer, redis_server
from support.service import COMMAND, PATIENCE_S, Service, environment, until

ROOT = "sk-root"
LIMIT = 2_000
TOKENS = 1_000_000
BLOCK = 20
"""What is drawn of a limit of that size."""
ANSWERED_WITHIN_S = 10.0
"""Of a request, whatever happens to a dependency: its own time-outs are a tenth of that, the rest is for a busy machine."""
SCRIPT = Script(tokens=2, slots=256, delay_s=0.02)


def config(url: str, more: str = "") -> str:
    return (
        f'[auth]\nadmin_keys = ["{ROOT}"]\n[limits]\nanonymous_requests_per_minute = 0\n'
        f'[[upstreams]]\nname = "fake"\nurl = "{url}"\ncapacity = 256\nmodels = ["fake"]\n{more}'
    )


def administer(service: Service, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Use the administration; what it answers."""
    content = json.dumps(body).encode() if body is not None else b""
    status, answer = service.call(method, path, content, {"authorization": f"Bearer {ROOT}"})
    assert status < 300, answer
    return answer


def make_key(service: Service, **limits: int) -> tuple[str, str]:
    """A new key of the user ann, with these limits: (its id, its text)."""
    made = administer(service, "POST", "/admin/keys", {"user_id": "ann", "limits": limits})
    return made["key_id"], made["key"]


def answered_in_time(*loads: Load) -> None:
    for load in loads:
        assert not load.troubles
        assert max(answer.took_s for answer in load.answers) < ANSWERED_WITHIN_S


def metric(service: Service, name: str) -> float:
    """The value of a metric without labels."""
    _, _, text = service.raw("GET", "/metrics", b"", {"authorization": f"Bearer {ROOT}"})
    return float(next(line for line in text.decode().splitlines() if line.startswith(f"{name} ")).split()[1])


def settled(service: Service) -> None:
    """Wait until nothing is open or on its way any more."""
    for name in ("headrace_ledger_unwritten", "headrace_ledger_open_reservations"):
        until(lambda name=name: metric(service, name) == 0)  # type: ignore[misc]


def use_the_rest(service: Service, key_id: str, key: str, served: list[str]) -> None:
    """Of a limit that leaves five more requests, five are had, and no sixth: nothing was forgotten or counted twice."""
    limits = {"requests_per_month": len(served) + 5}
    administer(service, "PATCH", f"/admin/keys/{key_id}", {"limits": limits})
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        told = [ask(connection, key) for _ in range(8)]
    assert [answer.status for answer in told] == [200] * 5 + [429] * 3
    assert told[-1].code == "insufficient_quota"


class Redis:
    """What befalls a Redis, as contexts."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.server.freeze()
        yield
        self.server.thaw()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        self.server.kill()
        yield
        self.server.start()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        self.server.command("CONFIG", "SET", "maxmemory", "1")
        yield
        self.server.command("CONFIG", "SET", "maxmemory", "0")


class TestRedis:
    @pytest.fixture
    def redis(self, tmp_path: Path) -> Iterator[RedisServer]:
        with redis_server(tmp_path / "redis") as server:
            yield server

    @pytest.mark.slow
    @pytest.mark.req("E15", "E69")
    @pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.full)])
    @pytest.mark.parametrize("choice", ["refuse", "allow"])
    @pytest.mark.timeout(300)
    async def test_one_that_hangs_is_gone_or_full(
        self, redis: RedisServer, tmp_path: Path, choice: str, rounds: int
    ) -> None:
        async with FakeEngine(SCRIPT) as engine:
            quota = f'[quota]\nurl = "{redis.url}"\non_unavailable = "{choice}"\n'
            text = config(engine.url, quota)
            await asyncio.to_thread(self.live_through_it, tmp_path, text, redis, choice, rounds)

    def live_through_it(self, home: Path, text: str, redis: RedisServer, choice: str, rounds: int) -> None:
        with Service(home, text) as service:
            key_id, key = make_key(service, requests_per_month=LIMIT, tokens_per_month=TOKENS)
            with Load(service.port, key) as limited, Load(service.port, ROOT) as others:
                for trouble in (Redis(redis).frozen, Redis(redis).refusing, Redis(redis).full) * rounds:
                    limited.until(200, 10)
                    self.get_through(trouble, limited, others, choice)
                limited.until(200, 10)
            answered_in_time(limited, others)
            assert all(answer.status == 200 for answer in others.answers)
            settled(service)
            use_the_rest(service, key_id, key, limited.served)
            service.send(signal.SIGTERM)
            assert service.ended() == 0
            served, tokens = recorded(home / "headrace.db", key_id)
        assert set(limited.served) <= served
        assert len(served) == len(limited.served) + 5
        assert redis.get(f"key:{key_id}:quota:monthly:requests:used") == str(len(served))
        assert redis.get(f"key:{key_id}:quota:monthly:tokens:used") == str(tokens)

    def get_through(
        self,
        trouble: Callable[[], contextlib.AbstractContextManager[None]],
        limited: Load,
        others: Load,
        choice: str,
    ) -> None:
        with trouble():
            mark = len(limited.answers)
            limited.until(503, 30, since=mark)
            others.until(200, 30)
            meanwhile = limited.since(mark)
            refused = [place for place, answer in enumerate(meanwhile) if answer.status != 200]
            assert {meanwhile[place].code for place in refused} == {"quota_unavailable"}
            late = [answer for answer in meanwhile if answer.status == 200]
            if choice == "refuse":
                assert len(late) <= 3, "what was under way when it began"
            else:
                assert BLOCK // 2 <= len(late) <= BLOCK + 3
        limited.until(200, 10)


def recorded(path: Path, key_id: str) -> tuple[set[str], int]:
    """The requests of a key that were served, and their tokens together."""
    query = "SELECT request_id, total_tokens FROM requests WHERE key_id = ? AND status = 'completed'"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(query, (key_id,)).fetchall()
    return {row[0] for row in rows}, sum(row[1] for row in rows)


class Stopping:
    """What befalls a PostgreSQL, as contexts."""

    def __init__(self, server: Postgres) -> None:
        self.server = server

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        with self._down("fast"):
            yield

    @contextlib.contextmanager
    def crashed(self) -> Iterator[None]:
        with self._down("immediate"):
            yield

    @contextlib.contextmanager
    def _down(self, mode: str) -> Iterator[None]:
        self.server.stop(mode)
        try:
            yield
        finally:
            self.server.start()


class TestPostgresql:
    @pytest.fixture
    def server(self) -> Iterator[Postgres]:
        with postgres.running() as server:
            yield server

    @pytest.mark.slow
    @pytest.mark.req("E15", "E69")
    @pytest.mark.parametrize(
        ("choice", "rounds"),
        [
            ("refuse", 1),
            pytest.param("allow", 1, marks=pytest.mark.full),
            pytest.param("refuse", 6, marks=pytest.mark.full),
        ],
    )
    @pytest.mark.timeout(300)
    async def test_one_that_hangs_or_is_gone(
        self, server: Postgres, tmp_path: Path, choice: str, rounds: int
    ) -> None:
        url = await asyncio.to_thread(server.create, "own")
        async with FakeEngine(SCRIPT) as engine:
            more = f'[storage]\nurl = "{url}"\n[quota]\non_unavailable = "{choice}"\n'
            await asyncio.to_thread(self.live_through_it, tmp_path, config(engine.url, more), server, rounds)

    def live_through_it(self, home: Path, text: str, server: Postgres, rounds: int) -> None:
        with Service(home, text) as service:
            key_id, key = make_key(service, requests_per_month=LIMIT, tokens_per_month=TOKENS)
            _, free_key = make_key(service)
            with (
                Load(service.port, key) as limited,
                Load(service.port, ROOT) as others,
                Load(service.port, free_key) as free,
            ):
                for trouble in (Stopping(server).stopped, Stopping(server).crashed, server.frozen) * rounds:
                    limited.until(200, 10)
                    self.get_through(trouble, service, limited, (others, free))
                server.stop()
                server.start()
                limited.until(200, 10)
            answered_in_time(limited, others, free)
            assert all(answer.status == 200 for load in (others, free) for answer in load.answers)
            settled(service)
            use_the_rest(service, key_id, key, limited.served)
            until(lambda: metric(service, "headrace_records_buffered") == 0)
            assert metric(service, "headrace_records_dropped_total") == 0
            service.send(signal.SIGTERM)
            assert service.ended() == 0
            said = service.log.text
            assert "Traceback" not in said
            assert 1 <= said.count("action=accounts.stale") <= 4 * rounds, "told once for each outage"
            assert "action=accounts.fresh" in said
            assert "action=storage.recovered" in said
        check(home)
        query = f"SELECT request_id, total_tokens FROM requests WHERE key_id = '{key_id}' AND status = 'completed'"
        rows = [line.split("|") for line in server.ask("own", query)]
        assert {row[0] for row in rows} >= set(limited.served)
        assert len(rows) == len(limited.served) + 5
        query = f"SELECT measure, settled, block FROM windows WHERE subject = 'key:{key_id}' ORDER BY measure"
        tokens = sum(int(row[1]) for row in rows)
        assert server.ask("own", query) == [f"requests|{len(rows)}|0", f"tokens|{tokens}|0"]

    def get_through(
        self,
        trouble: Callable[[], contextlib.AbstractContextManager[None]],
        service: Service,
        limited: Load,
        others: tuple[Load, ...],
    ) -> None:
        with trouble():
            mark = len(limited.answers)
            limited.until(503, 20, since=mark)
            for load in others:
                load.until(200, 30)
            late = [answer for answer in limited.since(mark) if answer.status == 200]
            assert len(late) <= BLOCK + 3, "what was granted beforehand, and what was under way"
            assert {a.code for a in limited.since(mark) if a.status != 200} == {"quota_unavailable"}
            assert metric(service, "headrace_records_buffered") > 0
            assert metric(service, "headrace_ledger_unwritten") > 0
            body = json.dumps({"user_id": "new"}).encode()
            status, answer = service.call("POST", "/admin/users", body, {"authorization": f"Bearer {ROOT}"})
            assert (status, answer["error"]["code"]) == (503, "database_unavailable")
        limited.until(200, 10)


def check(home: Path) -> None:
    """See that `headrace db check` finds nothing."""
    done = subprocess.run(
        [*COMMAND, "db", "check", "--json"],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class TestSeveralGateways:
    @pytest.fixture
    def server(self) -> Iterator[Postgres]:
        with postgres.running() as server:
            yield server

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    async def test_a_second_one_that_counts_by_itself_does_not_start(
        self, server: Postgres, tmp_path: Path
    ) -> None:
        url = await asyncio.to_thread(server.create, "own")
        async with FakeEngine(SCRIPT) as engine:
            text = config(engine.url, f'[storage]\nurl = "{url}"\n')
            await asyncio.to_thread(self.start_two, tmp_path, text, server)

    def start_two(self, folder: Path, text: str, server: Postgres) -> None:
        one, two = folder / "one", folder / "two"
        with Service(one, text) as first:
            _, key = make_key(first, requests_per_month=LIMIT)
            with Load(first.port, key) as limited:
                limited.until(200, 5)
                server.stop("immediate")
                server.start()
                limited.until(200, BLOCK * 2)  # more than it had: it is the one that counts again
            two.mkdir()
            (two / "headrace.toml").write_text(text, encoding="utf-8")
            refused = subprocess.run(
                [*COMMAND, "up", "--port", "0"],
                cwd=two,
                env=environment(two),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert refused.returncode == 1
            (sentence,) = [line for line in refused.stderr.splitlines() if line.startswith("headrace: ")]
            assert '[quota] url = "redis://' in sentence
            first.send(signal.SIGKILL)
            first.ended()
        with Service(two, text) as second, Load(second.port, key) as limited:
            limited.until(200, 5)

    @pytest.mark.slow
    @pytest.mark.req("C29", "E25")
    @pytest.mark.timeout(300)
    async def test_those_that_count_in_redis_share_limits_and_heed_what_one_of_them_revokes(
        self, server: Postgres, tmp_path: Path
    ) -> None:
        url = await asyncio.to_thread(server.create, "own")
        with redis_server(tmp_path / "redis") as redis:
            async with FakeEngine(SCRIPT) as engine:
                text = config(engine.url, f'[storage]\nurl = "{url}"\n[quota]\nurl = "{redis.url}"\n')
                await asyncio.to_thread(self.share, tmp_path, text, server)

    def share(self, folder: Path, text: str, server: Postgres) -> None:
        with Service(folder / "one", text) as one, Service(folder / "two", text) as two:
            _, key = make_key(one, requests_per_month=50)
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", two.port)) as connection:
                until(lambda: ask(connection, key).status != 401)
            with Load(one.port, key) as here, Load(two.port, key) as there:
                here.until(429)
                there.until(429)
            answered_in_time(here, there)
            assert len(here.served) + len(there.served) == 49
            heeded = [self.revoked_after_s(one, two), self.revoked_after_s(two, one)]
            server.stop("immediate")
            server.start()
            heeded.append(self.revoked_after_s(one, two))
            _, key = make_key(one, requests_per_month=LIMIT)
            with Load(one.port, key) as load:
                with server.frozen():
                    load.until(200, 60)
                load.until(200, 10)
            answered_in_time(load)
            assert {answer.status for answer in load.answers} == {200}, "who counts in Redis doesn't need it"
            heeded.append(self.revoked_after_s(one, two))
            assert max(heeded) < ANSWERED_WITHIN_S

    def revoked_after_s(self, one: Service, two: Service) -> float:
        """How long the other one still takes a key that the one has revoked."""
        key_id, key = make_key(one)
        with Load(two.port, key, clients=1) as load:
            load.until(200, 5, since=0)
            administer(one, "DELETE", f"/admin/keys/{key_id}")
            began = time.monotonic()
            load.until(401)
            return time.monotonic() - began
