"""What may be an attack is told in the log, without keys, and an answer never tells which keys there are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from headrace.adapters.ledger.memory import MemoryLedger
from headrace.control.access import KeyRing, digest
from headrace.control.plane import LocalControlPlane
from headrace.control.quota import QuotaPlane
from headrace.control.registry import Registry
from headrace.core.inference import Inference
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.gateway.app import build_app
from headrace.gateway.cors import OriginPolicy
from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.guard import AddressGuard
from headrace.gateway.listener import Listener, bind
from headrace.gateway.security import MAX_ADDRESSES, SecurityEvent, SecurityEvents
from headrace.gateway.token_lane import TokenLane
from headrace.kernel.errors import Forbidden, Unauthenticated
from headrace.testing import ManualClock
from headrace.testing.fake_engine import FakeEngine, Script
from headrace.testing.journal import MemoryJournal
from support.events import KeptEvents
from support.house import House, gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"
BODY = b'{"model":"fake","messages":[{"role":"user","content":"hi"}]}'
PATHS = [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/fake"), ("GET", "/metrics")]


@pytest.mark.req("D49")
def test_an_address_is_told_of_five_times_at_once_and_then_once_a_minute() -> None:
    clock = ManualClock()
    events = KeptEvents(clock.monotonic)
    for _ in range(12):
        events.note(SecurityEvent.KEY_REFUSED, "203.0.113.7", key_given=True)
    assert [fields["suppressed"] for fields in events.written] == [0] * 5
    clock.advance(61.0)
    events.note(SecurityEvent.KEY_REFUSED, "203.0.113.7", key_given=False)
    events.note(SecurityEvent.KEY_REFUSED, "203.0.113.7", key_given=False)
    assert events.written[5:] == [
        {
            "event": "a request without a valid key",
            "action": "security.key_refused",
            "address": "203.0.113.7",
            "suppressed": 7,
            "key_given": False,
        }
    ]
    assert events.seen[SecurityEvent.KEY_REFUSED] == 14
    assert events.suppressed[SecurityEvent.KEY_REFUSED] == 8


@pytest.mark.req("D49")
def test_one_address_and_one_kind_dont_silence_another() -> None:
    events = KeptEvents(ManualClock().monotonic)
    for _ in range(10):
        events.note(SecurityEvent.KEY_REFUSED, "203.0.113.7")
    events.note(SecurityEvent.KEY_REFUSED, "203.0.113.8")
    events.note(SecurityEvent.ACCESS_DENIED, "203.0.113.7")
    assert [fields["address"] for fields in events.written[5:]] == ["203.0.113.8", "203.0.113.7"]
    assert events.actions[-1] == "security.access_denied"


@pytest.mark.req("D49")
def test_many_addresses_fill_neither_the_log_nor_the_memory() -> None:
    clock = ManualClock()
    events = KeptEvents(clock.monotonic)
    for number in range(MAX_ADDRESSES + 100):
        events.note(SecurityEvent.KEY_REFUSED, f"10.0.{number >> 8}.{number & 255}")
    assert len(events.written) == 30
    assert events.addresses == MAX_ADDRESSES
    clock.advance(2.0)
    events.note(SecurityEvent.KEY_REFUSED, "203.0.113.7")
    assert events.written[-1]["suppressed"] == MAX_ADDRESSES + 70


@pytest.mark.req("D49")
def test_the_addresses_of_one_ipv6_network_are_told_of_as_one() -> None:
    events = KeptEvents(ManualClock().monotonic)
    for number in range(20):
        events.note(SecurityEvent.KEY_REFUSED, f"2001:db8:0:1::{number:x}")
    assert len(events.written) == 5


@pytest.mark.req("D49")
def test_without_a_writer_it_is_the_log_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    SecurityEvents().note(SecurityEvent.ENROLMENT_REFUSED, "203.0.113.7", reason="expired")
    told = capsys.readouterr()
    assert "security.enrolment_refused" in told.out + told.err


@pytest.mark.req("D49")
def test_each_refusal_is_an_event_of_its_kind() -> None:
    clock = ManualClock()
    events = KeptEvents(clock.monotonic)
    guard = AddressGuard(1, events, clock.monotonic)
    guard.refused(Unauthenticated("no"), "203.0.113.7", given=True)
    guard.refused(Unauthenticated("no"), "203.0.113.7", given=True)
    guard.refused(Forbidden("no", code="model_not_allowed"), "203.0.113.7", key_id="key_1")
    assert events.actions == ["security.key_refused", "security.address_limited", "security.access_denied"]
    assert events.written[1]["limit"] == 1
    assert events.written[2]["key_id"] == "key_1"
    assert events.written[2]["code"] == "model_not_allowed"


@pytest.fixture
def events() -> KeptEvents:
    return KeptEvents()


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, events: KeptEvents) -> AsyncIterator[House]:
    guard = AddressGuard(per_minute=0, events=events)
    async with (
        FakeEngine(Script(models=("fake",), tokens=2)) as engine,
        gateway(engine.url, asgi=request.param, guard=guard) as house,
    ):
        yield house


@pytest.mark.req("D49")
async def test_a_refused_key_is_an_event_without_the_key(house: House, events: KeptEvents) -> None:
    key = "sk-veryverysecret"
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {}):
        assert (await call(house.port, "POST", CHAT, headers, BODY)).status == 401
        assert (await call(house.port, "GET", "/v1/models", headers)).status == 401
    assert set(events.actions) == {"security.key_refused"}
    assert [fields["key_given"] for fields in events.written] == [True] * 4 + [False]
    assert {fields["address"] for fields in events.written} == {"127.0.0.1"}
    assert not re.search("very|secret|sk-", repr(events.written))


@pytest.mark.req("D49")
async def test_a_scope_that_a_key_lacks_is_an_event(house: House, events: KeptEvents) -> None:
    assert (await call(house.port, "GET", "/metrics", house.auth)).status == 403
    assert events.actions == ["security.access_denied"]
    assert events.written[0]["key_id"].startswith("key_")


@pytest.mark.req("D49")
async def test_a_request_that_is_served_is_no_event(house: House, events: KeptEvents) -> None:
    assert (await call(house.port, "POST", CHAT, house.auth, BODY)).status == 200
    assert (await call(house.port, "GET", "/v1/models", house.auth)).status == 200
    assert not events.seen


@contextlib.asynccontextmanager
async def denying(guard: AddressGuard, *, asgi: bool) -> AsyncIterator[int]:
    """The port of a gateway whose one key, `sk-narrow`, may use no model but `other`."""
    clock, registry, keys = ManualClock(), Registry(), KeyRing()
    keys.replace_managed({digest(b"sk-narrow"): Principal("key_narrow", models=("other",))})
    registry.upsert(Node("n", "direct", (ModelInfo("fake"),), state=NodeState.READY))
    plane = QuotaPlane(LocalControlPlane(registry, clock), MemoryLedger(MemoryJournal(), clock), clock)
    lane = TokenLane(keys, Inference(plane, {}), OriginPolicy(), guard=guard)
    app = build_app(lane=lane, registry=registry, origins=OriginPolicy(), ready=lambda: True)
    listening = bind("127.0.0.1", 0)
    listener = Listener(app, listening, ConnectionLimits(), None if asgi else lane)
    await listener.start()
    try:
        yield listening.getsockname()[1]
    finally:
        await listener.close()


@pytest.mark.req("D49")
@pytest.mark.parametrize("asgi", [False, True], ids=["token lane", "asgi lane"])
async def test_a_model_that_a_key_may_not_use_is_an_event(events: KeptEvents, asgi: bool) -> None:
    async with denying(AddressGuard(1, events), asgi=asgi) as port:
        for _ in range(2):  # a valid key is never held back
            response = await call(port, "POST", CHAT, {"x-api-key": "sk-narrow"}, BODY)
            assert response.status == 403
            assert response.error["code"] == "model_not_allowed"
    assert events.actions == ["security.access_denied"] * 2
    facts = {"address": "127.0.0.1", "key_id": "key_narrow", "code": "model_not_allowed"}
    assert facts.items() <= events.written[0].items()


def settle(house: House) -> dict[str, bytes]:
    """Keys that don't open the house (any more), by what is the matter with them."""
    expired, revoked, alike = b"sk-hr-expired", b"sk-hr-revoked", b"sk-hr-good-but-for-the-end"
    house.keys.replace_managed({digest(revoked): Principal("key_revoked")})
    house.keys.authenticate(revoked)
    house.keys.replace_managed(
        {
            digest(expired): Principal("key_expired", expires_at=1.0),
            digest(alike + b"."): Principal("key_good"),
        }
    )
    house.keys.authenticate(alike + b".")
    return {
        "none such": b"sk-none",
        "expired": expired,
        "revoked": revoked,
        "alike": alike,
        "long": b"k" * 5000,
    }


