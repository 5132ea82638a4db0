"""What the control plane counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from headrace.ports.control import Ending


@dataclass(slots=True)
class Totals:
    """What was settled since the start. `refusals`: requests that got no place, or no further one, by the error's code.

    executions: grants, whether or not the backend began. retries: those that came to nothing and were tried again, by what had
    gone wrong.
    """

    requests: Counter[Ending] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    executions: int = 0
    queued: int = 0
    withdrawn: int = 0
