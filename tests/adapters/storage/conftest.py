"""Both databases, for real: a file in a temporary folder, and a PostgreSQL that was started for the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from headrace.adapters.storage.backend import Backend, choose
from headrace.adapters.storage.database import Database
from support import storage
from support.servers import postgres
from support.servers.postgres import Postgres
from support.storage import Opening, WriteLock


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres.running() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is empty and of this test's own, of both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    server: Postgres = request.getfixturevalue("server")
    return server.database()


@pytest.fixture
def backend(url: str, tmp_path: Path) -> Backend:
    return choose(url, tmp_path)


@pytest.fixture
def opening(url: str, tmp_path: Path) -> Opening:
    return partial(storage.opened, url, tmp_path)


@pytest.fixture
async def database(opening: Opening) -> AsyncIterator[Database]:
    async with opening() as database:
        yield database


@pytest.fixture
def write_lock(backend: Backend) -> Iterator[WriteLock]:
    lock = WriteLock(backend.engine(connections=1, writes=True, limit_s=10.0))
    yield lock
    lock.give_back()
