"""`/admin` over real HTTP: who may use it, and what it does to users and keys."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from headrace.control.access import digest
from headrace.domain.quota import Measure
from headrace.ports.ledger import Charge, Verdict
from headrace.ports.records import ManagedKey
from headrace.testing import FakeEngine, Script
from support.administration import ADMIN_KEY, NOON, Office, administered, record
from support.house import KEY, House, gateway
from support.raw import RawClient, RawResponse, call
from support.waiting import until

ROUTES = [
    ("GET", "/admin/users"),
    ("POST", "/admin/users"),
    ("GET", "/admin/users/ann"),
    ("PATCH", "/admin/users/ann"),
    ("DELETE", "/admin/users/ann"),
    ("GET", "/admin/users/ann/quota"),
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("GET", "/admin/keys/KEY"),
    ("PATCH", "/admin/keys/KEY"),
    ("DELETE", "/admin/keys/KEY"),
    ("GET", "/admin/usage?by=user"),
    ("GET", "/admin/usage?user=ann"),
    ("GET", "/admin/recent"),
    ("GET", "/admin/recent?user=ann"),
]


@dataclass
class Desk:
    """Somebody at an administered gateway."""

    house: House
    office: Office

    async def ask(
        self, method: str, path: str, body: object = None, *, key: str = ADMIN_KEY, status: int = 200
    ) -> Any:
        """The JSON that comes."""
        answer = await self.raw(method, path, body, key=key)
        assert answer.status == status, answer.body
        return answer.error if status >= 400 else answer.json

    async def raw(self, method: str, path: str, body: object = None, *, key: str = ADMIN_KEY) -> RawResponse:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body) if body is not None else None
        return await call(self.house.port, method, path, {"authorization": f"Bearer {key}"}, data)

    async def opens(self, key: str, model: str = "fake") -> int:
        """The status of an inference request with *key*."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return (await self.raw("POST", "/v1/chat/completions", body, key=key)).status


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    office = Office()
    async with (
        FakeEngine(Script(models=("fake", "llama-3", "other"), tokens=2)) as engine,
        administered(engine.url, office=office) as house,
    ):
        yield Desk(house, office)


def key_number(number: int, user_id: str = "") -> ManagedKey:
    """One of many, each made a second after the one before it, and of a user of its own."""
    return ManagedKey(
        key_id=f"key_{number:04}",
        prefix=f"sk-{number}",
        digest=b"%d" % number,
        user_id=user_id or f"user-{number:04}",
        created_at=NOON + number,
    )


class TestWhoMay:
    @pytest.mark.req("E27", "C29", "E25")
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    async def test_an_inference_key_sees_and_changes_nothing_not_even_its_own(
        self, desk: Desk, method: str, path: str
    ) -> None:
        """Another user's key, the user's own, and one of the settings."""
        own = await desk.ask("POST", "/admin/keys", {"user_id": "ann"}, status=201)
        others = await desk.ask("POST", "/admin/keys", {"user_id": "bob"}, status=201)
        desk.office.records.add(record(1, client="10.9.8.7"))
        before = (await desk.office.accounts.users(), await desk.office.accounts.keys())
        body: object = (
            {"user_id": "eve"} if method == "POST" else {"name": "x"} if method == "PATCH" else None
        )
        for key in (own["key"], others["key"], KEY):
            answer = await desk.raw(method, path.replace("KEY", own["key_id"]), body, key=key)
            assert (answer.status, answer.error["code"]) == (403, "forbidden")
            assert b"10.9.8.7" not in answer.body
            assert own["prefix"].encode() not in answer.body
        assert (await desk.office.accounts.users(), await desk.office.accounts.keys()) == before

    @pytest.mark.req("E27", "C29")
    async def test_who_is_there_is_not_told_to_an_inference_key(self, desk: Desk) -> None:
        """What exists and what doesn't gets the same answer."""
        await desk.ask("POST", "/admin/users", {"user_id": "ann"}, status=201)
        there, absent = [await desk.raw("GET", f"/admin/users/{user}", key=KEY) for user in ("ann", "nobody")]
        assert (there.status, there.body) == (absent.status, absent.body)

    @pytest.mark.req("C29")
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    async def test_without_a_valid_key_nothing_opens(self, desk: Desk, method: str, path: str) -> None:
        body: object = {} if method in ("POST", "PATCH") else None
        for key in ("", "sk-wrong"):
            answer = await desk.raw(method, path, body, key=key)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"

    async def test_without_an_administration_there_are_no_routes(self) -> None:
        async with gateway() as house:
            answer = await call(house.port, "GET", "/admin/users", house.auth)
            assert (answer.status, answer.error["code"]) == (404, "not_found")

    async def test_a_wrong_method_names_the_right_ones(self, desk: Desk) -> None:
        answer = await desk.raw("PUT", "/admin/users/ann", {})
        assert answer.status == 405
        assert {"GET", "PATCH", "DELETE"} <= set(answer.headers["allow"].split(", "))

    async def test_head_is_get_without_its_body(self, desk: Desk) -> None:
        async with RawClient(desk.house.port) as client:
            client.request("HEAD", "/admin/users", {"authorization": f"Bearer {ADMIN_KEY}"})
            assert (await client.head())[0] == 200

    async def test_a_client_that_leaves_in_its_body_changes_nothing_and_is_no_crash(self, desk: Desk) -> None:
        with capture_logs() as logs:
            async with RawClient(desk.house.port) as client:
                head = f"POST /admin/users HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
                client.send(head.encode() + b'content-length: 99\r\n\r\n{"user_id": "ann"}')
                await desk.ask("GET", "/admin/users")
            await until(lambda: desk.house.listener.connections == 0)
        assert not [log for log in logs if log["log_level"] == "error"]
        assert await desk.office.accounts.users() == []

    async def test_a_managed_key_with_the_scope_admin_may(self, desk: Desk) -> None:
        made = await desk.ask("POST", "/admin/keys", {"user_id": "root", "scopes": ["admin"]}, status=201)
        answer = await desk.raw("GET", "/admin/users", key=made["key"])
        assert answer.status == 200
        assert answer.headers["cache-control"] == "no-store"


