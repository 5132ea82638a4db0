"""An OpenAI-compatible engine double: a real HTTP server whose behaviour is scripted and whose work is counted.

    async with FakeEngine(Script(tokens=16, interval_s=0.005)) as engine:
        ...                                             # talk to engine.url
        await engine.until(lambda stats: stats.aborted == 1)

`python -m headrace.testing.fake_engine --port 0` is the same engine as a process of its own.
"""

from __future__ import annotations

from headrace.testing.fake_engine.engine import FakeEngine
from headrace.testing.fake_engine.script import (
    Cut,
    ErrorEvent,
    Fault,
    Garbage,
    Hang,
    Refuse,
    Script,
    ToolCall,
)
from headrace.testing.fake_engine.stats import Received, Stats

__all__ = [
    "Cut",
    "ErrorEvent",
    "FakeEngine",
    "Fault",
    "Garbage",
    "Hang",
    "Received",
    "Refuse",
    "Script",
    "Stats",
    "ToolCall",
]
