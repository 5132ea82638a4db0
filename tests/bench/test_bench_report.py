"""From turns to tables: medians, ratios within a round, and what makes a figure doubtful."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from bench.figures import FIGURES, Figure, Spread, Turns
from bench.procs import running
from bench.programs import LoadResult
from bench.report import Measurement, as_json, as_text
from bench.run import main
from bench.scenarios import Turn, in_turns
from bench.stacks import Stack

ROOT = Path(__file__).resolve().parents[2]
NOTHING = LoadResult(**dict.fromkeys((name for name in LoadResult.__slots__), 0) | {"first_error": ""})  # type: ignore[arg-type]


def turn(number: int, scenario: str, stack: str, cpu_s: float | None, **seen: float) -> Turn:
    return Turn(number, scenario, stack, replace(NOTHING, **seen), cpu_s, 0.0)  # type: ignore[arg-type]


def figure(title: str) -> Figure:
    return next(one for one in FIGURES if one.title == title)


def plain(number: int, ours_s: float, theirs_s: float) -> list[Turn]:
    seen = {"ok": 1000, "requests_per_s": 1000.0, "latency_p50_ms": 1.0}
    return [
        turn(number, "plain-steady", "direct", None, **seen | {"latency_p50_ms": 0.25}),
        turn(number, "plain-steady", "headrace", ours_s, **seen),
        turn(number, "plain-steady", "envoy", theirs_s, **seen),
    ]


def test_a_ratio_is_taken_within_each_round_and_then_the_median() -> None:
    turns = Turns([*plain(0, 0.05, 0.10), *plain(1, 0.30, 0.40), *plain(2, 0.06, 0.06)])
    per_request = figure("CPU µs / request")
    assert turns.spread(per_request, "headrace") == Spread(60.0, 50.0, 300.0)
    ratio = turns.ratio(per_request, "headrace", "envoy")
    assert ratio is not None
    assert (ratio.median, ratio.lowest, ratio.highest) == pytest.approx((0.75, 0.5, 1.0))


def test_added_latency_is_the_difference_from_the_upstream_alone_in_microseconds() -> None:
    turns = Turns(plain(0, 0.05, 0.10))
    assert turns.spread(figure("added µs p50"), "headrace") == Spread(750.0, 750.0, 750.0)
    assert turns.spread(figure("added µs p50"), "direct") is None
    assert turns.spread(figure("CPU µs / request"), "direct") is None


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


def test_every_stack_is_first_once() -> None:
    stacks = [replace(Stack("", None, None, ""), name=name) for name in "abc"]  # type: ignore[arg-type]
    orders = ["".join(stack.name for stack in in_turns(stacks, number)) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_what_is_absent_is_said_and_what_is_there_can_be_read_back() -> None:
    measurement = Measurement(
        rounds=1, seconds=1.0, turns=plain(0, 0.05, 0.1), absences=["vllm-router: not installed"]
    )
    measurement.configurations = {"direct": "", "headrace": "[server]", "envoy": "static"}
    text = as_text(measurement)
    assert "- vllm-router: not installed" in text
    assert "| CPU µs / request | 0.50 (0.50 to 0.50) |" in " ".join(text.split()).replace("  ", " ")
    assert json.loads(as_json(measurement))["turns"][1]["cpu_s"] == 0.05


@pytest.mark.parametrize("arguments", [["--stacks", "nginx"], ["--rounds", "0"], ["--parts", "gatevay"]])
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
    assert [one["unseen"] for one in found["cancels"]] == [0, 0]
    assert "| saturated events/s" in done.stdout


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_leaves_nothing_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--stacks", "direct", "--parts", "gateway"]
    command += ["--rounds", "50", "--seconds", "0.1"]
    with running(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "round 1 of 50 done\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
