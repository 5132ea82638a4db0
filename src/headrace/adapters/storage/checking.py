"""Looking at a database that may be in use: its schema, its structure, whether the quota adds up and routes can be read."""

from __future__ import annotations

import time

import msgspec
from sqlalchemy import Connection, and_, func, select
from sqlalchemy.exc import DBAPIError

from headrace.adapters.storage.backend import Backend
from headrace.adapters.storage.inbox import reason
from headrace.adapters.storage.routes import unreadable_routes
from headrace.adapters.storage.schema import journal, windows
from headrace.adapters.storage.schema_version import Migrations, unusable

_MOST_TOLD = 20
_LIMIT_S = 600.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. schema: the database's, None where it has none yet. problems: a sentence each; empty: all is well."""

    database: str
    schema: str | None = None
    newest: str
    problems: tuple[str, ...] = ()


def check(backend: Backend, migrations: Migrations, now: float | None = None) -> Report:
    """Look at everything, change nothing. Blocks, for as long as the database is large. Never raises for the database."""
    report = Report(database=backend.shown, newest=migrations.newest)
    if backend.file is not None and not backend.file.exists():
        return msgspec.structs.replace(
            report, problems=("There is no database yet: the first start makes it.",)
        )
    engine = backend.engine(connections=1, writes=False, limit_s=_LIMIT_S)
    try:
        with engine.connect() as connection, connection.begin():
            current = migrations.current(connection)
            problems = backend.examine(connection)
            if current == migrations.newest:
                problems += _sums(connection, time.time() if now is None else now)
                problems += unreadable_routes(connection)[:_MOST_TOLD]
            else:
                problems.append(_other_schema(current, migrations))
    except DBAPIError as error:
        return msgspec.structs.replace(
            report,
            problems=(unusable(backend, error),)
            if backend.file
            else (f"It can't be asked: {reason(error)}.",),
        )
    finally:
        engine.dispose()
    return msgspec.structs.replace(report, schema=current, problems=tuple(problems))


def _other_schema(current: str | None, migrations: Migrations) -> str:
    if current is None or migrations.knows(current):
        return f"Its schema is {current or 'empty'}; 'headrace db upgrade' or the next start brings it to {migrations.newest}."
    return f"Its schema is {current}: a newer Headrace has used it, and this one can't."


def _sums(connection: Connection, now: float) -> list[str]:
    """Windows whose settled sum isn't that of their entries, those that were folded included. Those that ended may be half forgotten already."""
    amount = func.coalesce(func.sum(journal.c.amount), 0)
    same = and_(
        *(windows.c[name] == journal.c[name] for name in ("subject", "measure", "period", "starts_at"))
    )
    query = (
        select(
            windows.c.subject,
            windows.c.measure,
            windows.c.period,
            windows.c.starts_at,
            windows.c.settled,
            windows.c.folded + amount,
        )
        .outerjoin_from(windows, journal, same)
        .where((windows.c.ends_at == 0) | (windows.c.ends_at > now))
        .group_by(*windows.primary_key, windows.c.settled, windows.c.folded)
        .having(windows.c.settled != windows.c.folded + amount)
        .limit(_MOST_TOLD)
    )
    return [
        f"The quota of {row.subject} ({row.measure} in the {row.period} from {row.starts_at}) says {row.settled} settled, its "
        f"journal adds up to {row[-1]}."
        for row in connection.execute(query)
    ]
