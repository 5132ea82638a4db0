"""What survives a restart: the database, and what is kept in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
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
from headrace.adapters.storage.routes import SqlRoutes
from headrace.adapters.storage.tenure import Watch
from headrace.kernel.clock import Clock
from headrace.ports.ledger import Journal, QuotaLedger
from headrace.settings import Settings
from headrace.settings.schema import Quota

if TYPE_CHECKING:
    from headrace.adapters.ledger.redis import RedisLedger


@dataclass(frozen=True, slots=True)
class Kept:
    """What survives a restart. `gauges`: how it stands, by the names of the metrics."""

    accounts: SqlAccounts
    routes: SqlRoutes
    records: SqlRecords
    ledger: QuotaLedger
    gauges: Mapping[str, Callable[[], float]]


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
    watch = Watch(database, journal.tenure, clock)
    stack.callback(watch.close)
    watch.start()
    retention = Retention(records, journal, clock, records_s=settings.storage.records_retention)
    stack.push_async_callback(retention.close)
    retention.start()
    gauges = _database_gauges(database, records, journal) | _ledger_gauges(ledger)
    return Kept(SqlAccounts(database), SqlRoutes(database, clock), records, ledger, gauges)


def _database_gauges(
    database: Database, records: SqlRecords, journal: SqlJournal
) -> dict[str, Callable[[], float]]:
    return {
        "headrace_records_buffered": lambda: records.buffered,
        "headrace_records_lag_seconds": lambda: records.lag_s,
        "headrace_records_dropped_total": lambda: records.dropped,
        "headrace_journal_buffered": lambda: journal.buffered,
        "headrace_database_writes_waiting": lambda: database.queued[0],
        "headrace_database_writes_waiting_bytes": lambda: database.queued[1],
        "headrace_database_reads_waiting": lambda: database.reads_queued,
    }


def _ledger_gauges(ledger: MemoryLedger | RedisLedger) -> dict[str, Callable[[], float]]:
    unwritten = (lambda: ledger.unwritten) if isinstance(ledger, MemoryLedger) else (lambda: ledger.unsettled)
    return {
        "headrace_ledger_open_reservations": lambda: ledger.open_reservations,
        "headrace_ledger_waiting": lambda: ledger.waiting,
        "headrace_ledger_unwritten": unwritten,
        "headrace_ledger_windows": lambda: ledger.windows,
        "headrace_ledger_remembered": lambda: ledger.remembered,
    }


def _ledger(settings: Quota, journal: Journal, clock: Clock) -> MemoryLedger | RedisLedger:
    url, choice = settings.url.get_secret_value(), OnUnavailable(settings.on_unavailable)
    if url == "embedded":
        return MemoryLedger(journal, clock, LedgerOptions(strict=settings.strict, on_unavailable=choice))
    from headrace.adapters.ledger.redis import RedisLedger, RedisOptions

    return RedisLedger(url, clock, RedisOptions(prefix=settings.prefix, on_unavailable=choice))
