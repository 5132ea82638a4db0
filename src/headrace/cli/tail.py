"""Following what a gateway records, without missing any of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from headrace.cli.office import PAGE

Record = dict[str, Any]
AGAIN_S = 10.0
"""How far back each look goes behind the newest end that was seen: several gateways write to one database, none of them at once."""
MOST_PAGES = 50


class Tail:
    """The records of requests in the order of their ends, each once. *ask*: a page of the newest, as `/admin/recent` answers.

    Of what ended since the last look, all is shown, or the newest `MOST_PAGES` pages of it: then `cut_short` is true.
    """

    def __init__(self, ask: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask
        self._seen: dict[str, float] = {}  # when they ended, of those that may come again
        self._first = 0.0
        self._newest = 0.0
        self.cut_short = False

    @property
    def remembered(self) -> int:
        """Records that are known to have been shown, so that they aren't again."""
        return len(self._seen)

    async def begin(self, limit: int) -> list[Record]:
        """The last *limit* of those that there are, the newest last."""
        records = (await self._ask({"limit": PAGE}))["data"]
        self._remember(records)
        self._first = self._newest
        return list(records[:limit][::-1])

    async def news(self) -> list[Record]:
        """Those that ended since, the last one last."""
        query: dict[str, Any] = {"limit": PAGE}
        if self._newest:
            query["ended_since"] = max(self._first, self._newest - AGAIN_S)
        fresh: list[Record] = []
        for _ in range(MOST_PAGES):
            page = await self._ask(query)
            fresh += [record for record in page["data"] if record["request_id"] not in self._seen]
            self.cut_short = page["has_more"]
            if not page["has_more"]:
                break
            query["after"] = page["data"][-1]["request_id"]
        self._remember(fresh)
        return sorted(fresh, key=lambda record: (record["completed_at"], record["request_id"]))

    def _remember(self, records: list[Record]) -> None:
        self._seen |= {record["request_id"]: record["completed_at"] for record in records}
        self._newest = max(self._seen.values(), default=0.0)
        again = self._newest - AGAIN_S
        self._seen = {name: ended for name, ended in self._seen.items() if ended >= again}
