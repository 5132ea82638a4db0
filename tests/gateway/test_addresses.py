"""Where a request comes from, whatever anybody says about it."""

from __future__ import annotations

import asyncio
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from headrace.gateway.addresses import MAX_HOPS, Addresses
from headrace.gateway.gate import ConnectionLimits, Gate
from headrace.gateway.guard import AddressGuard
from headrace.gateway.protocol import GatewayProtocol
from headrace.gateway.token_lane import TokenLane
from support.events import KeptEvents
from support.house import gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"
PROXIES = ("10.0.0.0/8", "2001:db8:1::/48", "192.0.2.7")


@pytest.mark.req("C32")
@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.1", b"", "198.51.100.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("10.0.0.1", b"203.0.113.7,192.0.2.7,  10.9.9.9 ", "203.0.113.7"),
        ("10.0.0.1", b"1.1.1.1, 203.0.113.7", "203.0.113.7"),
        ("192.0.2.7", b"203.0.113.7", "203.0.113.7"),
        ("192.0.2.8", b"203.0.113.7", "192.0.2.8"),
        ("10.0.0.1", b"10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", b"unknown", "10.0.0.1"),
        ("10.0.0.1", b",", "10.0.0.1"),
        ("10.0.0.1", b"1.1.1.1, garbage, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", b"203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", b"[2001:DB8:2::1]:4711", "2001:db8:2::1"),
        ("10.0.0.1", b"2001:db8:2:0::1", "2001:db8:2::1"),
        ("10.0.0.1", b"203.0.113.7, 2001:db8:1::5", "203.0.113.7"),
        ("::ffff:10.0.0.1", b"::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", b"203.0.113.7", "fe80::1"),
        ("10.0.0.1", b"203.0.113.07", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("unix", b"203.0.113.7", "unix"),
        ("nonsense", b"203.0.113.7", "nonsense"),
    ],
)
def test_whom_a_request_comes_from(peer: str, forwarded: bytes, client: str) -> None:
    assert Addresses(PROXIES).client(peer, forwarded) == client


@pytest.mark.req("C32")
@given(written=st.binary(max_size=300))
def test_what_a_client_writes_never_stands_for_its_address(written: bytes) -> None:
    behind_proxy = written + b", 203.0.113.7"
    assert Addresses(PROXIES).client("10.0.0.1", behind_proxy) == "203.0.113.7"
    assert Addresses(PROXIES).client("203.0.113.7", written) == "203.0.113.7"


def test_a_row_of_proxies_without_end_isnt_read_to_its_end() -> None:
    hops = [f"10.0.0.{number}" for number in range(100)]
    forwarded = ", ".join(["203.0.113.7", *hops]).encode()
    assert Addresses(PROXIES).client("10.1.0.0", forwarded) == hops[-MAX_HOPS]


def test_unix_peers_speak_for_others_only_where_they_are_trusted() -> None:
    assert Addresses(["unix"]).client("unix", b"203.0.113.7") == "203.0.113.7"
    assert Addresses(["unix"]).client("unix") == "unix"


@pytest.mark.parametrize("word", ["10.0.0.0/33", "proxy.example", "", "10.0.0"])
def test_what_is_no_network_isnt_trusted(word: str) -> None:
    with pytest.raises(ValueError, match="IPv4 or IPv6"):
        Addresses([word])


@pytest.mark.req("D49")
def test_a_forged_header_is_noted() -> None:
    events = KeptEvents()
    addresses = Addresses(PROXIES, events)
    for number in range(20):
        assert addresses.client("198.51.100.1", str(IPv4Address(number)).encode()) == "198.51.100.1"
    addresses.client("10.0.0.1", b"203.0.113.7")
    addresses.client("198.51.100.1")
    assert events.actions == ["security.forwarded_forged"] * 5
    assert events.written[0]["address"] == "198.51.100.1"


@pytest.mark.req("C32", "D45")
@pytest.mark.parametrize("asgi", [False, True], ids=["token lane", "asgi lane"])
async def test_behind_a_trusted_proxy_each_client_counts_alone(asgi: bool) -> None:
    guard = AddressGuard(per_minute=1, events=KeptEvents())
    statuses = []
    async with (
        gateway(asgi=asgi, guard=guard, addresses=Addresses(["127.0.0.1"])) as house,
        RawClient(house.port) as client,  # one connection, as proxies keep it
    ):
        for address in ("203.0.113.7", "203.0.113.7", "203.0.113.8", "203.0.113.7", "203.0.113.8"):
            client.request("POST", CHAT, {"x-forwarded-for": address}, b"{}")
            statuses.append((await client.response()).status)
    assert statuses == [401, 429, 401, 429, 429]


@pytest.mark.req("C32", "D49")
@pytest.mark.parametrize("asgi", [False, True], ids=["token lane", "asgi lane"])
async def test_a_forged_header_wins_nothing(asgi: bool) -> None:
    events = KeptEvents()
    guard = AddressGuard(per_minute=1, events=events)
    async with gateway(asgi=asgi, guard=guard, addresses=Addresses(PROXIES, events)) as house:
        statuses = [
            (await call(house.port, "POST", CHAT, {"x-forwarded-for": f"203.0.113.{number}"}, b"{}")).status
            for number in range(3)
        ]
    assert statuses == [401, 429, 429]
    assert "security.forwarded_forged" in events.actions
    assert {fields["address"] for fields in events.written} == {"127.0.0.1"}


@pytest.mark.req("C32")
@pytest.mark.parametrize("line", [f"POST {CHAT}", "GET /v1/models"], ids=["token lane", "asgi lane"])
async def test_several_fields_are_one(line: str) -> None:
    guard = AddressGuard(per_minute=1, events=KeptEvents())
    statuses = []
    async with (
        gateway(guard=guard, addresses=Addresses(["127.0.0.1"])) as house,
        RawClient(house.port) as client,
    ):
        for first in ("1.1.1.1", "2.2.2.2"):
            client.send(
                f"{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n"
                f"X-Forwarded-For: {first}\r\nx-forwarded-for: 203.0.113.7\r\n\r\n".encode()
            )
            statuses.append((await client.response()).status)
    assert statuses == [401, 429]


async def test_a_client_on_a_unix_socket_has_an_address(tmp_path: Path) -> None:
    events = KeptEvents()
    async with gateway(guard=AddressGuard(per_minute=1, events=events)) as house:
        path = tmp_path / "socket"
        server = await _serve_on(path, house.lane)
        try:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode())
            async with asyncio.timeout(30):
                assert b"401" in await reader.readline()
            writer.transport.abort()
        finally:
            server.close()
    assert [fields["address"] for fields in events.written] == ["unix"]


async def _serve_on(path: Path, lane: TokenLane) -> asyncio.AbstractServer:
    async def nothing(_scope: object, _receive: object, _send: object) -> None:
        raise AssertionError("the token lane answers")

    config = Config(nothing, interface="asgi3", lifespan="off", ws="none", log_config=None)
    config.load()
    protocol = partial(GatewayProtocol, config, ServerState(), {}, Gate(ConnectionLimits()), lane)
    return await asyncio.get_running_loop().create_unix_server(protocol, path)
