"""How one of several backends is chosen: strategies, and what they look at. No input, no output, no clock.

Which backends have a free slot is kept as a set of bits, maintained where a slot is taken or given back. So no choice looks through
all backends, however many of them are full.
"""

from __future__ import annotations

from headrace.control.strategies.candidates import Candidates
from headrace.control.strategies.choice import Cursor, Wish, choose
from headrace.control.strategies.load import Load, Pace

__all__ = ["Candidates", "Cursor", "Load", "Pace", "Wish", "choose"]
