"""Records of requests: a buffer, and batches from it into the database."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import structlog
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, case, cast, delete, func, or_, select
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError
from sqlalchemy.types import Integer

from headrace.adapters.storage.database import Database
from headrace.adapters.storage.schema import requests
from headrace.adapters.storage.upsert import DIALECTS, insert_for
from headrace.kernel.clock import Clock, Timer
from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import ALL, LONGEST_S, Grouping, Records, RequestRecord, Selection, UsageRow

log = structlog.get_logger(__name__)

FLUSH_S = 0.15
"""Between a record and its batch: what a crash can lose is this, and the time of a commit."""
RETRY_S = 1.0
"""Until a batch is tried again that the database could not take."""
MOST = 20_000
_RECORD_BYTES = 500
_PRUNED_AT_ONCE = 500
_AT_ONCE = 2_000
_INSERTS = {dialect: insert_for(dialect, requests).on_conflict_do_nothing() for dialect in DIALECTS}
_COLUMNS = RequestRecord.__struct_fields__
_values = attrgetter(*_COLUMNS)
_IN_A_STATEMENT = (256, 32, 1)
"""Records in one statement: few sizes, so that SQLite's driver knows the statement already."""
_EQUAL = ("user_id", "key_id", "model", "node", "status")


class SqlRecords(Records):
    """`Records` over a `Database` that is open. Needs a running loop.

    While the database can't be written to, records stay in the buffer; once that is full, new ones are dropped. One that the
    database refuses is dropped alone.
    """

    def __init__(
        self, database: Database, clock: Clock, *, most: int = MOST, flush_s: float = FLUSH_S
    ) -> None:
        self._database = database
        self._clock = clock
        self._most = most
        self._flush_s = flush_s
        self._buffer: deque[RequestRecord] = deque()
        self._flying: list[RequestRecord] = []  # being written
        self._timer: Timer | None = None
        self._heard: asyncio.Future[bool] | None = None
        self._closed = False
        self.dropped = 0

    @property
    def buffered(self) -> int:
        """Records that aren't in the database yet."""
        return len(self._buffer) + len(self._flying)

    @property
    def lag_s(self) -> float:
        """How long ago the oldest request ended whose record isn't in the database yet; 0 where there is none."""
        oldest = self._flying[0] if self._flying else self._buffer[0] if self._buffer else None
        return 0.0 if oldest is None else max(0.0, self._clock.now() - oldest.completed_at)

    def add(self, record: RequestRecord) -> None:
        if self._closed or self.buffered >= self._most:
            self._drop(1, "the buffer is full")
            return
        self._buffer.append(record)
        if self._timer is None and not self._flying:
            self._timer = self._clock.call_later(self._flush_s, self._flush)

    async def recent(self, limit: int, selection: Selection = ALL, *, after: str = "") -> list[RequestRecord]:
        """The newest first, those still in the buffer included.

        Raises:
            InvalidRequest: there is no record *after*.
            Unavailable: the database can't be asked.
        """
        # Copied before the database is asked: a record that is written meanwhile is then in both, and in neither otherwise.
        unwritten = {record.request_id: record for record in (*self._flying, *self._buffer)}
        known = _place(unwritten[after]) if after in unwritten else None

        def read(connection: Connection) -> tuple[_Place | None, Sequence[RowMapping]]:
            behind = known or (_place_of(connection, after) if after else None)
            return behind, connection.execute(recent_query(limit, selection, behind)).mappings().all()

        behind, rows = await self._database.read(read)
        found = {name: record for name, record in unwritten.items() if _matches(record, selection)}
        found |= {row["request_id"]: RequestRecord(**row) for row in rows}
        newest = sorted(found.values(), key=_place, reverse=True)
        return [record for record in newest if behind is None or _place(record) < behind][:limit]

    async def usage(self, by: Sequence[Grouping], selection: Selection = ALL) -> list[UsageRow]:
        """Sums, by group, those still in the buffer not included.

        Raises:
            Unavailable: the database can't be asked.
        """
        return await self._database.read(lambda connection: _usage(connection, by, selection))

    async def prune(self, before: float) -> int:
        """Delete what was completed before that time; how many. A few at a time, so that nobody waits long behind it.

        Raises:
            Unavailable: some of it may be left; pruning again takes the rest.
        """
        total = 0
        while gone := await self._database.write(lambda connection: _prune(connection, before)):
            total += gone
        return total

    async def close(self) -> None:
        """Write what is in the buffer, if the database takes it; what it doesn't take, and what still comes, is dropped."""
        self._closed = True
        while self.buffered:
            self._heard = asyncio.get_running_loop().create_future()
            if not self._flying:
                self._flush()
            if not await self._heard:
                self._drop(self.buffered, "the database could not be reached at the end")
                self._buffer.clear()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records = self._flying = [self._buffer.popleft() for _ in range(min(len(self._buffer), _AT_ONCE))]
        self._database.submit(
            lambda connection: _insert(connection, records),
            self._written,
            size_bytes=_RECORD_BYTES * len(records),
            repeatable=True,
        )

    def _written(self, refused: int | None, error: Exception | None) -> None:
        """refused: records of the batch that the database won't have."""
        pause_s = self._flush_s
        if isinstance(error, Unavailable):
            self._buffer.extendleft(reversed(self._flying))
            pause_s = RETRY_S
        elif error is not None:
            log.error("records could not be written", action="records.failed", exc_info=error)
            self._drop(len(self._flying), "they could not be written")
        elif refused:
            self._drop(refused, "the database refused them")
        self._flying = []
        if self._heard is not None:
            self._heard.set_result(error is None)
            self._heard = None
        elif len(self._buffer) >= _AT_ONCE and pause_s < RETRY_S:
            self._flush()
        elif self._buffer:
            self._timer = self._clock.call_later(pause_s, self._flush)

    def _drop(self, count: int, reason: str) -> None:
        if self.dropped == 0 or count > 1:
            log.warning("records were dropped", action="records.dropped", records=count, reason=reason)
        self.dropped += count


