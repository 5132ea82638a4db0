"""Records of requests in memory, for tests of what writes or reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import ALL, LONGEST_S, Grouping, Records, RequestRecord, Selection, UsageRow

_EQUAL = ("user_id", "key_id", "model", "node", "status")


class MemoryRecords(Records):
    """Keeps records for as long as this object lives, the first *most* of them; there is no buffer before it.

    While `failing`, what reads raises `Unavailable`, and what is added is dropped.
    """

    def __init__(self, most: int = 10_000) -> None:
        self.dropped = 0
        self.failing = False
        self._most = most
        self._records: dict[str, RequestRecord] = {}

    def add(self, record: RequestRecord) -> None:
        """Keep *record*; one whose id is known already changes nothing."""
        if self.failing or len(self._records) >= self._most:
            self.dropped += 1
            return
        self._records.setdefault(record.request_id, record)

    async def recent(self, limit: int, selection: Selection = ALL, *, after: str = "") -> list[RequestRecord]:
        """The newest first."""
        found = self._found(selection)
        if after:
            if after not in self._records:
                raise InvalidRequest(f"There is no record {after!r}.", param="after")
            found = [record for record in found if _place(record) < _place(self._records[after])]
        return sorted(found, key=_place, reverse=True)[:limit]

    async def usage(self, by: Sequence[Grouping], selection: Selection = ALL) -> list[UsageRow]:
        """Sums, by group, in the order of the groups."""
        groups: dict[tuple[str, ...], list[RequestRecord]] = {}
        for record in self._found(selection):
            groups.setdefault(tuple(_value(record, grouping) for grouping in by), []).append(record)
        return [_row(group, groups[group]) for group in sorted(groups)]

    async def prune(self, before: float) -> int:
        """Delete what was completed before that time; how many."""
        kept = {name: record for name, record in self._records.items() if record.completed_at >= before}
        gone = len(self._records) - len(kept)
        self._records = kept
        return gone

    def _found(self, selection: Selection) -> list[RequestRecord]:
        if self.failing:
            raise Unavailable("The database can't be asked.")
        return [record for record in self._records.values() if _matches(record, selection)]


def _matches(record: RequestRecord, selection: Selection) -> bool:
    wanted = ((name, getattr(selection, name)) for name in _EQUAL)
    return (
        all(not value or getattr(record, name) == value for name, value in wanted)
        and (selection.since is None or record.created_at >= selection.since)
        and (selection.until is None or record.created_at < selection.until)
        and (selection.ended_since is None or _ended_since(record, selection.ended_since))
    )


def _ended_since(record: RequestRecord, when: float) -> bool:
    return record.completed_at >= when and record.created_at >= when - LONGEST_S


def _place(record: RequestRecord) -> tuple[float, str]:
    return record.created_at, record.request_id


def _value(record: RequestRecord, grouping: Grouping) -> str:
    match grouping:
        case Grouping.USER:
            return record.user_id
        case Grouping.KEY:
            return record.key_id
        case Grouping.MODEL:
            return record.model
        case Grouping.DAY:
            return datetime.fromtimestamp(record.created_at, UTC).date().isoformat()


def _row(group: tuple[str, ...], records: Sequence[RequestRecord]) -> UsageRow:
    return UsageRow(
        group=group,
        requests=len(records),
        failed=sum(record.status == "failed" for record in records),
        prompt_tokens=sum(record.prompt_tokens for record in records),
        completion_tokens=sum(record.completion_tokens for record in records),
        total_tokens=sum(record.total_tokens for record in records),
    )