class TestUsers:
    async def test_from_its_beginning_to_its_end(self, desk: Desk) -> None:
        given = {"user_id": "ann", "name": "Ann Ö", "email": "a@b.c", "limits": {"requests_per_day": 7}}
        made = await desk.ask("POST", "/admin/users", given, status=201)
        assert made["created_at"] > 1_700_000_000
        assert (made["user_id"], made["name"], made["email"]) == ("ann", "Ann Ö", "a@b.c")
        assert (made["active"], made["tier"], made["limits"]["requests_per_day"]) == (True, "", 7)
        assert await desk.ask("GET", "/admin/users/ann") == made
        assert await desk.ask("GET", "/admin/users") == {"object": "list", "data": [made], "has_more": False}
        changed = await desk.ask("PATCH", "/admin/users/ann", {"name": "A", "limits": {"concurrency": 2}})
        limits = {**made["limits"], "concurrency": 2}
        effective = {name: limit or 0 for name, limit in limits.items()}
        assert changed == {**made, "name": "A", "limits": limits, "effective_limits": effective}
        assert await desk.ask("PATCH", "/admin/users/ann", {}) == changed
        assert await desk.ask("DELETE", "/admin/users/ann") == {"user_id": "ann", "deleted": True}
        for method in ("GET", "PATCH", "DELETE"):
            nothing: object = {} if method == "PATCH" else None
            refused = await desk.ask(method, "/admin/users/ann", nothing, status=404)
            assert refused["code"] == "not_found"

    async def test_the_limits_of_its_tier_hold_where_it_has_none(self, desk: Desk) -> None:
        given = {"user_id": "ann", "tier": "gold", "limits": {"requests_per_day": 7}}
        effective = (await desk.ask("POST", "/admin/users", given, status=201))["effective_limits"]
        assert (effective["requests_per_day"], effective["tokens_per_month"]) == (7, 5000)

    @pytest.mark.req("E19")
    async def test_zero_is_no_limit_over_the_tiers_and_null_is_the_tiers_again(self, desk: Desk) -> None:
        given = {"user_id": "ann", "tier": "gold", "limits": {"tokens_per_month": 0}}
        made = await desk.ask("POST", "/admin/users", given, status=201)
        assert (made["limits"]["tokens_per_month"], made["limits"]["requests_per_day"]) == (0, None)
        assert (
            made["effective_limits"]["tokens_per_month"],
            made["effective_limits"]["requests_per_day"],
        ) == (0, 100)
        windows = (await desk.ask("GET", "/admin/users/ann/quota"))["windows"]
        assert [(window["measure"], window["limit"]) for window in windows] == [("requests", 100)]
        changes = {"limits": {"tokens_per_month": None, "requests_per_day": 0}}
        changed = await desk.ask("PATCH", "/admin/users/ann", changes)
        assert (changed["limits"]["tokens_per_month"], changed["limits"]["requests_per_day"]) == (None, 0)
        windows = (await desk.ask("GET", "/admin/users/ann/quota"))["windows"]
        assert [(window["measure"], window["limit"]) for window in windows] == [("tokens", 5000)]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "user_id"),
            ({"user_id": 5}, "user_id"),
            ({"user_id": ""}, "user_id"),
            ({"user_id": "x" * 51}, "user_id"),
            ({"user_id": "a/b"}, "user_id"),
            ({"user_id": ".."}, "user_id"),
            ({"user_id": "a\n"}, "user_id"),
            ({"user_id": "a", "nmae": "x"}, "nmae"),
            ({"user_id": "a", "name": "x\0"}, "name"),
            ({"user_id": "a", "name": "\x1b[2J"}, "name"),
            ({"user_id": "a", "active": "yes"}, "active"),
            ({"user_id": "a", "active": 1}, "active"),
            ({"user_id": "a", "tier": "platinum"}, "tier"),
            ({"user_id": "a", "limits": {"concurrency": -1}}, "limits.concurrency"),
            ({"user_id": "a", "limits": {"concurrency": 2**60}}, "limits.concurrency"),
            ({"user_id": "a", "limits": {"concurrency": 1.5}}, "limits.concurrency"),
            ({"user_id": "a", "limits": {"concurrency": "1"}}, "limits.concurrency"),
            ({"user_id": "a", "limits": {"rpm": 1}}, "limits.rpm"),
            ({"user_id": "a", "created_at": 1}, "created_at"),
            ([], None),
            (b"{", None),
            (b'{"user_id": "\xff"}', None),
            (b"[" * 100_000, None),
        ],
    )
    async def test_what_is_wrong_is_named_and_nothing_is_kept(
        self, desk: Desk, body: object, param: str | None
    ) -> None:
        error = await desk.ask("POST", "/admin/users", body, status=400)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert await desk.office.accounts.users() == []

    async def test_there_is_one_of_each_name(self, desk: Desk) -> None:
        await desk.ask("POST", "/admin/users", {"user_id": "ann", "name": "first"}, status=201)
        error = await desk.ask("POST", "/admin/users", {"user_id": "ann"}, status=400)
        assert (error["code"], error["param"]) == ("already_exists", "user_id")
        assert (await desk.ask("GET", "/admin/users/ann"))["name"] == "first"

    async def test_an_inactive_ones_keys_open_nothing(self, desk: Desk) -> None:
        key = (await desk.ask("POST", "/admin/keys", {"user_id": "ann"}, status=201))["key"]
        assert await desk.opens(key) == 200
        await desk.ask("PATCH", "/admin/users/ann", {"active": False})
        assert await desk.opens(key) == 401
        await desk.ask("PATCH", "/admin/users/ann", {"active": True})
        assert await desk.opens(key) == 200
        await desk.ask("DELETE", "/admin/users/ann")
        assert await desk.opens(key) == 401

    async def test_while_the_database_is_away_it_is_said_and_keys_go_on(self, desk: Desk) -> None:
        key = (await desk.ask("POST", "/admin/keys", {"user_id": "ann"}, status=201))["key"]
        desk.office.accounts.failing = True
        for method, path, body in (
            ("GET", "/admin/users", None),
            ("POST", "/admin/users", {"user_id": "b"}),
        ):
            assert (await desk.ask(method, path, body, status=503))["code"] == "unavailable"
        assert await desk.opens(key) == 200

    async def test_changes_at_the_same_time_are_all_kept(self, desk: Desk) -> None:
        await desk.ask("POST", "/admin/users", {"user_id": "ann"}, status=201)
        names = list(msgspec.structs.asdict((await desk.office.book.user("ann")).limits))
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(names, 1):
                group.create_task(desk.ask("PATCH", "/admin/users/ann", {"limits": {name: number}}))
        assert list((await desk.ask("GET", "/admin/users/ann"))["limits"].values()) == [1, 2, 3, 4, 5, 6, 7]


