"""A process that writes to a database and is killed, again and again: what it was told as durable has to be there.

Run as a program: `crashing.py FOLDER ROUNDS`. Writes one JSON object a round.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from sqlalchemy import select

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.checking import check
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.adapters.storage.schema import journal, users, windows
from headrace.adapters.storage.schema_version import Migrations
from headrace.domain.quota import Measure, Period
from headrace.kernel.clock import SystemClock
from headrace.ports.ledger import JournalEntry, WindowState
from headrace.ports.records import User

DAY = 4_000_000_000 // 86_400 * 86_400  # one that won't end soon


async def write(folder: Path, number: int, said: int) -> None:
    """Write until killed; each line on *said* is something that was told as durable."""
    database = Database(choose("sqlite", folder), SystemClock())
    await database.open()
    accounts, quota = SqlAccounts(database), SqlJournal(database)

    def tell(what: str) -> None:
        os.write(said, f"{what}\n".encode())

    async def settle(stream: int) -> None:
        for count in range(1_000_000):
            told = asyncio.get_running_loop().create_future()
            name = f"r{number}-{stream}-{count}"
            entries = [
                JournalEntry(name, subject, Measure.TOKENS, Period.DAY, DAY, 3, 1.0)
                for subject in (f"user:{stream}", "key:all")
            ]
            block = WindowState(f"block:{number}-{stream}", Measure.TOKENS, Period.DAY, DAY, 0, count + 1)
            quota.commit(entries, [block], told.set_result)
            if await told:
                tell(f"entry {name} {block.subject} {block.block}")

    async def add_users() -> None:
        for count in range(1_000_000):
            await accounts.save_user(User(user_id=f"u{number}-{count}"))
            tell(f"user u{number}-{count}")

    await asyncio.gather(*(settle(stream) for stream in range(5)), add_users())


def examine(folder: Path, said: list[str]) -> dict[str, object]:
    """What is there after the crash, against what was said."""
    backend = choose("sqlite", folder)
    report = check(backend, Migrations(backend))
    engine = backend.engine(connections=1, writes=True, limit_s=10.0)
    with engine.begin() as connection:
        entries = set(connection.execute(select(journal.c.reservation)).scalars())
        blocks = {row.subject: row.block for row in connection.execute(select(windows))}
        known = set(connection.execute(select(users.c.user_id)).scalars())
    engine.dispose()
    lost = []
    for line in said:
        kind, name, *block = line.split()
        if kind == "user":
            lost += [] if name in known else [line]
        elif name not in entries or blocks.get(block[0], 0) < int(block[1]):
            lost.append(line)
    return {"said": len(said), "entries": len(entries), "lost": lost, "problems": report.problems}


def crash(folder: Path, number: int) -> dict[str, object]:
    """One process that writes and is killed at a random moment."""
    reads, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        asyncio.run(write(folder, number, says))
        os._exit(1)
    os.close(says)
    wanted, heard = random.randrange(1, 4_000), b""
    while len(heard) < wanted:
        piece = os.read(reads, 65_536)
        if not piece:
            raise RuntimeError("the writer ended by itself")
        heard += piece
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reads, 65_536):
        heard += piece
    os.close(reads)
    lines = heard.decode().splitlines(keepends=True)
    return examine(folder, [line for line in lines if line.endswith("\n")])


if __name__ == "__main__":
    for number in range(int(sys.argv[2])):
        print(json.dumps(crash(Path(sys.argv[1]), number)), flush=True)
