"""`/admin/usage` and `/admin/recent`: what was asked for, by whom, and what became of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import to_builtins
from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.access import Principal
from headrace.gateway.administration import Page, answer, answer_csv, moment, query
from headrace.kernel.errors import InvalidRequest
from headrace.ports.records import Grouping, Records, Selection, UsageRow

_RECENT = ("limit", "after", "since", "until", "ended_since", "user", "key", "model", "node", "status")
_SUMS = ("requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens")
_STATUSES = ("completed", "cancelled", "failed", "refused")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class UsageRoutes:
    """Sums over the records of requests, and the newest of them."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def sums(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/usage?by=user,key,model,day&since=&until=&user=&key=&model=&format=json|csv"""
        asked = query(request, "by", "since", "until", "user", "key", "model", "format")
        by = _groupings(asked.get("by", Grouping.USER))
        form = asked.get("format", "json")
        if form not in ("json", "csv"):
            raise InvalidRequest("format is json or csv.", param="format")
        rows = await self._records.usage(by, _selection(asked))
        if form == "csv":
            return answer_csv(table(by, rows), "usage.csv")
        return answer({"object": "list", "by": by, "data": [_row(by, row) for row in rows]})

    async def recent(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/recent?limit=200&after=&since=&until=&ended_since=&user=&key=&model=&node=&status=: the newest first (C06)."""
        asked = query(request, *_RECENT)
        if asked.get("status", _STATUSES[0]) not in _STATUSES:
            raise InvalidRequest(f"status is one of {', '.join(_STATUSES)}.", param="status")
        page = Page.of(asked)
        records = await self._records.recent(page.limit + 1, _selection(asked), after=page.after)
        return page.answer(records, lambda record: record)


def table(by: Sequence[Grouping], rows: Sequence[UsageRow]) -> str:
    """*rows* as CSV. No cell is a formula to a program that opens it: names come from clients."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*by, *_SUMS])
    for row in rows:
        writer.writerow([*map(_safe, row.group), *(getattr(row, name) for name in _SUMS)])
    return text.getvalue()


def _safe(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) or cell.lstrip().startswith(_FORMULA) else cell


def _row(by: Sequence[Grouping], row: UsageRow) -> dict[str, Any]:
    sums: dict[str, Any] = to_builtins(row)
    del sums["group"]
    return dict(zip(by, row.group, strict=True)) | sums


def _groupings(text: str) -> list[Grouping]:
    names = [name.strip() for name in text.split(",")]
    known = {grouping.value: grouping for grouping in Grouping}
    if len(set(names)) != len(names) or not set(names) <= set(known):
        raise InvalidRequest(f"by is one or some of {', '.join(known)}, each once, with commas.", param="by")
    return [known[name] for name in names]


def _selection(asked: Mapping[str, str]) -> Selection:
    return Selection(
        user_id=asked.get("user", ""),
        key_id=asked.get("key", ""),
        model=asked.get("model", ""),
        node=asked.get("node", ""),
        status=asked.get("status", ""),
        since=moment("since", asked.get("since")),
        until=moment("until", asked.get("until")),
        ended_since=moment("ended_since", asked.get("ended_since")),
    )