class TestPages:
    @pytest.mark.parametrize(("path", "name"), [("/admin/users", "user_id"), ("/admin/keys", "key_id")])
    async def test_a_long_list_comes_in_pages(self, desk: Desk, path: str, name: str) -> None:
        for number in range(450):
            await desk.office.accounts.save_key(key_number(number))
        seen: list[str] = []
        after, pages, more = "", 0, True
        while more:
            told = await desk.ask("GET", f"{path}?after={after}")
            assert told["object"] == "list"
            seen += [entry[name] for entry in told["data"]]
            after, more, pages = seen[-1], told["has_more"], pages + 1
        assert (len(seen), pages) == (450, 3)
        assert seen == sorted(set(seen))
        assert [entry[name] for entry in (await desk.ask("GET", path))["data"]] == seen[:200]
        told = await desk.ask("GET", f"{path}?limit=1000")
        assert ([entry[name] for entry in told["data"]], told["has_more"]) == (seen, False)
        exact = await desk.ask("GET", f"{path}?limit=50&after={seen[399]}")
        assert ([entry[name] for entry in exact["data"]], exact["has_more"]) == (seen[400:], False)
        behind = await desk.ask("GET", f"{path}?after={seen[-1]}")
        assert behind == {"object": "list", "data": [], "has_more": False}

    async def test_those_of_a_user_come_in_pages_too(self, desk: Desk) -> None:
        for number in range(6):
            await desk.office.accounts.save_key(key_number(number, "even" if number % 2 == 0 else "odd"))
        first = await desk.ask("GET", "/admin/keys?user=odd&limit=2")
        assert ([key["key_id"] for key in first["data"]], first["has_more"]) == (
            ["key_0001", "key_0003"],
            True,
        )
        rest = await desk.ask("GET", "/admin/keys?user=odd&limit=2&after=key_0003")
        assert ([key["key_id"] for key in rest["data"]], rest["has_more"]) == (["key_0005"], False)

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("users?limit=0", "limit"),
            ("users?limit=1001", "limit"),
            ("users?limit=ten", "limit"),
            ("users?after=a&after=b", "after"),
            ("users?before=ann", "before"),
            ("keys?limit=0", "limit"),
            ("keys?limit=1001", "limit"),
            ("keys?after=key_none", "after"),
            ("keys?users=ann", "users"),
        ],
    )
    async def test_what_is_wrong_is_named(self, desk: Desk, query: str, param: str) -> None:
        assert (await desk.ask("GET", f"/admin/{query}", status=400))["param"] == param


