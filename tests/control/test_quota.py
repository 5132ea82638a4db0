"""What the limits of a key mean for its requests, over the real ledger in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.adapters.ledger.memory import MemoryLedger
from headrace.control.plane import LocalControlPlane
from headrace.control.quota import QuotaPlane
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation, Usage
from headrace.domain.quota import Limits, entry_and_tokens
from headrace.kernel.errors import Forbidden, LimitExceeded, ModelNotFound, RequestError
from headrace.ports.connector import Lost, NotSent
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome, Waiting
from headrace.ports.ledger import Verdict
from headrace.testing.clock import ManualClock
from headrace.testing.journal import MemoryJournal


class Asker(Admission):
    """One who asks, and remembers what it was told, which is one thing."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self.refusal: RequestError | None = None

    def granted(self, grant: Grant) -> None:
        assert self.refusal is None
        self.grant = grant

    def refused(self, refusal: RequestError) -> None:
        assert self.refusal is None
        self.refusal = refusal

    @property
    def code(self) -> str:
        assert isinstance(self.refusal, LimitExceeded), self.refusal
        return self.refusal.code or ""


def principal(limits: Limits, models: tuple[str, ...] = ()) -> Principal:
    entry, tokens = entry_and_tokens(limits.windows("key:k"))
    return Principal(
        "k",
        models=models,
        entry=entry,
        tokens=tokens,
    )


class House:
    """A metered plane over one node."""

    def __init__(self, ledger: MemoryLedger, clock: ManualClock, capacity: int) -> None:
        self.registry = Registry()
        self.placing = LocalControlPlane(self.registry, clock, queue_size=1000, queue_wait_s=10)
        self.plane = QuotaPlane(self.placing, ledger, clock)
        self.ledger = ledger
        self.clock = clock
        self.asked = 0
        self.put("a", capacity)

    def put(self, name: str, capacity: int) -> None:
        self.registry.upsert(
            Node(name, "direct", (ModelInfo("m"),), capacity=capacity, state=NodeState.READY)
        )

    def ask(self, who: Principal, tokens: int = 10, model: str = "m") -> tuple[Asker, Waiting]:
        self.asked += 1
        asker = Asker()
        ask = Ask(f"r{self.asked}", who, Operation.CHAT, model, estimated_tokens=tokens)
        return asker, self.plane.admit(ask, asker)

    def finish(self, asker: Asker, tokens: int = 3, ending: Ending = Ending.COMPLETED) -> None:
        assert asker.grant is not None
        self.plane.finish(asker.grant, Outcome(ending, Usage(0, tokens)))

    def used(self, who: Principal) -> list[int]:
        told: list[Verdict] = []
        self.ledger.peek(who.entry + who.tokens, told.append)
        [verdict] = told
        return [standing.used for standing in verdict.standings]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    clock = ManualClock()
    ledger = MemoryLedger(MemoryJournal(), clock)
    await ledger.open()
    yield House(ledger, clock, capacity=1000)
    assert ledger.open_reservations == 0, "what was reserved was settled or given back"
    await ledger.close()


