"""Users, keys and quotas from the command line, at a real gateway."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from headrace.cli import keys
from headrace.cli.office import find_gateway
from headrace.control.access import FIRST_KEY_FILE
from headrace.domain.access import Scope
from headrace.ports.records import ManagedKey
from headrace.testing import Script
from support.administration import ADMIN_KEY, AdministeredHouse
from support.command_line import Engine, Result, run_apart
from support.house import KEY

Command = Callable[..., Result]
Serve = Callable[[Script], Engine]


@pytest.fixture
def house(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdministeredHouse]:
    """A gateway with an administration, which the variables name."""
    with AdministeredHouse(serve(Script(models=("fake",), tokens=2)).url) as house:
        monkeypatch.setenv("HEADRACE_URL", house.url)
        monkeypatch.setenv("HEADRACE_API_KEY", ADMIN_KEY)
        yield house


@pytest.fixture
def many(house: AdministeredHouse) -> int:
    """So many keys, each of a user of its own; every tenth is revoked."""
    for number in range(2500):
        revoked_at = 1_800_000_000.0 if number % 10 == 0 else None
        key = ManagedKey(
            key_id=f"key_{number:04}",
            prefix=f"sk-{number}",
            digest=b"%d" % number,
            user_id=f"user-{number:04}",
            created_at=float(number),
            revoked_at=revoked_at,
        )
        house.do(partial(house.office.accounts.save_key, key))
    return 2500


class TestPages:
    """Of what the gateway tells in parts, a command shows the whole."""

    def test_all_keys_are_listed(self, headrace: Command, many: int) -> None:
        told = headrace("key", "list", "--all", "--json").json()
        assert [key["key_id"] for key in told] == [f"key_{number:04}" for number in range(many)]
        assert len(headrace("key", "list").out.splitlines()) == 1 + many - many // 10
        told = headrace("key", "list", "--user", "user-1234", "--json").json()
        assert [key["key_id"] for key in told] == ["key_1234"]

    def test_all_users_are_listed(self, headrace: Command, many: int) -> None:
        told = headrace("user", "list", "--json").json()
        assert [user["user_id"] for user in told] == [f"user-{number:04}" for number in range(many)]


class TestKeys:
    @pytest.mark.req("C29", "E25")
    def test_a_key_from_its_creation_until_it_is_revoked(
        self, headrace: Command, house: AdministeredHouse
    ) -> None:
        made = headrace("key", "create", "--user", "ann", "--name", "laptop", "--json").json()
        assert headrace("chat", "-m", "fake", "--key", made["key"], "hello").out == "tok0 tok1\n"
        assert headrace("key", "show", made["prefix"], "--json").json()["name"] == "laptop"
        revoked = headrace("key", "revoke", made["key_id"])
        assert (revoked.status, revoked.out) == (0, f"{made['key_id']} ({made['prefix']}…) is revoked.\n")
        refused = headrace("chat", "-m", "fake", "--key", made["key"], "hello")
        assert (refused.status, refused.err) == (
            1,
            "headrace: Invalid API key. Give a key with --key or HEADRACE_API_KEY.\n",
        )

    def test_it_is_shown_to_a_person_once(self, headrace: Command, house: AdministeredHouse) -> None:
        made = headrace("key", "create", "--user", "ann")
        lines = made.out.splitlines()
        text = lines[0].removeprefix("key").strip()
        assert text.startswith("sk-hr-")
        assert lines[-1] == "Keep it now: it can't be shown again."
        assert made.err == ""
        prefix = text[:11]
        for arguments in (["list"], ["list", "--json"], ["show", prefix], ["set", prefix, "--name", "x"]):
            told = headrace("key", *arguments)
            assert (told.status, prefix in told.out, text in told.out) == (0, True, False)
        actions = [log["action"] for log in house.logs]
        assert [action for action in actions if action.startswith("key.")] == ["key.created", "key.changed"]
        assert text not in str(house.logs)

    def test_all_that_it_may_is_said_and_changed(self, headrace: Command, house: AdministeredHouse) -> None:
        made = headrace(
            *("key", "create", "--user", "ci", "--scope", "inference", "--scope", "admin"),
            *("--model", "llama-*", "--model", "qwen", "--priority", "-1", "--expires", "90d"),
            *("--rpm", "1", "--requests-per-day", "2", "--requests-per-month", "3"),
            *(
                "--tpm",
                "4",
                "--tokens-per-day",
                "5",
                "--tokens-per-month",
                "6",
                "--concurrency",
                "7",
                "--json",
            ),
        ).json()
        assert made["scopes"] == ["inference", "admin"]
        assert (made["models"], made["priority"]) == (["llama-*", "qwen"], -1)
        assert list(made["limits"].values()) == [1, 2, 3, 4, 5, 6, 7]
        assert abs(made["expires_at"] - time.time() - 90 * 86_400) < 600
        changed = headrace(
            *("key", "set", made["prefix"], "--model", "*", "--expires", "never", "--rpm", "0", "--json")
        ).json()
        assert (changed["models"], changed["expires_at"]) == (["*"], None)
        assert list(changed["limits"].values()) == [0, 2, 3, 4, 5, 6, 7]
        shown = headrace("key", "show", made["key_id"]).out
        assert "expires   never\n" in shown
        assert "2 requests per day" in shown

    def test_the_list_has_those_that_open(self, headrace: Command, house: AdministeredHouse) -> None:
        ids = [
            headrace("key", "create", "--user", user, "--json").json()["key_id"]
            for user in ("ann", "bob", "bob")
        ]
        headrace("key", "revoke", ids[1])
        table = headrace("key", "list").out.splitlines()
        assert table[0].split() == [
            *("ID", "PREFIX", "USER", "NAME", "SCOPES", "MODELS", "LIMITS", "EXPIRES", "STATE"),
        ]
        assert {line.split()[0] for line in table[1:]} == {ids[0], ids[2]}
        assert not [line for line in table if line != line.rstrip()]
        bobs = headrace("key", "list", "--user", "bob", "--all", "--json").json()
        assert {key["key_id"] for key in bobs} == {ids[1], ids[2]}

    @pytest.mark.parametrize(
        "arguments",
        [
            ["create"],
            ["create", "--user", "a", "--expires", "soon"],
            ["create", "--user", "a", "--expires", "30"],
            ["create", "--user", "a", "--scope", "root"],
            ["create", "--user", "a", "--priority", "2"],
            ["create", "--user", "a", "--rpm", "-1"],
            ["set", "x"],
            ["show", ""],
            ["revoke", ".."],
        ],
    )
    def test_a_wrong_call_ends_with_2(
        self, headrace: Command, house: AdministeredHouse, arguments: list[str]
    ) -> None:
        result = headrace("key", *arguments)
        assert (result.status, result.out) == (2, "")
        assert house.do(house.office.accounts.keys) == []

    def test_what_the_gateway_refuses_is_a_sentence(
        self, headrace: Command, house: AdministeredHouse
    ) -> None:
        for arguments, said in (
            (["key", "show", "nothing"], "headrace: There is no key 'nothing'.\n"),
            (["key", "revoke", "a/b?c#d"], "headrace: There is nothing at '/admin/keys/a/b?c#d'.\n"),
            (
                ["key", "create", "--user", "a", "--expires", "2020-01-01"],
                "headrace: The key would have expired already.\n",
            ),
        ):
            result = headrace(*arguments)
            assert (result.status, result.out, result.err) == (1, "", said)

    def test_a_key_without_the_scope_is_told_which_one_is_needed(
        self, headrace: Command, house: AdministeredHouse
    ) -> None:
        result = headrace("key", "list", "--key", KEY)
        assert (result.status, result.err) == (
            1,
            "headrace: This needs a key with the scope 'admin'. Give an admin key with --key or HEADRACE_API_KEY.\n",
        )

    def test_nobody_there(self, headrace: Command) -> None:
        for command in (
            ["key", "list"],
            ["user", "list"],
            ["usage"],
            ["requests", "tail"],
            ["quota", "show", "a"],
        ):
            result = headrace(*command, "--url", "http://127.0.0.1:1", "--key", "k")
            assert (result.status, result.out) == (1, "")
            assert result.err.endswith(" Start the gateway with 'headrace up', or name another with --url.\n")
            assert result.err.count("\n") == 1

    def test_the_kept_key_comes_before_those_of_the_settings(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home.mkdir()
        monkeypatch.setenv("HEADRACE_AUTH__API_KEYS", "configured")
        here = "http://127.0.0.1:11435"
        assert find_gateway(None, None, None).key == "configured"
        (home / FIRST_KEY_FILE).write_text("kept\n")
        assert (find_gateway(None, None, None).url, find_gateway(None, None, None).key) == (here, "kept")
        assert find_gateway(None, "given", None).key == "given"
        assert find_gateway("http://elsewhere.example", None, None).key is None

    def test_in_a_process_of_its_own(self, house: AdministeredHouse) -> None:
        result = run_apart("key", "list", "--json")
        assert (result.status, result.out, result.err) == (0, "[]\n", "")


def test_each_scope_can_be_given() -> None:
    assert set(keys._SCOPES) == set(Scope)


class TestUsers:
    def test_a_user_from_its_beginning_to_its_end(self, headrace: Command, house: AdministeredHouse) -> None:
        made = headrace(
            "user", "add", "ann", "--name", "Ann Ö", "--email", "a@b.c", "--tier", "gold", "--rpm", "5"
        )
        assert made.out.splitlines()[:6] == [
            "user     ann",
            "name     Ann Ö",
            "email    a@b.c",
            "active   yes",
            "tier     gold",
            "limits   5 requests per minute, 100 requests per day, 5000 tokens per month",
        ]
        changed = headrace("user", "set", "ann", "--inactive", "--tier", "", "--json").json()
        assert (changed["active"], changed["tier"], changed["name"]) == (False, "", "Ann Ö")
        assert headrace("user", "show", "ann", "--json").json() == changed
        assert headrace("user", "list", "--json").json() == [changed]
        assert headrace("user", "list").out.splitlines()[1].startswith("ann   Ann Ö  a@b.c  none")
        key = headrace("key", "create", "--user", "ann", "--json").json()["key_id"]
        assert headrace("user", "remove", "ann").out == "ann and its keys are removed.\n"
        assert headrace("key", "show", key).status == 1
        gone = headrace("user", "show", "ann")
        assert (gone.status, gone.err) == (1, "headrace: There is no user 'ann'.\n")

    def test_nothing_to_change_is_a_wrong_call(self, headrace: Command, house: AdministeredHouse) -> None:
        assert headrace("user", "set", "ann").status == 2

    def test_one_that_is_there_already(self, headrace: Command, house: AdministeredHouse) -> None:
        assert headrace("user", "add", "ann").status == 0
        again = headrace("user", "add", "ann")
        assert (again.status, again.err) == (1, "headrace: There is a user 'ann' already.\n")


class TestQuotas:
    def test_what_is_set_is_shown(self, headrace: Command, house: AdministeredHouse) -> None:
        headrace("user", "add", "ann")
        assert headrace("quota", "show", "ann").out == "ann has no limits.\n"
        told = headrace("quota", "set", "ann", "--rpm", "9", "--concurrency", "2").out.splitlines()
        assert told[0].split() == ["WHOSE", "WHAT", "PER", "LIMIT", "USED", "LEFT", "RENEWED"]
        assert told[1].split()[:6] == ["user:ann", "requests", "minute", "9", "0", "9"]
        assert told[2].split() == ["user:ann", "concurrency", "at", "once", "2", "0", "2"]
        headrace("quota", "set", "ann", "--rpm", "0")
        windows = headrace("quota", "show", "ann", "--json").json()["windows"]
        assert [window["measure"] for window in windows] == ["concurrency"]

    @pytest.mark.req("E19")
    def test_zero_is_no_limit_and_what_is_inherited_is_the_tiers(
        self, headrace: Command, house: AdministeredHouse
    ) -> None:
        def limits() -> list[tuple[str, int]]:
            told = headrace("quota", "show", "ann", "--json").json()["windows"]
            return [(window["measure"], window["limit"]) for window in told]

        headrace("user", "add", "ann", "--tier", "gold", "--tokens-per-month", "0")
        assert limits() == [("requests", 100)]
        headrace("quota", "set", "ann", "--tokens-per-month", "inherit", "--requests-per-day", "0")
        assert limits() == [("tokens", 5000)]
        headrace("user", "set", "ann", "--requests-per-day", "inherit")
        assert limits() == [("requests", 100), ("tokens", 5000)]
        key = headrace("key", "create", "--user", "ann", "--rpm", "0", "--json").json()
        assert limits() == [("requests", 100), ("tokens", 5000)]
        headrace("key", "set", key["key_id"], "--rpm", "3")
        assert limits() == [("requests", 100), ("tokens", 5000), ("requests", 3)]
        headrace("key", "set", key["key_id"], "--rpm", "inherit")
        assert limits() == [("requests", 100), ("tokens", 5000)]

    @pytest.mark.parametrize("wrong", ["-1", "none", "1.5", "", "1e3"])
    def test_what_is_no_limit_is_a_wrong_call(
        self, headrace: Command, house: AdministeredHouse, wrong: str
    ) -> None:
        refused = headrace("quota", "set", "ann", "--rpm", wrong)
        assert refused.status == 2
        assert "neither a number from 0 on nor 'inherit'" in " ".join(refused.err.split())

    def test_no_limit_is_a_wrong_call(self, headrace: Command, house: AdministeredHouse) -> None:
        headrace("user", "add", "ann")
        assert headrace("quota", "set", "ann").status == 2
