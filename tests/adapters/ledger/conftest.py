"""One Redis for all tests of this folder that don't harm it; each gets an empty one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.servers.redis import RedisServer, redis_server


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(_shared_redis: RedisServer) -> RedisServer:
    """Running, and empty."""
    _shared_redis.command("FLUSHALL")
    return _shared_redis