async def settled() -> None:
    """Let commits that were asked for be carried out."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.req("E03", "E07", "C09")
async def test_of_many_at_once_exactly_as_many_get_through_as_the_limit_says(house: House) -> None:
    who = principal(Limits(requests_per_minute=50))
    askers = [house.ask(who)[0] for _ in range(300)]
    await settled()
    granted = [asker for asker in askers if asker.grant]
    assert len(granted) == 50
    assert {asker.code for asker in askers if not asker.grant} == {"rate_limit_exceeded"}
    assert house.plane.refusals == {"rate_limit_exceeded": 250}
    for asker in granted:
        house.finish(asker)
    assert house.used(who) == [50]
    house.clock.advance(60)
    asker, _ = house.ask(who)
    await settled()
    assert asker.grant
    house.finish(asker)


async def test_who_has_no_limits_is_not_held_up(house: House) -> None:
    asker, _ = house.ask(Principal("p"))
    assert asker.grant
    assert asker.grant.budgets == ()
    house.finish(asker)


@pytest.mark.req("E03", "E15")
async def test_tokens_are_reserved_as_estimated_and_charged_as_used(house: House) -> None:
    who = principal(Limits(tokens_per_day=100))
    first, _ = house.ask(who, tokens=90)
    await settled()
    assert house.used(who) == [90]
    second, _ = house.ask(who, tokens=20)
    await settled()
    assert second.code == "insufficient_quota"
    assert house.placing.running == 1, "the slot of the one that was refused is free again"
    house.finish(first, tokens=30)
    assert house.used(who) == [30]
    third, _ = house.ask(who, tokens=20)
    await settled()
    assert third.grant
    assert [budget.remaining for budget in third.grant.budgets] == [50]
    house.finish(third, tokens=60)
    assert house.used(who) == [90], "more than was reserved is charged, too"


async def test_who_has_nothing_left_is_refused_before_it_waits(house: House) -> None:
    who = principal(Limits(tokens_per_minute=10))
    first, _ = house.ask(who, tokens=10)
    await settled()
    house.put("a", 1)
    second, _ = house.ask(who, tokens=1)
    await settled()
    assert second.code == "rate_limit_exceeded"
    assert house.placing.waiting == 0
    house.finish(first, tokens=10)


async def test_a_request_larger_than_the_limit_is_told_that_waiting_is_pointless(house: House) -> None:
    asker, _ = house.ask(principal(Limits(tokens_per_minute=10)), tokens=11)
    await settled()
    assert isinstance(asker.refusal, LimitExceeded)
    assert asker.refusal.retry_after_s is None


async def test_concurrency_comes_back_with_the_end_of_a_request(house: House) -> None:
    who = principal(Limits(concurrency=2))
    first, _ = house.ask(who)
    second, _ = house.ask(who)
    third, _ = house.ask(who)
    assert first.grant
    assert second.grant
    assert third.code == "rate_limit_exceeded"
    house.finish(first)
    fourth, _ = house.ask(who)
    assert fourth.grant
    for asker in (second, fourth):
        house.finish(asker)
    assert house.used(who) == [0]


async def test_leaving_the_queue_costs_nothing(house: House) -> None:
    house.put("a", 1)
    who = principal(Limits(requests_per_minute=5, tokens_per_minute=100))
    first, _ = house.ask(who)
    await settled()
    second, waiting = house.ask(who)
    await settled()
    assert house.placing.waiting == 1
    waiting.withdraw()
    waiting.withdraw()
    assert house.used(who) == [1, 10]
    house.finish(first)
    assert second.grant is None
    assert second.refusal is None


async def test_another_execution_is_not_another_request(house: House) -> None:
    house.put("b", 1000)
    who = principal(Limits(requests_per_minute=5, tokens_per_minute=100))
    asker, _ = house.ask(who)
    await settled()
    first = asker.grant
    assert first
    house.plane.retry(first, NotSent("refused"), asker)
    await settled()
    assert asker.grant is not first
    assert house.used(who) == [1, 10]
    house.finish(asker)
    assert house.used(who) == [1, 3]


async def test_a_request_that_failed_for_good_counts_but_its_tokens_do_not(house: House) -> None:
    who = principal(Limits(requests_per_minute=5, tokens_per_minute=100))
    asker, _ = house.ask(who)
    await settled()
    assert asker.grant
    house.plane.retry(asker.grant, Lost("it died"), asker)
    assert asker.refusal
    assert house.used(who) == [1, 0]


async def test_a_model_that_the_key_may_not_use_is_refused(house: House) -> None:
    asker, _ = house.ask(principal(Limits(), models=("llama-*",)), model="m")
    assert isinstance(asker.refusal, Forbidden)
    allowed, _ = house.ask(principal(Limits(), models=("llama-*", "m")))
    assert allowed.grant
    house.finish(allowed)


async def test_a_secret_model_does_not_exist_for_those_who_may_not_use_it(house: House) -> None:
    house.registry.upsert(
        Node(
            "b",
            "direct",
            (
                ModelInfo("llama-secret"),
                ModelInfo("llama-3"),
            ),
            capacity=1,
            state=NodeState.READY,
        )
    )
    secretive = QuotaPlane(house.placing, house.ledger, house.clock, secret_models=True)
    who = principal(Limits(), models=("llama-3*",))
    told = []
    for model in ("llama-secret", "llama-nowhere", "llama-3x"):
        asker = Asker()
        secretive.admit(Ask(f"s{model}", who, Operation.CHAT, model), asker)
        assert isinstance(asker.refusal, ModelNotFound)
        assert "secret" not in asker.refusal.message.replace(model, "")
        told.append(asker.refusal.message.replace(model, "M"))
    assert told[0] == told[1], "it looks like one that was never there"
    assert "llama-3" in told[2]


async def test_leaving_while_the_ledger_thinks_costs_nothing() -> None:
    clock, journal = ManualClock(), MemoryJournal()
    ledger = MemoryLedger(journal, clock)
    await ledger.open()
    house = House(ledger, clock, capacity=10)
    who = principal(Limits(tokens_per_day=1_000_000))
    journal.hold()
    asker, waiting = house.ask(who)
    assert asker.grant is None
    waiting.withdraw()
    journal.let_go()
    await settled()
    assert asker.grant is None
    assert house.placing.running == 0
    assert ledger.open_reservations == 0
    await ledger.close()
