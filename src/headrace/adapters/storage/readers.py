"""The threads that read."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from headrace.adapters.storage.inbox import Inbox, Outcome, Unit, reason, unavailable

log = structlog.get_logger(__name__)


class Reader:
    """Works through *inbox*, each unit in a transaction of its own that changes nothing."""

    def __init__(self, engine: Engine, inbox: Inbox) -> None:
        self._engine = engine
        self._inbox = inbox
        self._failing = False  # told once, not for each query

    def run(self) -> None:
        """Work until the inbox says to end. For a thread of its own; several may share one reader."""
        while (unit := self._inbox.take()) is not None:
            self._inbox.answer([self._read(unit)])

    def _read(self, unit: Unit) -> Outcome:
        if unit.given_up:
            return unit, None, None
        try:
            value = self._again_if_lost(unit)
        except (DBAPIError, PoolTimeout) as error:
            if not self._failing:
                log.warning("the database can't be read", action="storage.unread", reason=reason(error))
            self._failing = True
            return unit, None, unavailable("can't be read", error)
        except Exception as error:  # noqa: BLE001 - a bug in one query must not end the thread: who asked hears of it
            return unit, None, error
        self._failing = False
        return unit, value, None

    def _again_if_lost(self, unit: Unit) -> object:
        """An old connection may have died while nobody used it; a new one may do."""
        try:
            return self._run(unit)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return self._run(unit)

    def _run(self, unit: Unit) -> object:
        with self._engine.connect() as connection, connection.begin():
            return unit.work(connection)
