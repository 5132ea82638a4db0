"""Floor 6: test doubles that ship, so that nobody has to patch: a clock moved by hand, an engine that does as scripted."""

from __future__ import annotations

from headrace.testing.clock import ManualClock
from headrace.testing.fake_engine import FakeEngine, Script

__all__ = ["FakeEngine", "ManualClock", "Script"]
