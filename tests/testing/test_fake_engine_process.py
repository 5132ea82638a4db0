"""The fake engine as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import httpx2
import msgspec

COMMAND = (sys.executable, "-W", "error", "-m", "headrace.testing.fake_engine")


async def start(*options: str) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    process = await asyncio.create_subprocess_exec(*COMMAND, *options, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    return process, msgspec.json.decode(line)


async def end(process: asyncio.subprocess.Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), 30)


async def test_it_serves_as_told_and_ends_by_sigterm() -> None:
    options = ("--tokens", "2", "--interval-ms", "1", "--delay-ms", "1", "--slots", "3", "--model", "mine")
    process, address = await start(*options, "--script", '{"tokens": 5, "usage": false}')
    try:
        async with httpx2.AsyncClient(base_url=address["url"]) as http:
            models = (await http.get("/v1/models")).json()
            body = {"messages": [], "model": "mine"}
            answer = (
                await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "r1"})
            ).json()
            changed = await http.put("/script", json={"fault": {"type": "refuse", "status": 503}})
            refused = await http.post("/v1/chat/completions", json=body)
            wrong = await http.put("/script", json={"tokens": "many"})
            stats = (await http.get("/stats")).json()
    finally:
        ended = await end(process)
    assert models["data"][0]["id"] == "mine"
    assert answer["choices"][0]["message"]["content"] == "tok0 tok1"
    assert "usage" not in answer
    assert (changed.status_code, refused.status_code, wrong.status_code) == (204, 503, 400)
    assert (stats["finished"], stats["refused"], stats["executions"]) == (1, 1, {"r1": 1})
    assert ended == 0


async def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    process, address = await start("--socket", str(tmp_path / "engine.sock"))
    try:
        transport = httpx2.AsyncHTTPTransport(uds=address["socket"])
        async with httpx2.AsyncClient(transport=transport) as http:
            assert (await http.get("http://localhost/health")).status_code == 200
    finally:
        assert await end(process) == 0


async def test_it_ends_with_the_process_that_started_it() -> None:
    # A parent between us and the engine hands its output on to us, and is killed before it can clean up.
    parent = f"import subprocess, sys; subprocess.run({list(COMMAND)!r})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 30)
    finally:
        process.kill()
        await process.wait()
    async with asyncio.timeout(30):
        assert await process.stdout.read() == b""  # the pipe has no writer left: the engine is gone too


async def test_a_wrong_script_is_told_in_one_line() -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--script",
        '{"tokens": "x"}',
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    _, told = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"Expected `int`, got `str`" in told.splitlines()[-1]


async def test_its_diary_outlives_it(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    process, address = await start("--tokens", "1", "--diary", str(diary))
    async with httpx2.AsyncClient(base_url=address["url"]) as http:
        for number, fault in enumerate(({"type": "refuse", "status": 500}, {"type": "cut"}, None)):
            await http.put("/script", json={"tokens": 1, "fault": fault})
            with contextlib.suppress(httpx2.RemoteProtocolError):
                await http.post(
                    "/v1/chat/completions", json={"messages": []}, headers={"x-request-id": f"r{number}"}
                )
    process.kill()
    await process.wait()
    assert diary.read_text().splitlines() == ["r0 500", "r1 came", "r1 ran", "r2 came", "r2 ran"]