class TestQuota:
    async def test_the_windows_of_a_user_and_of_its_keys_are_told(self, desk: Desk) -> None:
        limits = {"requests_per_minute": 5, "concurrency": 2}
        given = {"user_id": "ann", "tier": "gold", "limits": limits}
        await desk.ask("POST", "/admin/users", given, status=201)
        key = await desk.ask(
            "POST", "/admin/keys", {"user_id": "ann", "limits": {"tokens_per_day": 9}}, status=201
        )
        gone = {"user_id": "ann", "limits": {"tokens_per_day": 8}}
        revoked = await desk.ask("POST", "/admin/keys", gone, status=201)
        await desk.ask("DELETE", f"/admin/keys/{revoked['key_id']}")
        principal = desk.house.keys.authenticate(key["key"].encode())
        heard: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        charges = [Charge(window, 4) for window in principal.tokens]
        charges += [Charge(window, 1) for window in principal.entry if window.measure is Measure.CONCURRENCY]
        desk.office.ledger.reserve("r", charges, heard.set_result)
        assert (await heard).granted
        told = await desk.ask("GET", "/admin/users/ann/quota")
        assert (told["user_id"], told["tier"], told["limits"]["requests_per_day"]) == ("ann", "gold", 100)
        stands = {(w["subject"], w["measure"], w["period"]): w for w in told["windows"]}
        assert set(stands) == {
            ("user:ann", "requests", "minute"),
            ("user:ann", "requests", "day"),
            ("user:ann", "tokens", "month"),
            ("user:ann", "concurrency", "now"),
            (f"key:{key['key_id']}", "tokens", "day"),
        }
        tokens = stands[f"key:{key['key_id']}", "tokens", "day"]
        assert (tokens["limit"], tokens["used"], tokens["remaining"]) == (9, 4, 5)
        assert tokens["resets_at"] % 86_400 == 0
        assert stands["user:ann", "concurrency", "now"]["resets_at"] is None
        assert stands["user:ann", "concurrency", "now"]["used"] == 1

    async def test_one_without_limits_has_no_windows(self, desk: Desk) -> None:
        await desk.ask("POST", "/admin/users", {"user_id": "ann"}, status=201)
        assert (await desk.ask("GET", "/admin/users/ann/quota"))["windows"] == []
        await desk.ask("GET", "/admin/users/bob/quota", status=404)

    async def test_a_ledger_that_is_not_there_is_said(self) -> None:
        office = Office()
        async with gateway(admin=office.over) as house:  # nobody opened the ledger
            desk = Desk(house, office)
            await desk.ask("POST", "/admin/users", {"user_id": "ann", "tier": "gold"}, status=201)
            error = await desk.ask("GET", "/admin/users/ann/quota", status=503)
            assert error["code"] == "unavailable"


