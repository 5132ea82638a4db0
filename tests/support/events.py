"""Security events, kept instead of written to the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from headrace.gateway.security import SecurityEvents


class KeptEvents(SecurityEvents):
    """Events as the log would have them, in `written`: the message as `event`, and the fields."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.written: list[dict[str, Any]] = []
        super().__init__(now, lambda event, **fields: self.written.append({"event": event, **fields}))

    @property
    def actions(self) -> list[str]:
        """What was written, without the rest."""
        return [fields["action"] for fields in self.written]
