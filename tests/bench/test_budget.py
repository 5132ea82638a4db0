"""What a request costs: counted and held to the budget, the same at every size, and shown on the page as it is kept."""

from __future__ import annotations

import gc
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from bench.budget.counting import Count, Counts, Unavailable, count
from bench.budget.figures import (
    KINDS,
    WHOLE,
    Budget,
    Cost,
    as_toml,
    budget_of,
    judge,
    kept,
    python_version,
)
from bench.budget.marks import NOTHING, Flips, Tally
from bench.budget.rig import Rig
from bench.budget.seams import EXPECTED, PARTS
from bench.budget.sizes import dependent, sizes
from bench.budget.table import PAGE, put_in, shown_in, table
from bench.budget.timing import Times, count_intervals
from bench.budget.traffic import FURTHER_TOKENS, TALKS

from support.live import missing

SERVED = 2560
NO_TIMES = Times(1.0, {kind: dict.fromkeys((WHOLE, *PARTS), 1.0) for kind in KINDS})


@pytest.fixture(scope="module")
def counts() -> Counts:
    try:
        return count(sizes(SERVED))
    except Unavailable as reason:
        missing("valgrind", str(reason))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")
def test_the_code_keeps_to_its_budget(counts: Counts) -> None:
    before = kept()
    if before.python != python_version():
        pytest.skip(f"the budget is Python {before.python}'s")
    verdict = judge(budget_of(counts, NO_TIMES), before)
    assert not verdict.over, "\n".join(verdict.over)
    for line in verdict.under:
        warnings.warn(line, stacklevel=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_request_costs_the_same_however_much_there_is_around_it(counts: Counts) -> None:
    assert not dependent(counts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_parts_are_all_of_a_request(counts: Counts) -> None:
    for kind in ("plain", "stream"):
        counted = counts.by_size["usual"][kind]
        assert sum(counted.parts.values()) == pytest.approx(counted.whole, rel=0.05), kind


@pytest.mark.slow
def test_nothing_is_left_of_requests_that_were_served() -> None:
    rig = Rig()
    left = []
    for times in (512, 512, 10_240):  # whole batches of request ids; the first fills what is kept for good
        rig.run(TALKS["plain"], times)
        rig.run(TALKS["stream"], times // 2)
        gc.collect()
        left.append(sys.getallocatedblocks())
    assert left[2] - left[1] < 100


def test_no_cycle_is_left_to_the_garbage_collector() -> None:
    rig = Rig()
    rig.run(TALKS["long"], 1)
    gc.collect()
    gc.disable()
    try:
        rig.run(TALKS["plain"], 20)
        rig.run(TALKS["stream"], 20)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", TALKS)
def test_the_rig_answers_its_client_with_and_without_marks(kind: str) -> None:
    for marks in (None, Tally()):
        rig = Rig(marks=marks)
        rig.check(TALKS[kind])
        rig.check(TALKS["plain"])


def test_an_answer_that_the_client_did_not_get_is_noticed() -> None:
    rig = Rig()
    with pytest.raises(RuntimeError, match="did not get"):
        rig.check(replace(TALKS["long"], events=3))


def test_every_part_is_on_the_way_of_every_talk() -> None:
    for kind, intervals in (count_intervals()).items():
        assert all(intervals[part] > 0 for part in EXPECTED), kind


def test_what_is_inside_a_part_is_not_counted_with_it() -> None:
    flips: list[str] = []
    marks = Flips(lambda: flips.append("flip"))
    marks.wanted = "outer"
    outside = marks.switch("outer")
    outer = marks.switch("inner")
    assert (outside, outer, len(flips)) == (NOTHING, "outer", 2)
    marks.switch("innermost")
    marks.switch("inner")
    assert len(flips) == 2
    marks.switch(outer)
    marks.switch(outside)
    assert len(flips) == 4


def budget(**plain: float) -> Budget:
    """One whose plain request has these parts, in units, and whose other work costs a unit each."""
    one = {WHOLE: Cost(1000, 1.0)}
    parts = {part: Cost(round(units * 1000), 1.25) for part, units in plain.items()}
    whole = Cost(sum(cost.instructions for cost in parts.values()), 1.5)
    work = {"plain": {WHOLE: whole} | parts, "stream": one, "event": one}
    return Budget(python_version(), Cost(1000, 0.125), work)


def test_work_that_costs_too_much_is_named_with_the_parts_that_grew() -> None:
    verdict = judge(budget(read=4, key=1, answer=6), budget(read=4, key=1, answer=4, finish=0.1))
    [line] = verdict.over
    assert line.startswith(
        "a plain request costs 11.00 units instead of 9.10, +21%; what grew: answer +2.00 ("
    )
    assert "read" not in line
    assert "finish" not in line
    assert not verdict.under


def test_work_that_became_cheap_asks_for_a_new_budget() -> None:
    verdict = judge(budget(read=4, answer=4), budget(read=4, answer=6))
    assert not verdict.over
    [line] = verdict.under
    assert "--write" in line


@pytest.mark.parametrize("answer", [5.2, 4.0, 3.0])
def test_work_near_its_budget_is_all_right(answer: float) -> None:
    verdict = judge(budget(read=4, answer=answer), budget(read=4, answer=4))
    assert not verdict.over
    assert not verdict.under


def test_another_unit_is_made_up_for() -> None:
    here = budget(read=4, answer=4)
    slower = {
        kind: {part: Cost(cost.instructions * 2, 9.0) for part, cost in costs.items()}
        for kind, costs in here.work.items()
    }
    verdict = judge(Budget(here.python, Cost(2000, 9.0), slower), here)
    assert not verdict.over
    assert not verdict.under


def test_an_event_is_the_difference_between_a_long_stream_and_a_short_one() -> None:
    short = Count(1000, dict.fromkeys(PARTS, 100.0) | {"answer": 300.0})
    long = Count(
        1000 + 50 * FURTHER_TOKENS, dict.fromkeys(PARTS, 100.0) | {"answer": 300 + 40.0 * FURTHER_TOKENS}
    )
    counted = Counts(10.0, {"usual": {"plain": short, "stream": short, "long": long}})
    event = budget_of(counted, NO_TIMES).work["event"]
    assert {part: cost.instructions for part, cost in event.items()} == {WHOLE: 50, "answer": 40}


def test_a_size_at_which_a_request_costs_more_is_named() -> None:
    usual = Count(1000, {"key": 10, "admit": 80, "finish": 10})
    searching = Count(1030, {"key": 10, "admit": 110, "finish": 10})
    found = dependent(Counts(1.0, {"usual": {"plain": usual}, "many": {"plain": searching}}))
    assert found == ["many: deciding takes 130 instructions, usually 100"]
    slow = Count(1100, usual.parts)
    assert dependent(Counts(1.0, {"usual": {"plain": usual}, "many": {"plain": slow}})) == [
        "many: a plain request takes 1,100 instructions, usually 1,000"
    ]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(as_toml(budget(read=4, answer=3.5)), encoding="utf-8")
    assert kept(path) == budget(read=4, answer=3.5)


def test_the_page_shows_the_budget_as_it_is_kept() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert shown_in(page, "budget") == table(kept()), "write both anew: python -m bench.budget --write"
    assert shown_in(page, "sizes").startswith("| ")


def test_a_table_goes_between_its_markers_and_nowhere_else() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert put_in(page, "x", "new") == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    for wrong in ("", "<!-- x: end -->\n<!-- x: begin -->", page + page):
        with pytest.raises(ValueError, match="markers"):
            put_in(wrong, "x", "new")
