"""`/metrics`: who sees it, what it says, and that Prometheus can read it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.control.breaker import BreakerState
from headrace.control.destinations import OTHER_ROUTES, Use
from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.domain.access import Scope
from headrace.domain.fleet import Node, NodeState
from headrace.domain.routing import Route, Selector, Target
from headrace.gateway import metrics_table
from headrace.gateway.guard import AddressGuard
from headrace.gateway.metrics import MAX_CODES, Counted
from headrace.gateway.metrics_nodes import MAX_NODES, MAX_PACES, MAX_ROUTES
from headrace.kernel.clock import SystemClock
from headrace.observe.metrics import CONTENT_TYPE, Kind, Metric, render
from headrace.testing import ManualClock
from headrace.testing.fake_engine import Cut, FakeEngine, Hang, Refuse, Script
from support.administration import Office, administered
from support.events import KeptEvents
from support.house import House, gateway
from support.raw import RawClient, call
from support.waiting import until

CHAT = "/v1/chat/completions"
BODY = b'{"model":"fake","messages":[{"role":"user","content":"hi"}]}'
ADMIN = {"authorization": "Bearer sk-admin"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_HELP = re.compile(r"# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ((?:[^\\\n]|\\\\|\\n)+)")
_TYPE = re.compile(r"# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge)")
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.+)\})? (NaN|[+-]Inf|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(?:,(?=.)|$)')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse(text: str) -> Samples:
    """What the exposition says, where it is right in every respect: a help and a type before a metric's samples, all of which
    stand together, none twice; counters end in `_total` and aren't negative."""
    assert text.endswith("\n")
    samples: Samples = {}
    seen: set[str] = set()
    name = kind = helped = ""
    for line in text.removesuffix("\n").split("\n"):
        if match := _HELP.fullmatch(line):
            helped = match[1]
            assert helped not in seen
        elif match := _TYPE.fullmatch(line):
            name, kind = match[1], match[2]
            assert name == helped
            seen.add(name)
            assert name.endswith("_total") == (kind == "counter")
        else:
            match = _SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == name
            labels = _labels(match[2] or "")
            assert (name, labels) not in samples, line
            value = float(match[3])
            assert kind == "gauge" or value >= 0
            samples[name, labels] = value
    return samples


def _labels(text: str) -> frozenset[tuple[str, str]]:
    pairs, at = [], 0
    while at < len(text):
        match = _LABEL.match(text, at)
        assert match, text
        pairs.append((match[1], re.sub(r"\\.", lambda escape: _ESCAPES[escape[0]], match[2])))
        at = match.end()
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    return frozenset(pairs)


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def counted(registry: Registry | None = None) -> Counted:
    clock = ManualClock()
    registry = registry or Registry()
    guard = AddressGuard(60, KeptEvents(clock.monotonic), clock.monotonic)
    return Counted(LocalControlPlane(registry, clock), registry, guard)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    guard = AddressGuard(per_minute=2, events=KeptEvents())
    async with (
        FakeEngine(Script(models=("fake",), tokens=5)) as engine,
        gateway(engine.url, capacity=7, guard=guard) as house,
    ):
        house.keys.add("sk-admin", frozenset({Scope.ADMIN}))
        yield house


async def scrape(house: House) -> Samples:
    response = await call(house.port, "GET", "/metrics", ADMIN)
    assert response.status == 200
    assert response.headers["content-type"] == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    return parse(response.body.decode())


