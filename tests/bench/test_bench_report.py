"""From turns to tables: medians, ratios within a round, bars, and what makes a figure doubtful."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from bench.cancel import Cancels
from bench.columns import FIGURES
from bench.figures import Figure, Spread, Turns, ratios
from bench.held import Held, Plan
from bench.measurement import Measurement
from bench.procs import running
from bench.programs import LoadResult
from bench.report import as_json, as_text
from bench.run import main
from bench.scenarios import Part, grid, half_load, light
from bench.startup import Startup
from bench.turns import Turn, in_turns

from bench import bars, held, tables

ROOT = Path(__file__).resolve().parents[2]
NOTHING = LoadResult(**dict.fromkeys((name for name in LoadResult.__slots__), 0) | {"first_error": ""})  # type: ignore[arg-type]
MB_BEFORE, MB_AFTER = 50.0, 60.0


def turn(number: int, scenario: str, stack: str, cpu_s: float | None, **seen: float) -> Turn:
    return Turn(number, scenario, stack, replace(NOTHING, **seen), cpu_s, 0.0)  # type: ignore[arg-type]


def figure(title: str, part: Part = "gateway") -> Figure:
    return next(one for one in FIGURES[part] if one.title == title)


def plain(number: int, ours_s: float, theirs_s: float, scenario: str = "plain-steady") -> list[Turn]:
    seen = {"ok": 1000, "requests_per_s": 1000.0, "latency_p50_ms": 1.0}
    return [
        turn(number, scenario, "direct", None, **seen | {"latency_p50_ms": 0.25}),
        turn(number, scenario, "headrace", ours_s, **seen),
        turn(number, scenario, "envoy", theirs_s, **seen),
    ]


def holding(number: int, stack: str, kb: float, streams: int = 1000) -> Held:
    result = replace(NOTHING, ok=streams)
    held_mb = MB_BEFORE + kb * streams / 1000
    return Held(number, stack, streams, MB_BEFORE, held_mb, MB_AFTER, 0.02, 10.0, result)


def measurement(*turns: Turn) -> Measurement:
    found = Measurement(rounds=1, seconds=1.0, turns=list(turns))
    found.scenarios = [replace(light()[0], part="gateway", name="plain-steady"), *grid(), half_load(1000)]
    found.configurations = {"direct": "", "headrace": "keys: checked", "envoy": "static"}
    return found


def cells(text: str) -> str:
    """Without the blanks that make the columns straight."""
    return " ".join(text.split())


def test_a_ratio_is_taken_within_each_round_and_then_the_median() -> None:
    turns = Turns([*plain(0, 0.05, 0.10), *plain(1, 0.30, 0.40), *plain(2, 0.06, 0.06)])
    per_request = figure("CPU µs / request")
    assert turns.spread(per_request, "headrace") == Spread(60.0, 50.0, 300.0, (50.0, 300.0, 60.0))
    ratio = turns.ratio(per_request, "headrace", "envoy")
    assert ratio is not None
    assert (ratio.median, ratio.lowest, ratio.highest) == pytest.approx((0.75, 0.5, 1.0))
    assert ratio.values == pytest.approx((0.5, 0.75, 1.0))


def test_a_round_in_which_one_of_both_is_not_above_zero_has_no_ratio() -> None:
    assert ratios({0: 2.0, 1: -1.0, 2: 3.0, 3: 4.0}, {0: 4.0, 1: 1.0, 2: 0.0}) == {0: 0.5}


def test_added_latency_is_the_difference_from_the_upstream_alone_in_microseconds() -> None:
    turns = Turns(plain(0, 0.05, 0.10))
    assert turns.spread(figure("added µs p50"), "headrace") == Spread(750.0, 750.0, 750.0, (750.0,))
    assert turns.spread(figure("added µs p50"), "direct") is None
    assert turns.spread(figure("CPU µs / request"), "direct") is None


def test_a_stack_that_answered_nothing_has_no_latency() -> None:
    direct, ours, _ = plain(0, 0.05, 0.10)
    failed = replace(ours, result=replace(NOTHING, bad=9))
    assert Turns([direct, failed]).spread(figure("added µs p50"), "headrace") is None


def test_a_stack_that_was_not_measured_has_no_figures() -> None:
    turns = Turns(plain(0, 0.05, 0.10))
    assert turns.spread(figure("CPU µs / event"), "headrace") is None
    assert turns.ratio(figure("CPU µs / request"), "headrace", "vllm-router") is None


def test_doubtful_turns_are_named() -> None:
    slow = turn(0, "plain-steady", "headrace", 0.05, ok=500, requests_per_s=500.0)
    broken = turn(0, "plain-steady", "envoy", 0.05, ok=1000, bad=3, cut=2, requests_per_s=1000.0)
    remarks = Turns([plain(0, 1, 1)[0], slow, broken]).remarks()
    assert [line.partition(": ")[0] for line in remarks] == [
        "round 1, plain-steady, headrace",
        "round 1, plain-steady, envoy",
        "round 1, plain-steady, envoy",
    ]
    assert Turns(plain(0, 1, 1)).remarks() == []


def test_a_steady_load_of_streams_is_judged_by_its_events() -> None:
    seen = {"ok": 3, "requests_per_s": 3.0, "events": 100, "events_per_s": 100.0}
    direct = turn(0, "stream-light-steady", "direct", None, **seen)
    fewer_ends = turn(0, "stream-light-steady", "headrace", 0.05, **seen | {"requests_per_s": 1.0})
    slower = turn(0, "stream-light-steady", "envoy", 0.05, **seen | {"events_per_s": 50.0})
    assert Turns([direct, fewer_ends]).remarks() == []
    assert "carried 50%" in Turns([direct, slower]).remarks()[0]


def test_every_stack_is_first_once() -> None:
    orders = ["".join(in_turns("abc", number)) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_every_load_of_the_grid_has_a_rate_and_a_cost() -> None:
    names = {load.name for load in grid()}
    assert len(names) == 8
    for name in names:
        assert sum(one.scenario == name for one in FIGURES["grid"]) == 2


def test_half_of_a_rate_is_offered_over_32_connections() -> None:
    load = half_load(4000.0)
    assert load.options == ("--conns", "32", "--pace-us", "8000")
    assert load.explanation.startswith("4,000 plain requests")


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (1234.5, 1, "1,234.5"),
        (0.0462, None, "0.0462"),
        (1.0, None, "1.00"),
        (21.62, None, "21.6"),
        (123.4, None, "123"),
        (5272.0, None, "5,272"),
    ],
)
def test_numbers_have_the_digits_that_say_something(value: float, decimals: int | None, shown: str) -> None:
    assert tables.number(value, decimals) == shown


def test_what_a_held_stream_takes_is_what_came_on_top_of_an_idle_gateway() -> None:
    one = holding(0, "headrace", kb=16.0)
    assert one.kb_per_stream == pytest.approx(16.0)
    assert one.cpu_us_per_stream_s == pytest.approx(2.0)


def test_held_streams_are_compared_within_a_round() -> None:
    found = [
        *(holding(0, "headrace", 10.0), holding(0, "envoy", 40.0)),
        *(holding(1, "headrace", 20.0), holding(1, "envoy", 40.0)),
    ]
    ratio = held.ratio(found, "headrace", "envoy", "kb_per_stream")
    assert ratio is not None
    assert ratio.values == pytest.approx((0.25, 0.5))
    nobody = replace(holding(0, "direct", 10.0), before_mb=0.0)
    assert held.values([nobody], "direct", "kb_per_stream") == {}


def test_streams_that_were_not_all_open_are_named() -> None:
    whole = holding(0, "headrace", 10.0)
    assert held.remarks([whole], 1000) == []
    short = replace(whole, open=990, result=replace(NOTHING, ok=980, bad=20, first_error="not a 200"))
    assert held.remarks([short], 1000) == [
        "round 1, held, headrace: 20 failed, 0 were cut (not a 200)",
        "round 1, held, headrace: only 990 of 1000 were open at the end of the window",
    ]


def test_no_more_streams_are_held_than_files_may_be_open() -> None:
    assert held.most_streams(9000, 20_000) == 9000
    assert held.most_streams(9000, 1024) == 412


@pytest.mark.parametrize("plan", [Plan(9000), Plan.quick(1000)], ids=["whole", "quick"])
def test_all_streams_are_open_throughout_the_window(plan: Plan) -> None:
    assert plan.ramp_s + held.SETTLE_S + plan.window_s < plan.life_s
    assert plan.ramp_s + plan.begin_s < plan.life_s, "else the first would begin a second time"


def test_the_report_has_every_part_its_bars_and_each_round() -> None:
    found = measurement(
        *plain(0, 0.05, 0.1), *plain(0, 0.05, 0.1, "plain-32"), *plain(0, 0.05, 0.1, "half-steady")
    )
    found.holding, found.held = Plan(1000), [holding(0, "headrace", 16.0), holding(0, "envoy", 50.0)]
    found.cancels = [
        Cancels("headrace", "plain", Spread(0.2, 0.1, 0.3), 0),
        Cancels("headrace", "stream", None, 4),
    ]
    found.startup = Startup(0.5, Spread(0.4, 0.3, 0.5), Spread(95.0, 95.0, 95.0))
    text = as_text(found, every_round=True)
    shown = cells(text)
    for line in (
        "| CPU µs / request, headrace ÷ envoy: at most 1 | 0.500 (0.500 to 0.500) | kept |",
        "| added µs p50 at half load: at most 400 | 750 (750 to 750) | NOT kept |",
        "| resident kB for each held stream: at most 25 | 16.0 (16.0 to 16.0) | kept |",
        "| ms until the backend sees a client leave, stream: at most 250 | 4 not seen | NOT kept |",
        "| MB after the start: at most 90 | 95.0 (95.0 to 95.0) | NOT kept |",
        "| plain, 32: req/s | 1,000 (1,000 to 1,000) |",
        "| plain-32 | 0 of 1,000 | 0 of 1,000 | 0 of 1,000 |",
        "| resident kB / stream | 0.320 (0.320 to 0.320) |",
        "| held | resident kB / stream | headrace | 16.0 |",
        "keys: checked",
    ):
        assert line in shown
    assert "## Every round" not in as_text(found)
    assert "Doubts" not in text


def test_a_bar_is_not_quoted_from_doubtful_turns_unseen() -> None:
    direct, ours, theirs = plain(0, 0.05, 0.1)
    text = as_text(measurement(direct, replace(ours, others_share=0.5), theirs))
    assert "Doubts about single turns, 1 of them" in text.partition("## Gateways")[0]
    assert "round 1, plain-steady, headrace: others had 50% of the gateway's core" in text


def test_a_light_load_compares_with_litellm_at_the_same_load_and_at_our_own() -> None:
    seen = {"ok": 100, "requests_per_s": 40.0}
    found = measurement(*plain(0, 0.1, 0.1))  # ours: 100 µs at its steady load
    found.scenarios += light()
    for name, cpu_s in (("direct", None), ("headrace", 0.02), ("litellm", 1.0)):
        found.turns.append(turn(0, "plain-light-steady", name, cpu_s, **seen))
    found.configurations["litellm"] = "a master key"
    table = cells(bars.checked(found))
    assert "the same light load: at least 100 | 50.0 (50.0 to 50.0) | NOT kept |" in table
    assert "each at its steady load: at least 100 | 100 (100 to 100) | kept |" in table


def test_what_is_absent_is_said_and_what_is_there_can_be_read_back() -> None:
    found = measurement(*plain(0, 0.05, 0.1))
    found.absences = ["vllm-router: not installed"]
    text = as_text(found)
    assert "- vllm-router: not installed" in text
    assert "| CPU µs / request | 0.500 (0.500 to 0.500) |" in cells(text)
    read = json.loads(as_json(found))
    assert read["turns"][1]["cpu_s"] == 0.05
    per_request = read["figures"][0]
    assert (per_request["part"], per_request["figure"]) == ("gateway", "CPU µs / request")
    assert per_request["values"] == {"headrace": {"0": 50.0}, "envoy": {"0": 100.0}}
    assert per_request["ratios"] == {"headrace ÷ envoy": {"0": 0.5}}


@pytest.mark.parametrize(
    "arguments",
    [["--stacks", "nginx"], ["--rounds", "0"], ["--parts", "gatevay"], ["--streams", "0"]],
)
def test_a_wrong_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_run_on_the_upstream_alone_has_every_load_and_no_error(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    command = [sys.executable, "-m", "bench", "--stacks", "direct", "--parts", "gateway,cancel"]
    command += ["--rounds", "1", "--seconds", "0.2", "--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    found = json.loads(kept.read_text())
    assert [(one["scenario"], one["result"]["bad"], one["result"]["cut"]) for one in found["turns"]] == [
        (one["name"], 0, 0) for one in found["scenarios"]
    ]
    assert all(one["result"]["ok"] > 0 for one in found["turns"])
    assert [(one["unseen"], len(one["ms"]["values"])) for one in found["cancels"]] == [(0, 4), (0, 4)]
    assert "| saturated events/s" in done.stdout


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_leaves_nothing_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--stacks", "direct", "--parts", "gateway"]
    command += ["--rounds", "50", "--seconds", "0.1"]
    with running(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "gateway: round 1 of 50 done\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
