"""The control plane of one process: admission, the one queue, slots, and the count of what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

import msgspec

from headrace.control import refusals, retries
from headrace.control.destinations import Demand, Destinations, NoRoutes, RouteFinder
from headrace.control.filling import Filler
from headrace.control.health import Health
from headrace.control.lookout import Lookout
from headrace.control.placement import Place, Placement
from headrace.control.queueing import Call, WaitingRoom
from headrace.control.recording import Recorder
from headrace.control.registry import Registry
from headrace.control.strategies import Load
from headrace.control.totals import Totals
from headrace.domain.inference import Priority
from headrace.kernel.clock import Clock
from headrace.kernel.errors import RequestError, code_of
from headrace.ports.connector import Busy, Failure, Loading, Lost, NotSent
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome, Overdrawn, Placing, Waiting

BUSY_PAUSE_S = 1.0
"""How long a backend that is busy is left alone by the request it refused, where it named no time itself."""
_COMPLETED = Ending.COMPLETED


class LocalControlPlane(Placing):
    """Grants places on the backends that routes name, or that hold the model; who finds none free is served by fair shares.

    The queue holds at most *queue_size* requests, each for at most *queue_wait_s* seconds. `on_unreachable` is told the id
    of a node that couldn't be connected to.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        queue_size: int = 1024,
        queue_wait_s: float = 60.0,
        recorder: Recorder | None = None,
        routes: RouteFinder | None = None,
    ) -> None:
        self._recorder = recorder
        self._registry = registry
        self._clock = clock
        self._room = WaitingRoom(clock, self._expired, size=queue_size, wait_s=queue_wait_s)
        self._queue = self._room.queue
        self._running: dict[str, Call] = {}
        self.retry_budget = retries.RetryBudget(clock.monotonic())
        self.totals = Totals()
        self.on_unreachable: Callable[[str, str], None] = lambda _node_id, _reason: None
        self.destinations = Destinations(registry, routes or NoRoutes(), queue_size=queue_size)
        self.placement = Placement(self.destinations, Load())
        self._filler = Filler(
            registry, self._room, self.placement, self.destinations, self._grant, self._resume
        )
        self.health = Health(registry, clock, self._slots_changed, self.busy)
        self.lookout = Lookout(clock, self._room, self.destinations, self.placement, self.health)
        registry.on_change(self._node_changed)
        (routes or NoRoutes()).on_change(self._routes_changed)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.depth

    @property
    def waiting_by_class(self) -> dict[Priority, int]:
        """Requests in the queue, for each class."""
        return self._room.waiting()

    @property
    def oldest_wait_s(self) -> float:
        """How long the one in the queue waits that has waited longest; 0 when the queue is empty."""
        return self._room.oldest_age_s()

    @property
    def shares_remembered(self) -> int:
        """Keys for which the queue remembers what they were granted."""
        return self._queue.remembered

    @property
    def running(self) -> int:
        """Grants that aren't finished."""
        return len(self._running)

    @property
    def resting(self) -> Collection[str]:
        """Nodes that said they are full, and that others who wait aren't sent to for a while."""
        return self._filler.resting.keys()

    def busy(self, node_id: str) -> int:
        """Requests that the node runs now."""
        return self.placement.load.busy.get(node_id, 0)

    def resolved(self, ask: Ask) -> Ask:
        """See the port."""
        model, tags = self.destinations.resolved(ask.model, ask.tags, ask.operation.api)
        return msgspec.structs.replace(ask, model=model, tags=tags)

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """Grant at once where a slot is free and nobody is before it; else queue, or refuse."""
        self.retry_budget.request()
        demand = self.destinations.of(ask.model, ask.tags, ask.operation.api)
        call = Call(ask, told, self, demand.name)
        if (self._queue.depth and self._queue.awaits(demand.name)) or (
            place := self.placement.find(demand, ask)
        ) is None:  # what is free all the same is promised, or rests
            self._wait(call, demand)
        else:
            self._grant(call, demand, place)
        return call

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """Another place for a request whose execution came to nothing, where that is free of risk (decision 5).

        It is granted before those who wait, and not charged again.
        """
        call = self._running.pop(grant.ask.request_id, None)
        if call is None:
            return Call(grant.ask, told, self)
        call.told = told
        self._release(grant)
        if isinstance(failure, NotSent | Busy | Overdrawn):
            call.executions -= 1
        if isinstance(failure, Overdrawn):
            self.health.let_go(grant)
            self._overdrawn(grant, failure)
        else:
            self._noticed(grant, failure)
            if isinstance(failure, Busy):
                self._leave_alone(call, grant, failure)
            else:
                call.failed_on |= {grant.target}
                call.failures += 1
        self._again(call, grant, failure)
        if self._queue.depth and not isinstance(failure, Busy):
            self._filler.fill(grant.target)
        return call

    def answering(self, grant: Grant) -> None:
        """See the port: the model is loaded there, and those may come who wait for that."""
        self.placement.warmth.warmed(grant.target, grant.model)
        self.health.answering(grant)
        self._filler.fill(grant.target)

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """Count it, free the slot, and let the next one in."""
        if self._running.pop(grant.ask.request_id, None) is None:
            return
        totals = self.totals
        totals.prompt_tokens += outcome.usage.prompt_tokens
        totals.completion_tokens += outcome.usage.completion_tokens
        totals.requests[outcome.ending] += 1
        if self._recorder is not None:
            self._recorder.finished(grant, outcome)
        self._release(grant)
        if outcome.failure is not None:
            self._noticed(grant, outcome.failure)
        elif outcome.ending is _COMPLETED:
            self._went_well(grant, outcome)
        else:
            self.health.let_go(grant)
        if self._queue.depth:
            self._filler.fill(grant.target)

    def withdraw(self, call: Call) -> None:
        """Take *call* out of the queue; nothing happens when it isn't in it."""
        if self._room.leave(call) or call.end_pause():
            self.totals.withdrawn += 1
            self.totals.requests[Ending.CANCELLED] += 1
            if self._recorder is not None:
                self._recorder.withdrawn(call.ask, call.executions)

    def explain(self, model: str, tags: tuple[str, ...]) -> dict[str, object]:
        """Where a request for *model* with *tags* would go now."""
        model, tags, demand = self.destinations.by_any(model, tags)
        return {"model": model, "tags": list(tags), "targets": self.placement.explain(demand)}

    def _again(self, call: Call, grant: Grant, failure: Failure) -> None:
        """Try *call* again, after a break where it was executed; or refuse it."""
        demand = self.destinations.of(grant.ask.model, grant.ask.tags, grant.ask.operation.api)
        refusal = self._pointless(demand, grant.ask) or self._no_more(call, demand, grant, failure)
        if refusal is not None:
            self._refuse(call, refusal)
            return
        self.totals.retries[type(failure).__name__] += 1
        if grant.ask.deadline_s is not None:  # who didn't wait was first granted when it asked
            call.due = min(call.due, grant.granted_at + grant.ask.deadline_s)
        if isinstance(failure, Lost):
            pause_s = retries.backoff(call.failures, random.random)
            call.pause = self._clock.call_later(pause_s, lambda: self._resume(call))
        else:
            self._resume(call)

    def _resume(self, call: Call) -> None:
        """Grant *call* another place, or let it wait at the front."""
        call.pause = None
        ask = call.ask
        demand = self.destinations.of(ask.model, ask.tags, ask.operation.api)
        refusal = self._pointless(demand, ask)
        now = self._clock.monotonic()
        if refusal is not None:
            self._refuse(call, refusal)
        elif now >= call.due:
            self._expired(call)
        elif (place := self.placement.find(demand, ask, call.avoid(now))) is not None:
            self._grant(call, demand, place)
        else:
            call.demand = demand.name
            self.lookout.awaited(demand)
            self._room.come_back(call)
            self.totals.queued += 1

    def _wait(self, call: Call, demand: Demand) -> None:
        """Let *call* wait, and tell the one that goes for it; refuse it where waiting is pointless."""
        ask = call.ask
        refusal = self._pointless(demand, ask)
        if refusal is not None:
            self._refuse(call, refusal)
            return
        if ask.deadline_s is not None:
            call.due = self._clock.monotonic() + ask.deadline_s
        if not self._room.has_time(call):
            self._expired(call)
            return
        self.lookout.awaited(demand)
        gone = self._room.enter(call)
        if gone is not call:
            self.totals.queued += 1
        if gone is not None:
            self._refuse(gone, refusals.queue_full(self._room.drained_in(), pushed_out=gone is not call))

    def _pointless(self, demand: Demand, ask: Ask) -> RequestError | None:
        """Why nobody will have a place for *ask*; None where somebody may. Names are told only to those who may use them."""
        if demand.known:
            return refusals.hopeless(demand, ask.model, self._clock.now())
        if self.destinations.known_otherwise(ask.model, ask.tags, ask.operation.api):
            return refusals.unsupported(ask.model, ask.operation)
        names = [info.id for info in self._registry.models() if ask.principal.may_use(info.id)]
        return refusals.unknown(ask.model, ask.tags, self._registry.nodes(), names)

    def _no_more(self, call: Call, demand: Demand, grant: Grant, failure: Failure) -> RequestError | None:
        """Why the request isn't tried again after *failure*; None when it is."""
        if isinstance(failure, Busy | Overdrawn):
            return None
        reruns = demand.route is not None and demand.route.reruns
        if (
            not retries.may_rerun(failure, reruns=reruns)
            or call.failures >= retries.MOST_ATTEMPTS
            or all(node.id in call.failed_on for node in demand.waits_for)
            or not self.retry_budget.try_spend(self._clock.monotonic())
        ):
            return refusals.given_up(grant.target, failure)
        return None

    def _grant(self, call: Call, demand: Demand, place: Place) -> None:
        """Give *call* the slot, and tell it."""
        ask, node, stage = call.ask, place.node, place.stage
        load, warmth = self.placement.load, self.placement.warmth
        load.take(node.id)
        loads = warmth.matters(node) and warmth.begin(node, stage.model, ask.request_id)
        self.totals.executions += 1
        call.attempts += 1
        call.executions += 1
        self._running[ask.request_id] = call
        grant = Grant(
            ask,
            node.id,
            stage.model,
            call.executions,
            self._clock.monotonic(),
            call.position,
            call.waited_s,
            attempts=call.attempts,
            allowance=stage.allowance,
            watched=loads or load.slots[node.id] < node.capacity,
            timeouts=demand.timeouts(node) if demand.limits_time else None,
        )
        call.told.granted(grant)

    def _expired(self, call: Call) -> None:
        ask = call.ask
        refusal = refusals.waited_too_long(
            self.destinations.of(ask.model, ask.tags, ask.operation.api),
            ask.model,
            call.waited_s,
            self._room.drained_in(),
            own_deadline=self._clock.monotonic() >= call.due,
        )
        self._refuse(call, refusal)

    def _refuse(self, call: Call, refusal: RequestError) -> None:
        self.totals.requests[Ending.FAILED] += 1
        self.totals.refusals[code_of(refusal)] += 1
        if self._recorder is not None:
            self._recorder.refused(call.ask, refusal, call.executions)
        call.told.refused(refusal)

    def _leave_alone(self, call: Call, grant: Grant, busy: Busy) -> None:
        """Don't send *call* to a node that refused it, for a while: a node's word that it is full may be news to us.

        As long, others who wait go there one by one, as requests end there: else the whole queue would be sent, and sent back.
        Nobody goes there for a model that it is loading.
        """
        node_id, model = grant.target, grant.model
        pause_s = min(busy.retry_after_s or BUSY_PAUSE_S, max(BUSY_PAUSE_S, self._room.wait_s))
        until = self._clock.monotonic() + pause_s
        if isinstance(busy, Loading):
            self.placement.warmth.loading(node_id, model)
        else:
            self._filler.resting[node_id] = max(until, self._filler.resting.get(node_id, until))
            call.busy_until = {**(call.busy_until or {}), node_id: until}
        self._clock.call_later(pause_s, lambda: self._pause_over(call, node_id, model))

    def _pause_over(self, call: Call, node_id: str, model: str) -> None:
        self.placement.warmth.look_again(node_id, model)
        if self._clock.monotonic() >= self._filler.resting.get(node_id, 0.0):
            self._filler.resting.pop(node_id, None)
        self._room.look_again(call)
        self._filler.fill(node_id)

    def _overdrawn(self, grant: Grant, failure: Overdrawn) -> None:
        """The route's target has used up what it may use; its fallbacks are open until that is renewed."""
        allowance = grant.allowance
        if allowance is None:
            return
        self.placement.spend(allowance)

        def renewed() -> None:
            self.placement.renew(allowance)
            self._filler.fill(grant.target)

        self._clock.call_later(failure.renewed_in_s, renewed)
        self._filler.fill_awaited()

    def _noticed(self, grant: Grant, failure: Failure) -> None:
        """The backend did something wrong, or was busy."""
        self.health.failed(grant, failure)
        if isinstance(failure, NotSent) and not failure.refused_key:
            self.on_unreachable(grant.target, failure.reason)

    def _went_well(self, grant: Grant, outcome: Outcome) -> None:
        """The backend gave a whole answer; how fast, where it was streamed."""
        first_at = outcome.first_token_at
        if first_at is not None:
            further = outcome.usage.completion_tokens - 1
            between_s = (self._clock.monotonic() - first_at) / further if further > 0 else None
            self.placement.load.observe(grant.target, grant.model, first_at - grant.granted_at, between_s)
        self.health.succeeded(grant)

    def _slots_changed(self, node_id: str, slots: int) -> None:
        """The node may run more or fewer than before; where it is out of work, its fallbacks are open."""
        load = self.placement.load
        before = load.slots.get(node_id, 0)
        load.allow(node_id, slots)
        if not slots or not before:
            self.placement.changed()
        if slots > before:
            self._filler.fill(node_id)
        elif not slots:
            self._filler.fill_awaited()

    def _release(self, grant: Grant) -> None:
        self.placement.load.give_back(grant.target)
        if grant.watched:  # perhaps because it loads
            self.placement.warmth.ended(grant.target, grant.model, grant.ask.request_id)

    def _routes_changed(self) -> None:
        self.destinations.forget_routes()
        self._sort_out()

    def _node_changed(self, node_id: str) -> None:
        node = self._registry.get(node_id)
        self._filler.resting.pop(node_id, None)  # what it said, it said before
        self.placement.warmth.reported(node_id, node)
        self.destinations.forget()
        if node is None:
            self.placement.load.forget(node_id)
        self._sort_out()
        self._filler.fill(node_id)

    def _sort_out(self) -> None:
        """Tell those whose waiting became pointless; those who wait now ask for something else wait anew."""
        self.placement.changed()
        for name in self._queue.models():
            for ticket in self._queue.waiting_for(name):
                call = ticket.call
                demand = self.destinations.of(call.ask.model, call.ask.tags, call.ask.operation.api)
                if demand.name == name and self._pointless(demand, call.ask) is None:
                    break  # all of that name ask for the same
                self._room.leave(call)
                self._resume(call)  # which refuses it where that is the end of it
        self._filler.fill_awaited()