def _insert(connection: Connection, records: Sequence[RequestRecord]) -> int:
    """Add those that aren't there yet; how many the database won't have."""
    if connection.dialect.name == "sqlite" and _insert_as_they_are(connection, records):
        return 0
    rows = [msgspec.structs.asdict(record) for record in records]
    statement = _INSERTS[connection.dialect.name]
    if _try(connection, statement, rows):
        return 0
    rows = [_mended(row) for row in rows]
    if _try(connection, statement, rows):
        return 0
    return sum(not _try(connection, statement, [row]) for row in rows)


def _insert_as_they_are(connection: Connection, records: Sequence[RequestRecord]) -> bool:
    """Hand them to SQLite's driver, many in one statement, without SQLAlchemy looking at each value.

    The driver takes the interpreter's lock anew after each statement; a statement for each record would wrestle with the event
    loop for it thousands of times a second.
    """
    try:
        with connection.begin_nested():
            rest = records
            for size in _IN_A_STATEMENT:
                while len(rest) >= size:
                    values = tuple(chain.from_iterable(map(_values, rest[:size])))
                    connection.exec_driver_sql(_insert_of(size), values)
                    rest = rest[size:]
    except (DataError, IntegrityError, InterfaceError, OverflowError, UnicodeEncodeError):
        return False
    return True


@cache
def _insert_of(rows: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    return f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * rows)} ON CONFLICT DO NOTHING"  # noqa: S608 - our own columns