@pytest.mark.req("D49", "D45")
@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("field", ["authorization: Bearer ", "x-api-key: "], ids=["bearer", "x-api-key"])
async def test_an_answer_tells_nothing_about_a_key(house: House, method: str, path: str, field: str) -> None:
    """All keys that don't open are answered with the same bytes, but for the request's id and the date.

    Nor could the time that the answer takes tell more: a key is looked up by its SHA-256 in a dict, so what is compared are
    digests, of which a guesser can't choose a beginning; and where it expired, it has been found already, by the whole of it.
    That is how it is made, not something that could be measured here.
    """
    answers = {
        name: await raw_answer(house.port, method, path, field, key) for name, key in settle(house).items()
    }
    assert len(set(answers.values())) == 1, answers
    assert answers["expired"].startswith(b"HTTP/1.1 401 Unauthorized\r\n")


async def raw_answer(port: int, method: str, path: str, field: str, key: bytes) -> bytes:
    async with RawClient(port) as client:
        body = BODY if method == "POST" else b""
        client.send(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n{field}".encode()
            + key
            + b"\r\n\r\n"
            + body
        )
        answer = await client.closed()
    ids = re.findall(rb"req_[0-9a-f]{24}", answer)
    assert ids
    return re.sub(rb"req_[0-9a-f]{24}|(?<=date: )[^\r]*", b"", answer)
