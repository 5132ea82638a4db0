"""The scripts in Redis, where calls overtake each other: what an outage's retries can do to the order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from headrace.adapters.ledger.redis_calls import Calls, Spans
from headrace.adapters.ledger.redis_keys import Keys
from headrace.adapters.ledger.redis_scripts import PEEK, RELEASE, RESERVE, SETTLE, Script
from headrace.domain.quota import Measure
from headrace.ports.ledger import Charge
from support.ledger_contract import NOON, places, window
from support.servers.redis import RedisServer

DAILY, RUNNING = window(100), places(3)


class Scripts:
    """Each call is carried out when it is made."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._calls = Calls(Keys(), Spans(60_000, 60_000, 60_000))

    def _run(self, script: Script, keys: list[str], arguments: list[str | int]) -> str:
        answer = self._client.eval(script.text, len(keys), *keys, *arguments)
        assert isinstance(answer, bytes)
        return answer.decode()[0]

    def reserve(self, attempt: str, amount: int = 10, *, again: bool = False) -> str:
        charges = [Charge(DAILY, amount), Charge(RUNNING, 1)]
        return self._run(RESERVE, *self._calls.reserve("r1", attempt, charges, NOON, again=again))

    def release(self, attempt: str = "") -> str:
        return self._run(RELEASE, *self._calls.release("r1", attempt))

    def settle(self, tokens: int) -> str:
        return self._run(SETTLE, *self._calls.settle("r1", {Measure.TOKENS: tokens}))

    @property
    def used(self) -> list[int]:
        keys, arguments = self._calls.peek([DAILY, RUNNING], NOON)
        answer = self._client.eval(PEEK.text, len(keys), *keys, *arguments)
        assert isinstance(answer, bytes)
        return [standing.used for standing in self._calls.verdict(answer, [DAILY, RUNNING]).standings]


@pytest.fixture
def scripts(redis: RedisServer) -> Iterator[Scripts]:
    with Redis(port=redis.port) as client:
        yield Scripts(client)


def test_an_attempt_that_was_given_up_reserves_nothing_when_it_arrives_late(scripts: Scripts) -> None:
    scripts.release("a1")
    assert scripts.reserve("a1") == "u"
    assert scripts.used == [0, 0]


def test_an_attempt_that_was_carried_out_and_given_up_is_undone(scripts: Scripts) -> None:
    assert scripts.reserve("a1") == "g"
    scripts.release("a1")
    assert scripts.used == [0, 0]
    assert scripts.reserve("a1") == "u"


def test_giving_one_attempt_up_leaves_another_alone(scripts: Scripts) -> None:
    scripts.release("a1")
    assert scripts.reserve("a2") == "g"
    scripts.release("a1")
    assert scripts.reserve("a1") == "g", "as the second was"
    assert scripts.used == [10, 1]
    scripts.settle(4)
    scripts.release("a2")
    assert scripts.used == [4, 0]


def test_a_refusal_that_nobody_heard_of_is_forgotten(scripts: Scripts) -> None:
    assert scripts.reserve("a1", 101) == "r"
    assert scripts.reserve("a2", 10) == "r"
    scripts.release("a1")
    assert scripts.reserve("a2", 10) == "g"


def test_asking_anew_after_a_refusal_is_asking_once(scripts: Scripts) -> None:
    assert scripts.reserve("a1", 101) == "r"
    assert scripts.reserve("a2", 100, again=True) == "g"
    assert scripts.reserve("a2", 100, again=True) == "g"
    assert scripts.used == [100, 1]


def test_settling_and_releasing_in_any_order_count_once(scripts: Scripts) -> None:
    assert scripts.reserve("a1") == "g"
    for _ in range(2):
        scripts.settle(7)
        scripts.release()
    assert scripts.used == [7, 0]
    assert scripts.reserve("a2") == "c"
    scripts.release("a2")
    assert scripts.reserve("a3") == "c"
