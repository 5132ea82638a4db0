"""The simulated fleet behaves as its description says, and the strategies keep their bars on it."""

from __future__ import annotations

from math import inf

import pytest
from bench.budget import choices, counting
from bench.budget.table import PAGE, shown_in
from bench.measurement import Measurement
from bench.report import as_json, as_text
from bench.simulation import Found, Machine, Request, Simulation, attainable_hits, mixed, with_prefixes
from bench.simulation_report import MIXED, UNFIT, Simulated, judged, simulate, simulation_text

from headrace.domain.routing import Strategy
from support.live import missing

ALONE = Machine(tokens_per_s=10.0, parallel=1, slots=1)


def run(machines: list[Machine], requests: list[Request]) -> Found:
    return Simulation(machines, Strategy.ROUND_ROBIN).run(requests)


def test_a_request_alone_takes_its_prompt_and_its_tokens() -> None:
    found = run([ALONE], [Request(at=5.0, prompt=180, answer=21)])
    assert found.waits_s == pytest.approx([1.0])  # 180 tokens read in the time of nine, and the first one
    assert found.answers_s == pytest.approx([3.0])


def test_who_finds_no_slot_waits_for_the_one_before() -> None:
    asked = [Request(0.0, 180, 21), Request(1.0, 180, 21), Request(1.5, 180, 21)]
    found = run([ALONE], asked)
    assert found.waits_s == pytest.approx([1.0, 3.0, 5.5])


def test_a_backend_that_is_said_to_take_more_than_it_runs_lets_them_wait_itself() -> None:
    asked = [Request(0.0, 180, 21)] * 3
    assert run([Machine(10.0, 1, 64)], asked).waits_s == run([ALONE], asked).waits_s


def test_answers_that_run_together_are_slower_and_more_in_all() -> None:
    wide = Machine(10.0, parallel=5, slots=5, width=4.0)
    assert wide.speed(1) == 10.0
    assert wide.speed(5) == 5.0
    assert wide.most_tokens_per_s == 25.0
    found = run([wide], [Request(0.0, 180, 21)] * 5)
    assert found.answers_s == pytest.approx([6.0] * 5)


def test_use_is_what_a_backend_holds_on_average() -> None:
    found = run([ALONE, ALONE], [Request(0.0, 180, 21)] * 3)
    assert found.used == pytest.approx([6.0, 3.0])
    assert found.imbalance == pytest.approx(4 / 3)


def test_a_beginning_is_read_once_while_it_is_kept() -> None:
    def asked(at: float, prefix: int) -> Request:
        return Request(at, 180, 21, prefix, 200)

    keeping = Machine(10.0, 1, 1, cached=2)
    requests = [asked(100.0 * n, prefix) for n, prefix in enumerate((1, 2, 1, 3, 1, 2))]
    found = run([keeping], requests)
    assert found.waits_s == pytest.approx([2.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    assert found.hits == attainable_hits([keeping], requests) == 2
    assert attainable_hits([keeping, keeping], requests) == 3


def test_requests_arrive_as_fast_as_the_load_says_and_the_same_every_time() -> None:
    machines = MIXED[UNFIT]
    requests = mixed(machines, 0.8, 4000)
    assert requests == mixed(machines, 0.8, 4000)
    work = sum(request.work()[1] for request in requests)
    most = sum(machine.most_tokens_per_s for machine in machines)
    assert work / requests[-1].at == pytest.approx(0.8 * most, rel=0.05)


def test_frequent_beginnings_are_as_frequent_as_their_rank_says() -> None:
    requests = with_prefixes([ALONE], 0.5, 20_000, 10)
    names = {one.prefix for one in requests}
    counts = sorted(sum(one.prefix == name for one in requests) for name in names)
    assert counts[-1] == pytest.approx(2 * counts[-2], rel=0.1)
    assert counts[-1] == pytest.approx(10 * counts[0], rel=0.2)


@pytest.mark.slow
@pytest.mark.req("C17", "C18")
def test_the_strategies_keep_their_bars() -> None:
    found = simulate()
    bars = list(judged(found))
    assert len(bars) == 3
    assert [verdict for _, _, verdict in bars] == ["kept"] * 3, bars
    shown = as_text(Measurement(1, 1.0, simulated=found))
    assert "least-busy" in shown
    assert shown.count("| kept") == 3
    assert shown_in(PAGE.read_text(encoding="utf-8"), "simulation") == simulation_text(found), (
        "write it anew: python -m bench.simulation_report"
    )
    assert '"fleet"' in as_json(Measurement(1, 1.0, simulated=found))


def test_a_bar_that_is_not_kept_is_told_by_the_worst_load() -> None:
    waits = {(0.7, Strategy.ROUND_ROBIN): 10.0, (0.7, Strategy.LEAST_BUSY): 1.0} | {
        (0.9, Strategy.ROUND_ROBIN): 15.0,
        (0.9, Strategy.LEAST_BUSY): 10.0,
    }
    found = [Simulated(UNFIT, load, strategy, 0.1, p99, 1.0) for (load, strategy), p99 in waits.items()]
    ((_, value, verdict),) = judged(found)
    assert (value, verdict) == ("1.50", "NOT kept")
    assert list(judged([])) == []


def test_nothing_simulated_is_nothing_measured() -> None:
    assert Measurement(1, 1.0).is_empty()
    assert not Measurement(
        1, 1.0, simulated=[Simulated(UNFIT, 0.7, Strategy.LATENCY, 0.1, 0.2, inf)]
    ).is_empty()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_choice_among_a_thousand_backends_costs_little_however_many_are_full() -> None:
    try:
        found = choices.count()
    except counting.Unavailable as reason:
        missing("valgrind", str(reason))
    assert not choices.too_dear(found)


def test_a_choice_that_costs_too_much_is_named() -> None:
    found = choices.Choices(1000.0, {("latency", 99): 5000.0, ("weighted", 0): 900.0})
    assert choices.too_dear(found) == ["latency, 99% full: 5.00 units, at most 4.5"]
