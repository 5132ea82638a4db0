"""What survives a restart: the database, and what is kept in it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.adapters.ledger.breaker import OnUnavailable
from headrace.adapters.ledger.memory import LedgerOptions, MemoryLedger
from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import Backend
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.adapters.storage.records import SqlRecords
from headrace.adapters.storage.retention import Retention
from headrace.kernel.clock import Clock
from headrace.ports.ledger import Journal, QuotaLedger
from headrace.settings import Settings
from headrace.settings.schema import Quota

if TYPE_CHECKING:
    from headrace.adapters.ledger.redis import RedisLedger


@dataclass(frozen=True, slots=True)
class Kept:
    """What survives a restart."""

    accounts: SqlAccounts
    records: SqlRecords
    ledger: QuotaLedger


async def open_kept(
    settings: Settings, backend: Backend, clock: Clock, stack: contextlib.AsyncExitStack
) -> Kept:
    """Open the database, and what is kept in it; *stack* closes it again."""
    database = Database(backend, clock)
    stack.push_async_callback(database.close)
    await database.open()
    records = SqlRecords(database, clock)
    stack.push_async_callback(records.close)
    journal = SqlJournal(database)
    ledger = _ledger(settings.quota, journal, clock)
    stack.push_async_callback(ledger.close)
    await ledger.open()
    retention = Retention(records, journal, clock, records_s=settings.storage.records_retention)
    stack.push_async_callback(retention.close)
    retention.start()
    return Kept(SqlAccounts(database), records, ledger)


def _ledger(settings: Quota, journal: Journal, clock: Clock) -> MemoryLedger | RedisLedger:
    url, choice = settings.url.get_secret_value(), OnUnavailable(settings.on_unavailable)
    if url == "embedded":
        return MemoryLedger(journal, clock, LedgerOptions(strict=settings.strict, on_unavailable=choice))
    from headrace.adapters.ledger.redis import RedisLedger, RedisOptions

    return RedisLedger(url, clock, RedisOptions(prefix=settings.prefix, on_unavailable=choice))