@pytest.mark.req("C47")
async def test_what_happened_is_counted(house: House) -> None:
    before = await scrape(house)
    assert of(before, "headrace_requests_total", ending="completed") == 0
    for _ in range(2):
        assert (await call(house.port, "POST", CHAT, house.auth, BODY)).status == 200
    missing = BODY.replace(b"fake", b"missing")
    assert (await call(house.port, "POST", CHAT, house.auth, missing)).status == 404
    for status in (401, 401, 429):
        assert (await call(house.port, "POST", CHAT, {}, BODY)).status == status
    now = await scrape(house)
    assert of(now, "headrace_requests_total", ending="completed") == 2
    assert of(now, "headrace_requests_total", ending="failed") == 1
    assert of(now, "headrace_requests_total", ending="cancelled") == 0
    assert of(now, "headrace_refusals_total", code="model_not_found") == 1
    assert of(now, "headrace_tokens_total", kind="completion") == 10
    assert of(now, "headrace_tokens_total", kind="prompt") > 0
    assert of(now, "headrace_executions_total") == 2
    assert of(now, "headrace_running") == 0
    assert of(now, "headrace_waiting", priority="normal") == 0
    assert of(now, "headrace_oldest_wait_seconds") == 0
    assert of(now, "headrace_nodes", state="ready") == 1
    assert of(now, "headrace_node_state", node="b0", state="ready") == 1
    assert of(now, "headrace_node_state", node="b0", state="down") == 0
    assert of(now, "headrace_node_busy", node="b0") == 0
    assert of(now, "headrace_node_capacity", node="b0") == 7
    assert of(now, "headrace_unauthenticated_total") == 3
    assert of(now, "headrace_address_limited_total") == 1
    assert of(now, "headrace_security_events_total", kind="key_refused") == 2
    assert of(now, "headrace_connections") >= 1
    assert of(now, "headrace_answering") == 1  # the one who asks
    assert {name for name, _ in now} == {metric.name for metric in metrics_table.ALWAYS}


@pytest.mark.req("C47")
async def test_what_runs_and_waits_now_is_seen() -> None:
    async with (
        FakeEngine(Script(models=("fake",), tokens=100_000, interval_s=0.05)) as engine,
        gateway(engine.url, capacity=1) as house,
        RawClient(house.port) as running,
        RawClient(house.port) as waiting,
    ):
        house.keys.add("sk-admin", frozenset({Scope.ADMIN}))
        for client in (running, waiting):
            client.request("POST", CHAT, house.auth, BODY[:-1] + b',"stream":true}')
        await until(lambda: house.control.running == 1 and house.control.waiting == 1)
        now = await scrape(house)
        assert of(now, "headrace_running") == of(now, "headrace_node_busy", node="b0") == 1
        assert of(now, "headrace_waiting", priority="normal") == of(now, "headrace_queued_total") == 1
        assert of(now, "headrace_waiting", priority="high") == 0
        assert of(now, "headrace_oldest_wait_seconds") > 0
        assert of(now, "headrace_connections") == of(now, "headrace_answering") == 3


@pytest.mark.req("C47")
async def test_who_may_see_it(house: House) -> None:
    assert (await call(house.port, "GET", "/metrics")).status == 401
    refusal = await call(house.port, "GET", "/metrics", house.auth)
    assert refusal.status == 403
    assert refusal.error["type"] == "permission_error"
    async with gateway(open_metrics=True) as open_house:
        response = await call(open_house.port, "GET", "/metrics")
        assert response.status == 200
        assert response.headers["cache-control"] == "no-store"
        parse(response.body.decode())


def test_labels_have_a_bound() -> None:
    registry = Registry()
    registry.upsert(Node("other", "direct", capacity=1000))
    for number in range(MAX_NODES + 19):
        registry.upsert(Node(f"n{number}", "direct", capacity=1, state=NodeState.DOWN))
    source = counted(registry)
    codes = [f"code_{number}" for number in range(MAX_CODES + 30)]
    source.control.totals.refusals = Counter(dict.fromkeys([*codes, "what a client wrote", "x" * 65], 2))
    samples = parse(source.text())
    for metric in metrics_table.ALWAYS:
        nodes = {dict(labels).get("node") for name, labels in samples if name == metric.name}
        assert len(nodes) in (1, MAX_NODES), metric.name  # of which one is the sum
    assert of(samples, "headrace_nodes", state="down") == MAX_NODES + 19
    assert of(samples, "headrace_node_state", node="other", state="down") == 20
    assert of(samples, "headrace_node_capacity", node="other") == 1000 + 20, (
        "a node of that name is among them"
    )
    assert of(samples, "headrace_node_capacity", node="n0") == 1
    assert sum(name == "headrace_refusals_total" for name, _ in samples) == MAX_CODES + 1
    assert of(samples, "headrace_refusals_total", code="other") == 2 * 32