def _try(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(statement, rows)
    except (DataError, IntegrityError, OverflowError, UnicodeEncodeError):
        return False
    return True


def _mended(row: dict[str, Any]) -> dict[str, Any]:
    """Without what no database stores as text, though a client can send it: NUL, and halves of surrogate pairs."""
    return {
        name: value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
        if isinstance(value, str)
        else value
        for name, value in row.items()
    }


_Place = tuple[float, str]


def _place(record: RequestRecord) -> _Place:
    """Where *record* stands among all."""
    return record.created_at, record.request_id


def _place_of(connection: Connection, request_id: str) -> _Place:
    query = select(requests.c.created_at).where(requests.c.request_id == request_id)
    created_at = connection.execute(query).scalar()
    if created_at is None:
        raise InvalidRequest(f"There is no record {request_id!r}.", param="after")
    return created_at, request_id


def _matches(record: RequestRecord, selection: Selection) -> bool:
    wanted = ((name, getattr(selection, name)) for name in _EQUAL)
    return (
        all(not value or getattr(record, name) == value for name, value in wanted)
        and (selection.since is None or record.created_at >= selection.since)
        and (selection.until is None or record.created_at < selection.until)
        and (selection.ended_since is None or record.completed_at >= selection.ended_since)
        and (selection.ended_since is None or record.created_at >= selection.ended_since - LONGEST_S)
    )


def _conditions(selection: Selection) -> list[ColumnElement[bool]]:
    found = [requests.c[name] == value for name in _EQUAL if (value := getattr(selection, name))]
    if selection.since is not None:
        found.append(requests.c.created_at >= selection.since)
    if selection.until is not None:
        found.append(requests.c.created_at < selection.until)
    if selection.ended_since is not None:
        found.append(requests.c.completed_at >= selection.ended_since)
        found.append(requests.c.created_at >= selection.ended_since - LONGEST_S)
    return found


def recent_query(limit: int, selection: Selection, behind: _Place | None = None) -> Select[Any]:
    """The newest records of *selection*; of those *behind* a place, where there is one."""
    newest = (requests.c.created_at.desc(), requests.c.request_id.desc())
    query = select(requests).where(*_conditions(selection)).order_by(*newest).limit(limit)
    if behind is None:
        return query
    created_at, request_id = behind
    at_that_time = or_(requests.c.created_at < created_at, requests.c.request_id < request_id)
    return query.where(requests.c.created_at <= created_at, at_that_time)


def usage_query(by: Sequence[Grouping], selection: Selection, dialect: str) -> Select[Any]:
    """Sums over *selection*, a day being its number since the epoch."""
    day = requests.c.created_at / 86_400.0
    # Not every SQLite has floor(), and PostgreSQL's cast rounds. Nothing is from before 1970, so cutting off is enough there.
    columns: dict[Grouping, ColumnElement[Any]] = {
        Grouping.USER: requests.c.user_id,
        Grouping.KEY: requests.c.key_id,
        Grouping.MODEL: requests.c.model,
        Grouping.DAY: func.floor(day) if dialect == "postgresql" else cast(day, Integer),
    }
    groups = [columns[grouping].label(grouping.value) for grouping in by]
    sums = (func.sum(requests.c[name]) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    failed = func.sum(case((requests.c.status == "failed", 1), else_=0))
    query = select(*groups, func.count(), failed, *sums).where(*_conditions(selection))
    return query.group_by(*groups).order_by(*groups)


def _usage(connection: Connection, by: Sequence[Grouping], selection: Selection) -> list[UsageRow]:
    rows = connection.execute(usage_query(by, selection, connection.dialect.name))
    found = []
    for row in rows:
        group, (count, *sums) = row[: len(by)], row[len(by) :]
        if not count:
            continue  # without groups there is a row for nothing, too
        failed, prompt, completion, total = map(int, sums)
        found.append(
            UsageRow(
                group=tuple(
                    _day(value) if kind is Grouping.DAY else value
                    for kind, value in zip(by, group, strict=True)
                ),
                requests=count,
                failed=failed,
                prompt_tokens=prompt,
                completion_tokens=completion,
                total_tokens=total,
            )
        )
    return found


def _day(number: float) -> str:
    return datetime.fromtimestamp(int(number) * 86_400, UTC).date().isoformat()


def old_query(before: float) -> Select[Any]:
    """Some of those that were completed before that time."""
    # They were created before it, too; that is what there is an index for.
    old = (requests.c.created_at < before, requests.c.completed_at < before)
    return select(requests.c.request_id).where(*old).order_by(requests.c.created_at).limit(_PRUNED_AT_ONCE)


def _prune(connection: Connection, before: float) -> int:
    gone = delete(requests).where(requests.c.request_id.in_(old_query(before)))
    return connection.execute(gone).rowcount
