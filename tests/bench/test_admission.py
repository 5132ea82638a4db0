"""What deciding costs: every request is decided as it should be at each size, and the tables say what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench.admission import kept, measure, shared, tables
from bench.admission.measure import AdmissionFigures, Row
from bench.admission.scene import IN_FLIGHT, MODES, Scene, Size
from bench.admission.shared import Pairs, RedisFigures
from bench.bars import checked
from bench.figures import Spread
from bench.measurement import Measurement
from bench.parts import INSIDE, Plan
from bench.report import as_text
from bench.run import main
from bench.site import Unavailable

from headrace.adapters.ledger.redis import RedisLedger
from headrace.domain.quota import Limits
from headrace.kernel.clock import SystemClock
from support.live import missing


@pytest.mark.parametrize("mode", MODES)
def test_every_request_is_granted_and_settled_at_every_size(mode: str) -> None:
    scene = Scene(Size(mode, keys=50))
    scene.warm_up()
    scene.run(10 * IN_FLIGHT)
    ledger = scene.ledger
    assert ledger.open_reservations == ledger.waiting == 0
    assert ledger.windows == 50 * len(MODES[mode].windows("user:1"))


def test_a_request_that_is_its_users_first_in_the_minute_is_held_to_fresh_windows() -> None:
    scene = Scene(Size(measure.ALL, keys=20, fresh=True))
    scene.warm_up()
    windows = scene.ledger.windows
    scene.next_minute()
    scene.run(IN_FLIGHT)
    assert scene.ledger.windows == windows, "those that ended are gone, new ones have come"


def test_a_scene_in_which_a_request_does_not_end_is_noticed() -> None:
    scene = Scene(Size("no limits"))
    scene.house.admit(1)
    with pytest.raises(RuntimeError, match="of 1 requests 1 have not ended"):
        scene.house.check()


@pytest.mark.slow
def test_with_a_database_all_of_it_is_kept(tmp_path: Path) -> None:
    found = kept.measure(tmp_path, Size(measure.ALL), requests=320)
    assert 0 < found.loop_us <= found.all_us


@pytest.mark.slow
async def test_pairs_are_made_in_a_real_redis(tmp_path: Path) -> None:
    try:
        with shared.redis(tmp_path) as (url, pid):
            assert pid > 0
            ledger = RedisLedger(url, SystemClock())
            await ledger.open()
            await Pairs(ledger, Limits(requests_per_minute=10_000).windows("user:a"), "first").make(2_000)
            assert ledger.open_reservations == ledger.unsettled == 0
            with pytest.raises(RuntimeError, match="refused"):
                await Pairs(ledger, Limits(requests_per_minute=10).windows("user:b"), "second").make(20)
            await ledger.close()
    except Unavailable as reason:
        missing("redis", str(reason))


def figures() -> AdmissionFigures:
    rows = [
        Row(Size("no limits"), 4.0, 72_000.0, 5.0),
        Row(Size(measure.ALL), 16.0, None, None),
        Row(Size(measure.ALL, 1_000, fresh=True), 40.0, 400_000.0, 27.5),
    ]
    return AdmissionFigures(rows, [kept.Kept(Size("no limits"), 10.0, 20.0)], "there is no valgrind")


def test_the_report_has_the_figures_and_the_bars() -> None:
    rate = Spread(9_000.0, 7_000.0, 11_000.0, (7_000.0, 9_000.0, 11_000.0))
    found = Measurement(3, 1.0, admission=figures(), redis=[RedisFigures("one window", rate, rate, rate)])
    text = " ".join(as_text(found).split())
    assert "| no limits | 10 | 250,000 | 4.0 | 72,000 | 5.00 |" in text
    assert "| all seven windows | 10 | 62,500 | 16.0 | | |" in text
    assert "all seven windows, each request its user's first in the minute | 1,000 | 25,000" in text
    assert "Instructions weren't counted: there is no valgrind" in text
    assert "| no limits | 10.0 | 20.0 |" in text
    bars = " ".join(checked(found).split())
    assert "no limits, 10 keys: at least 100,000 | 250,000 | kept" in bars
    assert "all seven windows, 10 keys: at least 100,000 | 62,500 | NOT kept" in bars
    assert "first in the minute" not in bars
    assert "one window: at least 8,000 | 9,000 (7,000 to 11,000) | kept" in bars
    assert not found.is_empty()


def test_a_row_that_no_bar_is_about_has_no_title() -> None:
    assert tables.bar_row(Row(Size(measure.ALL, fresh=True), 1.0, None, None)) is None


def test_parts_without_a_stack_build_and_install_nothing() -> None:
    plan = Plan(list(INSIDE), {}, 1, 1.0, None)  # type: ignore[arg-type]
    assert not plan.needs_a_site
    assert replace(plan, parts=["held", *INSIDE]).needs_a_site


def test_parts_can_be_named_without_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["admission", "nonsense"])
    assert "unknown: nonsense" in capsys.readouterr().err
