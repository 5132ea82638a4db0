"""The one thread that writes: what is queued is committed together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError

from headrace.adapters.storage.inbox import Inbox, Outcome, Unit, reason, unavailable

log = structlog.get_logger(__name__)

GROUP_ENTRIES = 512
GROUP_BYTES = 8 * 1024 * 1024
_OUR_FAULT = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
"""What the database says about a statement or its values; every other error is the database's own trouble."""


class _Broken(Exception):
    """The transaction as a whole failed, and nothing of it was kept."""


class _Overtaken(Exception):
    """Some units were given up while they were done; nothing was kept, and the others can be done again."""


class _Lost(Exception):
    """The connection is gone. `committing`: perhaps everything was kept, perhaps nothing."""

    def __init__(self, committing: bool) -> None:
        super().__init__()
        self.committing = committing


class Writer:
    """Takes units from *inbox* and commits as many at once as there are, in their order.

    Each unit runs in a savepoint of its own, so one that fails leaves no trace and the others stay. A unit is told its value
    only after the commit. A connection that is lost is made anew, and units are done again where nothing of them can have been
    kept, or where they are repeatable; until nobody waits for them any more.
    """

    def __init__(self, engine: Engine, inbox: Inbox, *, pauses_s: Sequence[float] = (0.05, 0.2, 0.5)) -> None:
        self._engine = engine
        self._inbox = inbox
        self._pauses_s = pauses_s
        self._losses = 0
        self._refusing = False
        self.groups = 0
        """Transactions that were committed."""

    def run(self) -> None:
        """Work until the inbox says to end. For a thread of its own."""
        while (unit := self._inbox.take()) is not None:
            self._work(self._group(unit))

    def _group(self, first: Unit) -> list[Unit]:
        group, size_bytes = [first], first.size_bytes
        while len(group) < GROUP_ENTRIES and size_bytes < GROUP_BYTES:
            unit = self._inbox.poll()
            if unit is None:
                break
            group.append(unit)
            size_bytes += unit.size_bytes
        return group

    def _work(self, units: list[Unit]) -> None:
        while units := self._without_given_up(units):
            try:
                outcomes = self._commit(units)
            except _Lost as lost:
                units = self._after_loss(units, lost)
            except _Overtaken:
                continue
            except _Broken as broken:
                self._after_refusal(units, broken)
                return
            except Exception as error:  # whatever it is, the thread lives on, and nobody waits in vain
                log.exception("writing failed in an unforeseen way", action="storage.failed")
                outcomes = [(unit, None, error) for unit in units]
                self._inbox.answer(outcomes)
                return
            else:
                self._succeeded()
                self._inbox.answer(outcomes)
                return

    def _succeeded(self) -> None:
        if self._losses or self._refusing:
            log.info("the database is written again", action="storage.recovered")
        self._losses, self._refusing = 0, False

    def _without_given_up(self, units: list[Unit]) -> list[Unit]:
        gone = [unit for unit in units if unit.given_up]
        if gone:
            self._inbox.answer([(unit, None, None) for unit in gone])
        return [unit for unit in units if not unit.given_up]

    def _after_loss(self, units: list[Unit], lost: _Lost) -> list[Unit]:
        """What is to be done again, after a moment."""
        if self._losses == 0:
            log.warning("the database can't be reached", action="storage.lost", reason=reason(lost.__cause__))
        left = [unit for unit in units if lost.committing and not unit.repeatable]
        self._inbox.answer(
            [
                (unit, None, unavailable("was lost while it wrote: nobody knows whether it did"))
                for unit in left
            ]
        )
        time.sleep(self._pauses_s[min(self._losses, len(self._pauses_s) - 1)])
        self._losses += 1
        return [unit for unit in units if unit.repeatable or not lost.committing]

    def _after_refusal(self, units: list[Unit], broken: _Broken) -> None:
        if len(units) > 1:  # perhaps it is one of them only
            for unit in units:
                self._work([unit])
            return
        if not self._refusing:
            log.error(
                "the database refuses to write", action="storage.refused", reason=reason(broken.__cause__)
            )
        self._refusing = True
        self._engine.dispose()  # another server may have become the one that writes
        self._inbox.answer([(units[0], None, unavailable("refuses to write", broken))])

    def _commit(self, units: list[Unit]) -> list[Outcome]:
        """Do all *units* in one transaction.

        Raises:
            _Lost, _Broken, _Overtaken: no unit has an outcome yet.
        """
        try:
            connection = self._engine.connect()
        except DBAPIError as error:
            raise _Lost(committing=False) from error
        committing = False
        try:
            with connection:
                transaction = connection.begin()
                alone = len(units) == 1
                outcomes = [self._do(connection, unit, alone) for unit in units]
                if any(unit.given_up for unit in units):
                    raise _Overtaken  # they were told that nothing was kept
                committing = True
                if transaction.is_active:  # not so where the only unit failed
                    transaction.commit()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _Lost(committing) from error
            raise _Broken from error
        self.groups += 1
        return outcomes

    def _do(self, connection: Connection, unit: Unit, alone: bool) -> Outcome:
        savepoint = None if alone else connection.begin_nested()
        value: Any = None
        try:
            value = unit.work(connection)
            if savepoint is not None:
                savepoint.commit()
        except DBAPIError as error:
            if not isinstance(error, _OUR_FAULT):
                raise
            failure: Exception = error
        except Exception as error:  # noqa: BLE001 - a bug in one unit must not take the others with it: it hears of it
            failure = error
        else:
            return unit, value, None
        if savepoint is not None:
            savepoint.rollback()
        else:
            connection.rollback()
        return unit, None, failure
