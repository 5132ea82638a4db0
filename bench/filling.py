"""A database that has seen a lot: records of requests, written before the gateway starts that is measured on it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.schema_version import Migrations
from headrace.ports.records import RequestRecord

AT_ONCE = 20_000
OVER_S = 20 * 86_400.0
"""How long ago the oldest is: within what is kept by default, so that no pruning runs during the measurement."""
USERS, KEYS_EACH, MODELS = 500, 3, 20
DATABASE = "headrace.db"


def filled(folder: Path, records: int) -> Path:
    """A data folder below *folder* with so many records, made at the first call: copy it, for whoever uses it adds to it."""
    home = folder / f"filled-{records}"
    if not home.exists():
        fill(home, records)
    return home


def fill(home: Path, records: int) -> Path:
    """Make the database of a data folder, with so many records in it; its file. About 15 s and 300 MB for each million.

    The ids are as the gateway makes them, in the order of time; users, keys and models take turns.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = home / DATABASE
    file.touch(mode=0o600)
    Migrations(choose("sqlite", home)).upgrade()
    columns = RequestRecord.__struct_fields__
    insert = f"INSERT INTO requests ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    connection = sqlite3.connect(file)
    try:
        rows = (msgspec.structs.astuple(record) for record in made(records, time.time()))
        while batch := list(islice(rows, AT_ONCE)):
            with connection:
                connection.executemany(insert, batch)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    return file


def made(records: int, now: float) -> Iterator[RequestRecord]:
    """So many, the oldest first, evenly over `OVER_S` before *now*."""
    for number in range(records):
        created_at = now - OVER_S * (records - number) / records
        user = number % USERS
        failed = number % 100 == 0
        yield RequestRecord(
            request_id=f"req_{int(created_at):08x}{number:016x}",
            user_id=f"user-{user}",
            key_id=f"key_{user * KEYS_EACH + number // USERS % KEYS_EACH}",
            client="127.0.0.1",
            path="/v1/chat/completions",
            model=f"model-{number % MODELS}",
            node="bench",
            status="failed" if failed else "completed",
            http_status=502 if failed else 200,
            error="upstream_failed" if failed else "",
            created_at=created_at,
            completed_at=created_at + 1.5,
            latency_ms=1500.0,
            first_token_ms=120.0,
            streamed=True,
            executions=1,
            estimated_tokens=300,
            prompt_tokens=100,
            completion_tokens=0 if failed else 150,
            total_tokens=100 if failed else 250,
        )