class TestKeys:
    async def test_from_its_beginning_to_its_end(self, desk: Desk) -> None:
        given = {
            "user_id": "ann",
            "name": "laptop",
            "scopes": ["inference"],
            "models": ["llama-*", "fake"],
            "limits": {"requests_per_minute": 60},
            "priority": 1,
            "expires_at": 4_000_000_000,
        }
        made = await desk.ask("POST", "/admin/keys", given, status=201)
        text = made.pop("key")
        assert {**made, **given, "limits": made["limits"]} == made
        assert made["limits"]["requests_per_minute"] == 60
        assert text.startswith(made["prefix"])
        for name in (made["key_id"], made["prefix"]):
            assert await desk.ask("GET", f"/admin/keys/{name}") == made
        assert await desk.ask("GET", "/admin/keys") == {"object": "list", "data": [made], "has_more": False}
        assert (await desk.ask("GET", "/admin/keys?user=bob"))["data"] == []
        changes = {"name": "desk", "models": [], "priority": -1, "expires_at": None, "scopes": ["admin"]}
        changed = await desk.ask("PATCH", f"/admin/keys/{made['prefix']}", changes)
        assert changed == {**made, **changes}
        revoked = await desk.ask("DELETE", f"/admin/keys/{made['key_id']}")
        assert revoked["revoked_at"] >= made["created_at"]
        assert await desk.ask("DELETE", f"/admin/keys/{made['key_id']}") == revoked
        later = await desk.ask("PATCH", f"/admin/keys/{made['key_id']}", {"name": "gone"})
        assert later["revoked_at"] == revoked["revoked_at"]
        await desk.ask("GET", "/admin/keys/nowhere", status=404)

    @pytest.mark.req("C29", "E25")
    async def test_what_is_changed_is_heeded_by_the_next_request(self, desk: Desk) -> None:
        made = await desk.ask("POST", "/admin/keys", {"user_id": "ann"}, status=201)
        key, path = made["key"], f"/admin/keys/{made['key_id']}"
        assert await desk.opens(key) == 200
        await desk.ask("PATCH", path, {"models": ["llama-*"]})
        principal = desk.house.keys.authenticate(key.encode())
        assert (principal.may_use("llama-3"), principal.may_use("fake")) == (True, False)
        await desk.ask("PATCH", path, {"limits": {"tokens_per_day": 5}, "priority": 1})
        principal = desk.house.keys.authenticate(key.encode())
        assert [window.limit for window in principal.tokens] == [5]
        await desk.ask("DELETE", path)
        assert await desk.opens(key) == 401

    @pytest.mark.req("C29")
    async def test_neither_text_nor_digest_is_ever_told_again(self, desk: Desk) -> None:
        made = await desk.ask("POST", "/admin/keys", {"user_id": "ann"}, status=201)
        hashed = digest(made["key"].encode())
        secrets = [made["key"].encode(), hashed, hashed.hex().encode(), base64.b64encode(hashed)]
        path = f"/admin/keys/{made['key_id']}"
        for method, where, body in (
            ("GET", "/admin/keys", None),
            ("GET", path, None),
            ("PATCH", path, {"name": "x"}),
            ("GET", "/admin/users", None),
            ("GET", "/admin/users/ann/quota", None),
            ("DELETE", path, None),
        ):
            answer = await desk.raw(method, where, body)
            assert answer.status == 200
            assert not [secret for secret in secrets if secret in answer.body]
            assert b"digest" not in answer.body

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "user_id"),
            ({"user_id": "a", "scopes": ["root"]}, "scopes[0]"),
            ({"user_id": "a", "scopes": []}, "scopes"),
            ({"user_id": "a", "models": "llama"}, "models"),
            ({"user_id": "a", "models": [""]}, "models[0]"),
            ({"user_id": "a", "priority": 2}, "priority"),
            ({"user_id": "a", "expires_at": "soon"}, "expires_at"),
            ({"user_id": "a", "expires_at": 1e300}, "expires_at"),
            ({"user_id": "a", "expires_at": 1_000_000_000}, "expires_at"),
            ({"user_id": "a", "digest": "x"}, "digest"),
            ({"user_id": "a", "key": "sk-mine"}, "key"),
        ],
    )
    async def test_what_is_wrong_is_named_and_nothing_is_kept(
        self, desk: Desk, body: object, param: str
    ) -> None:
        assert (await desk.ask("POST", "/admin/keys", body, status=400))["param"] == param
        assert await desk.office.accounts.keys() == []

    async def test_a_body_has_its_bounds_and_its_type(self, desk: Desk) -> None:
        await desk.ask("POST", "/admin/keys", b" " * 300_000, status=413)
        auth = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "text/plain"}
        assert (await call(desk.house.port, "POST", "/admin/keys", auth, b"{}")).status == 415
