"""The child process itself runs here; only the library that it loads is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import uvloop

from headrace.engine.process import EngineProcess, LaunchFailed, describe_exit
from headrace.engine.spec import EngineSpec
from headrace.kernel.errors import StartupError

ModelNamed = Callable[[str], Path]
PATIENCE_S = 30

PARENT = """
import asyncio, json, sys
from headrace.engine.process import EngineProcess

async def main():
    process = EngineProcess(json.loads(sys.argv[1]))
    start = asyncio.ensure_future(process.start())
    while not (process.pid and process.log_tail()) and not start.done():
        await asyncio.sleep(0.01)
    if sys.argv[2] == "ready":
        await start
    print(json.dumps([process.pid, process.socket]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def parameters(model: Path) -> dict[str, object]:
    return EngineSpec("tiny").child_parameters(model_path=str(model), mean_pooling=False)


async def ask(socket: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def until_loading(process: EngineProcess) -> None:
    """A library's log has no event to wait for."""
    async with asyncio.timeout(PATIENCE_S):
        while not process.log_tail():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def wait_dead(pid: int) -> None:
    """Works for processes that are not our children, and for those that nobody reaps."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = await asyncio.to_thread(select.select, [handle], [], [], PATIENCE_S)
        assert ready, "the child is still alive"
    finally:
        os.close(handle)


@pytest.mark.req("D14")
async def test_it_serves_on_a_socket_that_only_we_reach(fake_llama: ModelNamed) -> None:
    process = EngineProcess(parameters(fake_llama("serve")))
    await process.start()
    try:
        assert str(process.pid).encode() in await ask(process.socket)
        assert Path(process.socket).parent.stat().st_mode & 0o777 == 0o700
        assert len(process.socket) <= 100
        child = psutil.Process(process.pid)
        assert child.net_connections("inet") == []
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    finally:
        await process.terminate()
    assert not Path(process.socket).parent.exists()
    assert not psutil.pid_exists(child.pid)
    assert await process.wait() == "exited with status 0"
    await process.terminate()


@pytest.mark.parametrize("model", ["serve", "fail", "die"])
def test_it_lives_on_the_other_event_loop_too(fake_llama: ModelNamed, model: str) -> None:
    async def live() -> str:
        process = EngineProcess(parameters(fake_llama(model)))
        with contextlib.suppress(LaunchFailed):
            await process.start()
            assert str(process.pid).encode() in await ask(process.socket)
            await process.terminate()
        assert not Path(process.socket).parent.exists()
        return await process.wait()

    ended = {"serve": "exited with status 0", "fail": "exited with status 1", "die": "was ended by SIGSEGV"}
    assert uvloop.run(live()) == ended[model]


async def test_a_deep_folder_still_makes_a_short_path(fake_llama: ModelNamed, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    process = EngineProcess(parameters(fake_llama("serve")), run_dir=deep)
    await process.start()
    try:
        assert await ask(process.socket)
    finally:
        await process.terminate()
    assert list(deep.iterdir()) == []


@pytest.mark.req("D14")
async def test_a_model_that_does_not_load_says_why(fake_llama: ModelNamed, tmp_path: Path) -> None:
    process = EngineProcess(parameters(fake_llama("fail")), run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    with pytest.raises(LaunchFailed) as caught:
        await process.start()
    assert caught.value.reason == "error loading model: a tensor is missing"
    assert caught.value.log[-1].endswith("failed")
    assert list((tmp_path / "run").iterdir()) == []


async def test_a_child_that_dies_while_it_loads_says_how(fake_llama: ModelNamed) -> None:
    with pytest.raises(LaunchFailed, match="was ended by SIGSEGV"):
        await EngineProcess(parameters(fake_llama("die"))).start()


async def test_a_parameter_that_llama_cpp_does_not_know_is_named(fake_llama: ModelNamed) -> None:
    spec = EngineSpec("tiny", extra={"no_such_thing": 1})
    told = spec.child_parameters(model_path=str(fake_llama("serve")), mean_pooling=False)
    with pytest.raises(LaunchFailed, match="parameter no_such_thing can't be set to 1"):
        await EngineProcess(told).start()


async def test_a_command_that_is_not_there() -> None:
    with pytest.raises(StartupError, match="can't be started"):
        await EngineProcess({}, command=["/no/such/program"]).start()


@pytest.mark.parametrize("said", ["'nonsense'", "'7'", "'x' * 200_000", "[]", "{}"])
async def test_a_child_that_says_something_else(said: str) -> None:
    process = EngineProcess({}, command=[sys.executable, "-c", f"print({said})"])
    with pytest.raises(LaunchFailed, match="isn't understood"):
        await process.start()


async def test_the_log_is_bounded_and_free_of_what_clients_sent(fake_llama: ModelNamed) -> None:
    process = EngineProcess(parameters(fake_llama("noise")))
    await process.start()
    await process.terminate()
    lines = process.log_tail(10**6)
    assert 100 <= len(lines) <= 200
    assert sum(map(len, lines)) <= 200 * 500
    assert "SECRET" not in "".join(lines)


async def test_the_child_gets_none_of_our_secrets(
    fake_llama: ModelNamed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "SECRET")
    monkeypatch.setenv("DATABASE_URL", "SECRET")
    process = EngineProcess(parameters(fake_llama("serve")))
    await process.start()
    try:
        child = psutil.Process(process.pid)
        assert "SECRET" not in str(child.environ())
        assert "PATH" in child.environ()
        assert child.cmdline()[1:] == ["-m", "headrace.engine.child"]
    finally:
        await process.terminate()


@pytest.mark.req("D36")
async def test_a_start_that_is_cancelled_leaves_no_child(fake_llama: ModelNamed, tmp_path: Path) -> None:
    process = EngineProcess(parameters(fake_llama("hang")), run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    async with asyncio.TaskGroup() as group:
        start = group.create_task(process.start())
        await until_loading(process)
        start.cancel()
    assert process.pid is not None
    assert not psutil.pid_exists(process.pid)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
async def test_a_child_that_ignores_sigterm_is_killed(fake_llama: ModelNamed) -> None:
    process = EngineProcess(parameters(fake_llama("stubborn")), grace_s=0.2)
    async with asyncio.TaskGroup() as group:
        start = group.create_task(process.start())
        await until_loading(process)
        start.cancel()
    assert "SIGKILL" in await process.wait()


@pytest.mark.req("D14")
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a child that is loading goes on to the end of loading"
)
@pytest.mark.parametrize(("model", "moment"), [("hang", "loading"), ("serve", "ready")])
async def test_no_child_outlives_a_killed_parent(fake_llama: ModelNamed, model: str, moment: str) -> None:
    told = json.dumps(parameters(fake_llama(model)))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, told, moment, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        pid, socket = json.loads(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await wait_dead(pid)
    with pytest.raises(OSError):  # noqa: PT011 - no file, or nobody listens
        await ask(socket)
    if moment == "ready":
        assert not Path(socket).parent.exists()
    shutil.rmtree(Path(socket).parent, ignore_errors=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with status 0"), (1, "exited with status 1"), (-signal.SIGABRT, "was ended by SIGABRT")],
)
def test_how_it_ended(code: int, words: str) -> None:
    assert describe_exit(code) == words
    assert "perhaps because memory ran out" in describe_exit(-signal.SIGKILL)
