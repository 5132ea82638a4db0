"""Without a valid key, an address can't ask without end; with one, it isn't held up by anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.control.access import digest
from headrace.domain.access import Principal
from headrace.gateway.guard import MAX_ADDRESSES, AddressGuard
from headrace.kernel.errors import Forbidden, LimitExceeded, RequestError, Unauthenticated
from headrace.testing import ManualClock
from headrace.testing.fake_engine import FakeEngine, Script
from support.events import KeptEvents
from support.house import House, gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"
BODY = b'{"model":"fake","messages":[{"role":"user","content":"hi"}]}'
WRONG = {"authorization": "Bearer sk-wrong"}
REFUSAL = Unauthenticated("Invalid API key.")


def guard_of(per_minute: int, clock: ManualClock) -> AddressGuard:
    return AddressGuard(per_minute, KeptEvents(clock.monotonic), clock.monotonic)


def limited(told: RequestError) -> LimitExceeded:
    assert isinstance(told, LimitExceeded)
    return told


@pytest.mark.req("C32")
def test_the_count_is_of_an_address_and_of_a_minute() -> None:
    clock = ManualClock()
    clock.advance(60.0 - clock.monotonic() % 60.0 + 15.0)
    guard = guard_of(60, clock)
    assert all(guard.refused(REFUSAL, "203.0.113.7") is REFUSAL for _ in range(60))
    refusal = limited(guard.refused(REFUSAL, "203.0.113.7"))
    assert refusal.code == "rate_limit_exceeded"
    assert refusal.retry_after_s == pytest.approx(45.0)
    assert "60" in refusal.message
    assert guard.refused(REFUSAL, "203.0.113.8") is REFUSAL
    clock.advance(44.0)
    assert limited(guard.refused(REFUSAL, "203.0.113.7")).retry_after_s == pytest.approx(1.0)
    clock.advance(1.5)
    assert guard.refused(REFUSAL, "203.0.113.7") is REFUSAL
    assert (guard.refusals, guard.limited) == (64, 2)


@pytest.mark.req("C32")
def test_who_has_one_address_of_an_ipv6_network_has_them_all() -> None:
    guard = guard_of(1, ManualClock())
    assert guard.refused(REFUSAL, "2001:db8:0:1::1") is REFUSAL
    limited(guard.refused(REFUSAL, "2001:db8:0:1:ffff::2"))
    assert guard.refused(REFUSAL, "2001:db8:0:2::1") is REFUSAL


@pytest.mark.req("D45")
def test_memory_has_a_bound_and_whoever_is_beyond_it_shares_one_count() -> None:
    clock = ManualClock()
    guard = guard_of(2, clock)
    for number in range(MAX_ADDRESSES):
        guard.refused(REFUSAL, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert guard.refused(REFUSAL, "203.0.113.1") is REFUSAL
    assert guard.refused(REFUSAL, "203.0.113.2") is REFUSAL
    limited(guard.refused(REFUSAL, "203.0.113.3"))
    assert guard.refused(REFUSAL, "10.0.0.0") is REFUSAL  # who was counted alone still is
    assert guard.addresses == MAX_ADDRESSES + 1
    clock.advance(60.0)
    guard.refused(REFUSAL, "203.0.113.3")
    assert guard.addresses == 1


def test_zero_is_no_limit_and_remembers_nobody() -> None:
    guard = guard_of(0, ManualClock())
    assert all(guard.refused(REFUSAL, "203.0.113.7") is REFUSAL for _ in range(1000))
    assert guard.addresses == 0


def test_other_errors_pass_uncounted() -> None:
    guard = guard_of(1, ManualClock())
    for error in (Forbidden("no"), RequestError("bad")):
        assert [guard.refused(error, "203.0.113.7") for _ in range(3)] == [error] * 3
    assert guard.refusals == 0


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    guard = AddressGuard(per_minute=3, events=KeptEvents())
    async with (
        FakeEngine(Script(models=("fake",), tokens=2)) as engine,
        gateway(engine.url, asgi=request.param, guard=guard) as house,
    ):
        yield house


@pytest.mark.req("C32", "D45")
async def test_beyond_the_limit_a_wrong_key_is_told_to_wait_and_a_right_one_is_served(house: House) -> None:
    for headers in ({}, WRONG, WRONG):
        response = await call(house.port, "POST", CHAT, headers, BODY)
        assert response.status == 401
        assert response.error["code"] == "invalid_api_key"
    response = await call(house.port, "POST", CHAT, WRONG, BODY)
    assert response.status == 429
    assert response.error["code"] == "rate_limit_exceeded"
    assert response.error["type"] == "rate_limit_error"
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert "www-authenticate" not in response.headers
    assert (await call(house.port, "POST", CHAT, house.auth, BODY)).status == 200
    assert (await call(house.port, "GET", "/v1/models", house.auth)).status == 200


@pytest.mark.req("C32")
async def test_all_paths_count_but_those_that_need_no_key(house: House) -> None:
    exempt = [("GET", "/health"), ("GET", "/v1/health"), ("GET", "/version"), ("POST", "/health")]
    for _ in range(2):
        for method, path in exempt:
            assert (await call(house.port, method, path)).status == (405 if method == "POST" else 200)
    assert (await call(house.port, "GET", "/v1/models")).status == 401
    assert (await call(house.port, "GET", "/nowhere")).status == 404
    assert (await call(house.port, "PUT", "/v1/models", WRONG)).status == 405
    for method, path in (("GET", "/nowhere"), ("PUT", "/v1/models"), ("GET", "/v1/models"), ("POST", CHAT)):
        assert (await call(house.port, method, path)).status == 429
    for method, path in exempt[:-1]:
        assert (await call(house.port, method, path)).status == 200
    assert (await call(house.port, "GET", "/nowhere", house.auth)).status == 404
    assert (await call(house.port, "PUT", "/v1/models", house.auth)).status == 405


@pytest.mark.req("C32")
async def test_a_browsers_preflight_isnt_counted(house: House) -> None:
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    for _ in range(5):
        assert (await call(house.port, "OPTIONS", CHAT, headers)).status == 200
    assert house.lane.guard.refusals == 0


@pytest.mark.req("C32")
async def test_a_kept_connection_counts_each_request(house: House) -> None:
    async with RawClient(house.port) as client:
        statuses = []
        for headers in [house.auth] * 3 + [WRONG] * 5 + [house.auth] * 2:
            client.request("POST", CHAT, headers, BODY)
            statuses.append((await client.response()).status)
    assert statuses == [200] * 3 + [401] * 3 + [429] * 2 + [200] * 2


@pytest.mark.req("C32")
async def test_a_head_that_is_known_counts_once_its_key_is_gone(house: House) -> None:
    house.keys.replace_managed({digest(b"sk-soon-gone"): Principal("key_soon_gone")})
    async with RawClient(house.port) as client:
        statuses = []
        for number in range(6):
            if number == 2:
                house.keys.replace_managed({})
            client.request("POST", CHAT, {"authorization": "Bearer sk-soon-gone"}, BODY)
            statuses.append((await client.response()).status)
    assert statuses == [200, 200, 401, 401, 401, 429]


def test_the_limit_of_the_design_is_the_default() -> None:
    assert AddressGuard().per_minute == 60
