"""`headrace usage` and `headrace requests`, at a real gateway."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from headrace.ports.records import RequestRecord
from support.administration import ADMIN_KEY, NOON, AdministeredHouse, record
from support.command_line import COMMAND, Result
from support.service import Said

Command = Callable[..., Result]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[AdministeredHouse]:
    """A gateway with records, which the variables name."""
    with AdministeredHouse() as house:
        monkeypatch.setenv("HEADRACE_URL", house.url)
        monkeypatch.setenv("HEADRACE_API_KEY", ADMIN_KEY)
        for one in (
            record(1),
            record(2, user_id="bob", model="=cmd()", status="failed", http_status=502),
            record(3, created_at=time.time() - 3600, user_id="cid"),
        ):
            house.office.records.add(one)
        yield house


@contextlib.contextmanager
def tailing(*options: str) -> Iterator[Said]:
    """What `headrace requests tail --json` says meanwhile, in a process of its own."""
    process = subprocess.Popen(
        [*COMMAND, "requests", "tail", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    out = Said(process.stdout)
    try:
        yield out
    finally:
        process.kill()
        process.wait()
        out.join()


class TestUsage:
    def test_for_people(self, headrace: Command, house: AdministeredHouse) -> None:
        lines = [line.split() for line in headrace("usage").out.splitlines()]
        assert lines == [
            ["USER", "REQUESTS", "FAILED", "PROMPT", "TOKENS", "COMPLETION", "TOKENS", "TOTAL", "TOKENS"],
            ["ann", "1", "0", "10", "5", "15"],
            ["bob", "1", "1", "10", "5", "15"],
            ["cid", "1", "0", "10", "5", "15"],
            ["all", "3", "1", "30", "15", "45"],
        ]

    def test_for_scripts(self, headrace: Command, house: AdministeredHouse) -> None:
        rows = headrace("usage", "--by", "user,model", "--until", "2023-12-01", "--json").json()
        assert [(row["user"], row["model"]) for row in rows] == [("ann", "smollm2"), ("bob", "=cmd()")]
        assert headrace("usage", "--user", "nobody", "--json").json() == []

    @pytest.mark.parametrize(
        ("since", "users"),
        [("7d", ["cid"]), ("2h", ["cid"]), ("30m", []), ("2023-11-15T12:00:02Z", ["bob", "cid"])],
    )
    def test_since(self, headrace: Command, house: AdministeredHouse, since: str, users: list[str]) -> None:
        rows = headrace("usage", "--since", since, "--json").json()
        assert [row["user"] for row in rows] == users

    def test_for_spreadsheets(self, headrace: Command, house: AdministeredHouse) -> None:
        table = headrace("usage", "--by", "model", "--csv").out
        assert [row[0] for row in csv.reader(io.StringIO(table))] == ["model", "'=cmd()", "smollm2"]

    @pytest.mark.parametrize("arguments", [["--since", "ever"], ["--since", "7"], ["--csv", "--json"]])
    def test_a_wrong_call_ends_with_2(
        self, headrace: Command, house: AdministeredHouse, arguments: list[str]
    ) -> None:
        assert headrace("usage", *arguments).status == 2

    def test_a_grouping_that_is_none(self, headrace: Command, house: AdministeredHouse) -> None:
        result = headrace("usage", "--by", "weather")
        assert (result.status, result.err.startswith("headrace: by is one or some of user,")) == (1, True)


class TestRequests:
    @pytest.mark.req("C06")
    def test_the_newest_are_listed_the_newest_last(self, headrace: Command, house: AdministeredHouse) -> None:
        lines = headrace("requests", "list").out.splitlines()
        assert lines[0].split()[:5] == ["TIME", "STATUS", "HTTP", "MS", "MODEL"]
        assert lines[1].startswith("2023-11-15 12:00:01Z  completed   200  500  smollm2")
        assert lines[2].startswith("2023-11-15 12:00:02Z  failed      502  500  =cmd()")
        told = headrace("requests", "list", "-n", "2", "--json").json()
        assert [one["request_id"] for one in told] == ["req_00002", "req_00003"]
        told = headrace("requests", "list", "--status", "failed", "--json").json()
        assert [one["user_id"] for one in told] == ["bob"]

    def test_what_a_client_wrote_commands_no_terminal(
        self, headrace: Command, house: AdministeredHouse
    ) -> None:
        house.office.records.add(record(9, model="\x1b[2Jx\u202ey[bold]"))
        told = headrace("requests", "list").out
        assert "\ufffd[2Jx\ufffdy[bold]" in told
        assert "\x1b" not in told

    def test_tail_misses_none_of_a_burst_nor_one_that_began_before_thousands(
        self, house: AdministeredHouse
    ) -> None:
        async def add(*those: RequestRecord) -> None:
            for one in those:
                house.office.records.add(one)

        house.do(partial(add, *(record(number) for number in range(10, 1510))))
        with tailing("-n", "1") as out:
            out.until("cid")
            slow = record(5, request_id="req_slow", completed_at=NOON + 1511)
            burst = [record(number) for number in range(1512, 4512)]
            house.do(partial(add, slow, *burst))
            out.until("req_04511")
        shown = [json.loads(line)["request_id"] for line in out.lines]
        assert shown == ["req_00003", "req_slow", *(f"req_{number:05}" for number in range(1512, 4512))]

    @pytest.mark.parametrize("as_json", [False, True])
    def test_tail_shows_what_comes_once_each_until_ctrl_c(
        self, house: AdministeredHouse, as_json: bool
    ) -> None:
        process = subprocess.Popen(
            [*COMMAND, "requests", "tail", "-n", "1", *(["--json"] if as_json else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = Said(process.stdout), Said(process.stderr)
        try:
            out.until("cid")
            house.office.records.add(record(4, user_id="dan"))  # began long ago, ended now
            out.until("dan")
            house.office.records.add(record(5, user_id="eve", created_at=time.time()))
            out.until("eve")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
            process.wait()
            out.join()
            err.join()
        shown = [json.loads(line)["user_id"] for line in out.lines] if as_json else out.lines
        assert len(shown) == 3
        assert all(user in line for user, line in zip(("cid", "dan", "eve"), shown, strict=True))
        assert "Traceback" not in err.text
