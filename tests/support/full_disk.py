"""A process whose files may not grow, as on a disk that is full, and then may again. Writes what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from pathlib import Path

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.database import Bounds, Database
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import Unavailable
from headrace.ports.records import User


def allow(size_bytes: int) -> None:
    """How large a file may become from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


async def main(folder: Path) -> dict[str, object]:
    backend = choose("sqlite", folder)
    database = Database(backend, SystemClock(), Bounds(patience_s=20.0))
    await database.open()
    accounts = SqlAccounts(database)
    saved, failures = [], []

    async def save(number: int) -> None:
        user = User(user_id=f"u{number:04}", name="x" * 2_000)
        try:
            await accounts.save_user(user)
            saved.append(user.user_id)
        except Unavailable as error:
            failures.append(error.message)

    allow(400_000)
    for start in range(0, 400, 20):
        await asyncio.gather(*(save(number) for number in range(start, start + 20)))
    full = len(saved)
    readable = sorted(user.user_id for user in await accounts.users()) == sorted(saved)
    allow(resource.RLIM_INFINITY)
    await asyncio.gather(*(save(number) for number in range(1000, 1020)))
    kept = sorted(user.user_id for user in await accounts.users())
    await database.close()
    return {
        "full": full,
        "failures": len(failures),
        "failure": failures[0] if failures else "",
        "readable": readable,
        "after": len(saved) - full,
        "kept": kept == sorted(saved),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
