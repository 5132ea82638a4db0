from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headrace.domain.fleet import NodeState
from headrace.engine.process import LaunchFailed
from headrace.engine.supervision import RestartPolicy
from headrace.engine.supervisor import EngineState, Supervisor, Watcher
from headrace.kernel.errors import StartupError
from headrace.testing.clock import ManualClock

POLICY = RestartPolicy(most_failures=3, first_delay_s=1, most_delay_s=30, steady_s=60)
PATIENCE_S = 10


class ScriptedEngine:
    """An engine that serves until the test lets it die."""

    socket = "/tmp/none.sock"

    def __init__(self) -> None:
        self.dies: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.terminated = False

    async def wait(self) -> str:
        return await asyncio.shield(self.dies)

    async def terminate(self) -> None:
        self.terminated = True

    def log_tail(self, most: int = 20) -> tuple[str, ...]:
        return ("last words",)[:most]


class Stage(Watcher):
    """A supervisor whose launches end as the test says: an engine, or an error."""

    def __init__(self, jitter: float = 1.0) -> None:
        self.clock = ManualClock(0)
        self.told: list[EngineState] = []
        self.sockets: list[str] = []
        self.launches = 0
        self._launch: asyncio.Future[ScriptedEngine] | None = None
        self._changed = asyncio.Event()
        self.supervisor = Supervisor(
            "e", self.launch, self, clock=self.clock, policy=POLICY, jitter=lambda: jitter
        )

    def running(self, socket: str) -> None:
        self.sockets.append(socket)

    async def gone(self) -> None:
        self.sockets.pop()

    def state(self, state: EngineState) -> None:
        self.told.append(state)
        self._changed.set()

    async def launch(self) -> ScriptedEngine:
        self.launches += 1
        self._launch = asyncio.get_running_loop().create_future()
        self._changed.set()
        return await self._launch

    async def launching(self) -> asyncio.Future[ScriptedEngine]:
        """The launch that waits for its end."""
        await self.until(lambda: self._launch is not None and not self._launch.done())
        assert self._launch is not None
        return self._launch

    async def serves(self) -> ScriptedEngine:
        engine = ScriptedEngine()
        (await self.launching()).set_result(engine)
        await self.until(lambda: self.now is NodeState.READY)
        return engine

    async def fails(self, error: Exception) -> None:
        launch = await self.launching()
        told = len(self.told)
        launch.set_exception(error)
        await self.until(lambda: len(self.told) > told)

    @property
    def now(self) -> NodeState:
        return self.told[-1].state

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.until_pending()
        self.clock.advance(seconds)


@pytest.mark.req("D36")
async def test_start_returns_at_once_and_loading_is_told_with_its_time() -> None:
    stage = Stage()
    stage.supervisor.start()
    assert stage.now is NodeState.LOADING
    launch = await stage.launching()
    stage.supervisor.preparing("downloading")
    assert stage.told[-1].detail == "downloading"
    stage.clock.advance(100)  # the download
    stage.supervisor.loading(guess_s=8)
    assert stage.told[-1].detail == ""
    assert stage.supervisor.current.ready_in_s == 8
    stage.clock.advance(5)
    assert stage.supervisor.current.ready_in_s == 3
    stage.clock.advance(30)
    assert stage.supervisor.current.ready_in_s == 0.1
    launch.cancel()
    await stage.supervisor.close()


@pytest.mark.req("D12", "D36")
async def test_a_crash_is_followed_by_a_restart_whose_time_is_known_from_the_last_one() -> None:
    stage = Stage()
    stage.supervisor.start()
    await stage.launching()
    stage.clock.advance(7)
    engine = await stage.serves()
    assert stage.sockets == [engine.socket]
    assert stage.told[-1].ready_in_s == 0
    stage.clock.advance(1000)
    engine.dies.set_result("was killed")
    await stage.until(lambda: stage.now is not NodeState.READY)
    state = stage.told[-1]
    assert state.state is NodeState.LOADING  # a first crash is waited out
    assert (state.detail, state.failures, state.log) == ("The engine was killed.", 1, ("last words",))
    assert state.ready_in_s == 1 + 7
    await stage.pass_time(0.9)
    assert (stage.sockets, engine.terminated, stage.launches) == ([], True, 1)
    stage.clock.advance(0.1)
    again = await stage.serves()
    assert again is not engine
    assert stage.told[-1].log == ()
    await stage.supervisor.close()
    assert again.terminated


@pytest.mark.req("D12")
async def test_a_crash_loop_ends() -> None:
    stage = Stage()
    stage.supervisor.start()
    states = []
    for delay_s in (1, 2, None):
        await stage.fails(LaunchFailed("no room", ["line"]))
        states.append(stage.told[-1])
        if delay_s is not None:
            await stage.pass_time(delay_s)
    assert [state.state for state in states] == [NodeState.LOADING, NodeState.DOWN, NodeState.FAILED]
    assert all(state.log == ("line",) for state in states)
    assert states[-1].detail == (
        "The engine didn't start: no room. It failed 3 times in a row and is left alone now."
    )
    assert states[-1].ready_in_s is None
    assert stage.clock.pending == 0
    stage.supervisor.start()  # somebody mended it
    await stage.serves()
    assert stage.told[-1].failures == 0
    await stage.supervisor.close()


@pytest.mark.req("D14")
async def test_what_cannot_be_mended_by_trying_is_not_tried_again() -> None:
    stage = Stage()
    stage.supervisor.start()
    await stage.fails(StartupError("There is no model file x."))
    assert stage.told[-1] == EngineState("e", NodeState.FAILED, "There is no model file x.", failures=1)
    assert (stage.clock.pending, stage.launches) == (0, 1)
    await stage.supervisor.close()


async def test_delays_are_jittered() -> None:
    stage = Stage(jitter=0.0)
    stage.supervisor.start()
    await stage.fails(LaunchFailed("no"))
    await stage.pass_time(0.5)
    await stage.launching()
    assert stage.launches == 2
    await stage.supervisor.close()


async def test_start_does_nothing_while_it_lives() -> None:
    stage = Stage()
    stage.supervisor.start()
    await stage.serves()
    stage.supervisor.start()
    assert stage.launches == 1
    assert stage.now is NodeState.READY
    await stage.supervisor.close()
    await stage.supervisor.close()


@pytest.mark.may_block("the log's default format reads source files for a traceback")
async def test_our_own_mistake_is_told_and_not_slept_through() -> None:
    stage = Stage()
    stage.supervisor.start()
    (await stage.launching()).set_exception(ZeroDivisionError())
    await stage.until(lambda: stage.now is NodeState.FAILED)
    assert "Headrace itself failed" in stage.told[-1].detail
    await stage.supervisor.close()


async def test_closing_ends_a_launch() -> None:
    stage = Stage()
    stage.supervisor.start()
    launch = await stage.launching()
    await stage.supervisor.close()
    assert launch.cancelled()