def test_paces_and_routes_have_a_bound_too() -> None:
    registry = Registry()
    registry.upsert(Node("a", "direct", state=NodeState.READY))
    source = counted(registry)
    for number in range(MAX_PACES + 10):
        source.control.placement.load.observe("a", f"m{number}", 0.5, 0.25)
    source.control.placement.load.observe("a", "x" * 201, 0.5, 0.25)
    uses = source.control.destinations.uses
    for number in range(MAX_ROUTES + 5):
        for stage in (0, 1):
            uses[f"r{number}", stage] = use = Use()
            use.executions = 3
    uses[OTHER_ROUTES, 0] = use = Use()
    use.executions = 1
    samples = parse(source.text())
    for name in ("headrace_node_first_token_seconds", "headrace_node_between_tokens_seconds"):
        assert sum(known == name for known, _ in samples) == MAX_PACES
        assert not any("x" * 201 in dict(labels).values() for _, labels in samples)
    assert sum(name == "headrace_route_executions_total" for name, _ in samples) == 2 * (MAX_ROUTES + 1)
    assert of(samples, "headrace_route_executions_total", route="r0", stage="1") == 3
    assert of(samples, "headrace_route_executions_total", route="other", stage="0") == 5 * 3 + 1
    assert of(samples, "headrace_route_executions_total", route="other", stage="1") == 5 * 3


@pytest.mark.req("C47")
async def test_each_node_is_measured_by_what_it_did() -> None:
    async with (
        FakeEngine(Script(tokens=5)) as works,
        FakeEngine(Script(models=("bad",), fault=Cut())) as cuts,
        FakeEngine(Script(fault=Refuse(401))) as refuses,
        gateway(works.url, cuts.url, refuses.url, capacity=7) as house,
    ):
        house.keys.add("sk-admin", frozenset({Scope.ADMIN}))
        for _ in range(2):  # round-robin: one of them begins at b2, which is then left alone
            answer = await call(house.port, "POST", CHAT, house.auth, BODY[:-1] + b',"stream":true}')
            assert answer.status == 200
        bad = BODY.replace(b"fake", b"bad")
        for _ in range(5):
            assert (await call(house.port, "POST", CHAT, house.auth, bad)).status == 502
        now = await scrape(house)
        kinds = ("not_sent", "key_refused", "busy", "loading", "lost", "broken", "timed_out")
        assert {
            (node, kind): count
            for node in ("b0", "b1", "b2")
            for kind in kinds
            if (count := of(now, "headrace_node_failures_total", node=node, failure=kind))
        } == {("b1", "lost"): 5, ("b2", "key_refused"): 1}
        for node, up, executions in (("b0", 1, 2), ("b1", 0, 5), ("b2", 0, 1)):
            assert of(now, "headrace_node_up", node=node) == up
            assert of(now, "headrace_node_executions_total", node=node) == executions
            assert of(now, "headrace_node_slots", node=node) in (
                (7,) if up else (0, 1)
            )  # 1: its pause is over
            assert of(now, "headrace_node_openings_total", node=node) == 1 - up
            assert of(now, "headrace_node_breaker", node=node, state="closed") == up
            states = (BreakerState.OPEN, BreakerState.HALF_OPEN)
            assert sum(of(now, "headrace_node_breaker", node=node, state=state) for state in states) == 1 - up
        assert of(now, "headrace_executions_total") == 8
        assert of(now, "headrace_node_first_token_seconds", node="b0", model="fake") > 0
        assert of(now, "headrace_node_between_tokens_seconds", node="b0", model="fake") > 0
        assert not any(dict(labels).get("model") == "bad" for _, labels in now)
        assert of(now, "headrace_retries_total", failure="not_sent") == 1
        assert of(now, "headrace_retries_total", failure="lost") == 0
        assert of(now, "headrace_retries_refused_total") == 0


