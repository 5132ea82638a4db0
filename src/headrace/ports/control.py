"""The seam between deciding and moving bytes: the control plane grants, the stream plane carries out.

All calls return at once, whether the control plane is in this process or behind a socket. What is passed is made once or more
for each request, as structs of msgspec, which cost far less to make than frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from headrace.domain.access import Principal
from headrace.domain.inference import Operation, Priority, Timeouts, Usage
from headrace.domain.quota import Window
from headrace.kernel.budget import Budget
from headrace.kernel.errors import RequestError
from headrace.ports.connector import Failure


class Ask(msgspec.Struct, frozen=True):
    """A request for a place. `estimated_tokens`: prompt, and the most that may be produced.

    deadline_s: how long after it was asked its last execution may begin; None: no time of its own.
    asked_at: when the request was complete, on the asking process's monotonic clock. client: its address. streamed: whether it
    asks for a stream. tags: those that its backend must have. session: what its conversation is known by; empty without.
    prefix: a hash of how its prompt begins.
    """

    request_id: str
    principal: Principal
    operation: Operation
    model: str
    estimated_tokens: int = 0
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    asked_at: float = 0.0
    client: str = ""
    streamed: bool = False
    tags: tuple[str, ...] = ()
    session: str = ""
    prefix: int = 0


class Grant(msgspec.Struct, frozen=True):
    """Permission to run one request once, on one node. Hold it until `ControlPlane.finish`.

    target: id of the node, for which the stream plane has a connector.
    model: the name under which that node knows the model.
    executions: how many times it is executed, if this one is: those that are known not to have begun aren't counted.
    attempts: how many times the request was granted so far, this time included.
    granted_at: when, on the granting process's monotonic clock.
    position: about how many grants it was away from this one when it began to wait; 0: it didn't wait.
    waited_s: how long it has waited for a place, all in all.
    budgets: how the limits stand that it was held to, of each measure the nearest to its end; none where there are none.
    allowance: a window of the route's that it is charged to as well, with what the request uses.
    timeouts: how long the backend may take; None: as its connector says. watched: others
    wait for what becomes of it, since the model is loaded for it, or the backend on trial: `ControlPlane.answering` is to be told.
    """

    ask: Ask
    target: str
    model: str
    executions: int = 1
    granted_at: float = 0.0
    position: int = 0
    waited_s: float = 0.0
    budgets: tuple[Budget, ...] = ()
    attempts: int = 1
    allowance: Window | None = None
    timeouts: Timeouts | None = None
    watched: bool = False


class Ending(StrEnum):
    """How a granted request ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"  # the client left
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """What became of a grant. `usage`: what is to be charged. error: the code of what the client was told, empty without.

    status: what the client was told, 0 where it left before. first_token_at: when the first of a stream came, on the monotonic
    clock; None where nothing did. failure: what the backend did wrong, where it did.
    """

    ending: Ending
    usage: Usage
    status: int = 200
    error: str = ""
    first_token_at: float | None = None
    failure: Failure | None = None


class Admission(Protocol):
    """The one who asked. Exactly one of the two is called, once, perhaps before `admit` returns."""

    def granted(self, grant: Grant) -> None:
        """Go ahead; whoever gets a grant owes a `finish` or a `retry`."""

    def refused(self, refusal: RequestError) -> None:
        """It won't be granted; nothing is held."""


class Waiting(Protocol):
    """The handle of one who waits for a place."""

    def withdraw(self) -> None:
        """Stop waiting: nothing is told afterwards, and a grant that crosses on the way is finished. Idempotent."""


class ControlPlane(Protocol):
    """Who may run what, where and when."""

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """Ask for a place; waits in the one queue, for a bounded time, when there is none."""

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """Give the grant's slot back because of *failure* and ask for another place; may queue again. The grant is
        spent: don't finish it. Refused when no further execution is allowed."""

    def answering(self, grant: Grant) -> None:
        """The answer of a grant that is `watched` begins."""

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """Settle and record the request and free its slot. Idempotent."""


class Placing(ControlPlane, Protocol):
    """A control plane that others stand around."""

    def resolved(self, ask: Ask) -> Ask:
        """*ask* as the fleet understands it: tags that stand behind its model's name are among its tags."""


@dataclass(frozen=True, slots=True)
class Overdrawn(Failure):
    """The route's allowance is used up, so that the grant can't be used. `renewed_in_s`: when there is some again."""

    renewed_in_s: float = 0.0