@pytest.mark.req("C47", "C35")
async def test_each_use_of_a_fallback_is_seen() -> None:
    office = Office()
    async with (
        FakeEngine(Script(models=("small",))) as own,
        FakeEngine(Script(models=("large",))) as other,
        administered(own.url, other.url, office=office) as house,
    ):
        house.keys.add("sk-admin", frozenset({Scope.ADMIN}))
        targets = (Target(Selector.parse("node:b0"), "small"), Target(Selector.parse("node:b1"), "large"))
        await office.route_book.put(Route("r", "chat", targets))
        body = BODY.replace(b"fake", b"chat")
        for _ in range(2):
            assert (await call(house.port, "POST", CHAT, house.auth, body)).status == 200
        await own.stop()
        await until(lambda: house.control.health.slots["b0"] == 0)
        assert (await call(house.port, "POST", CHAT, house.auth, body)).status == 200
        now = await scrape(house)
        assert of(now, "headrace_route_executions_total", route="r", stage="0") == 2
        assert of(now, "headrace_route_executions_total", route="r", stage="1") == 1
        assert of(now, "headrace_node_executions_total", node="b0") == 2
        assert of(now, "headrace_node_executions_total", node="b1") == 1
        assert of(now, "headrace_node_up", node="b0") == 0
        assert of(now, "headrace_nodes", state="down") == 1


@pytest.mark.req("C47")
async def test_loads_that_others_wait_for_are_seen() -> None:
    async with (
        FakeEngine(Script(fault=Hang())) as engine,
        gateway(engines={"fake": DirectConnector(Endpoint.parse(engine.url), clock=SystemClock())}) as house,
        RawClient(house.port) as client,
    ):
        house.keys.add("sk-admin", frozenset({Scope.ADMIN}))
        node = house.registry.get("local/fake")
        assert node is not None
        house.registry.upsert(replace(node, loaded=frozenset()))
        client.request("POST", CHAT, house.auth, BODY[:-1] + b',"stream":true}')
        await until(lambda: house.control.running == 1)
        assert of(await scrape(house), "headrace_node_loads_held", node="local/fake") == 1


def test_refusals_before_and_in_the_plane_are_added_up() -> None:
    source = counted()
    source.control.totals.refusals["queue_full"] = 2
    both = Counted(
        source.control,
        source.registry,
        source.guard,
        refusals=lambda: {"queue_full": 1, "insufficient_quota": 4},
    )
    samples = parse(both.text())
    assert of(samples, "headrace_refusals_total", code="queue_full") == 3
    assert of(samples, "headrace_refusals_total", code="insufficient_quota") == 4


def test_parts_that_not_every_service_has_are_shown_where_they_are() -> None:
    source = counted()
    names = [metric.name for metric in metrics_table.OPTIONAL]
    assert not {name for name, _ in parse(source.text())} & set(names)
    gauges = {name: (lambda number=number: number + 0.5) for number, name in enumerate(names)}
    samples = parse(Counted(source.control, source.registry, source.guard, gauges=gauges).text())
    assert [of(samples, name) for name in names] == [number + 0.5 for number in range(len(names))]
    with pytest.raises(ValueError, match="headrace_nonsense"):
        Counted(source.control, source.registry, source.guard, gauges={"headrace_nonsense": float})


def test_values_are_escaped() -> None:
    odd = 'a"b\\c\nd{}=,é'
    text = render(Metric("m", Kind.GAUGE, "two\nlines and a \\", ("x", "y")), [((odd, ""), 1.5)])
    assert text.splitlines()[0] == r"# HELP m two\nlines and a \\"
    assert parse(text) == {("m", frozenset({("x", odd), ("y", "")})): 1.5}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (True, "1"),
        (3.0, "3"),
        (0.25, "0.25"),
        (2**60, str(2**60)),
        (1e-9, "1e-09"),
        (-math.inf, "-Inf"),
    ],
)
def test_numbers_are_plain(value: float, text: str) -> None:
    assert render(Metric("m", Kind.GAUGE, "h"), [((), value)]).splitlines()[2] == f"m {text}"


def test_what_isnt_a_number_is_said_so() -> None:
    assert render(Metric("m", Kind.GAUGE, "h"), [((), math.nan), ((), math.inf)]).splitlines()[2:] == [
        "m NaN",
        "m +Inf",
    ]


def test_without_samples_there_is_nothing() -> None:
    assert render(Metric("m", Kind.GAUGE, "h"), []) == ""


def test_a_sample_has_a_value_for_each_label() -> None:
    with pytest.raises(ValueError, match="zip"):
        render(Metric("m", Kind.GAUGE, "h", ("a",)), [((), 1)])


@pytest.mark.req("C47")
def test_the_reference_is_that_of_the_code() -> None:
    written = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text("utf-8")
    assert written == metrics_table.page(), "run scripts/generate_reference.py"
