"""Keeps one engine running: carries out what `supervision` decides, and tells where the engine stands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, cast

import structlog

from headrace.domain.fleet import NodeState
from headrace.engine.process import LaunchFailed
from headrace.engine.supervision import (
    Delay,
    DelayOver,
    Effect,
    Event,
    Exited,
    GiveUp,
    Launch,
    Life,
    Loaded,
    LoadFailed,
    Phase,
    RestartPolicy,
    Watch,
    decide,
)
from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock
from headrace.kernel.errors import StartupError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the rest of the house knows of an engine.

    detail: one sentence, empty when all is well. ready_in_s: when it will probably serve; None where nobody can say,
    0 when it does. failures: in a row. log: the engine's last lines, when it failed.
    """

    id: str
    state: NodeState
    detail: str = ""
    ready_in_s: float | None = None
    failures: int = 0
    log: tuple[str, ...] = ()


class Running(Protocol):
    """An engine that serves, as `Supervisor` sees it."""

    @property
    def socket(self) -> str:
        """The path of its Unix socket."""

    async def wait(self) -> str:
        """Wait for its end; how it ended."""

    async def terminate(self) -> None:
        """End it; idempotent."""

    def log_tail(self, most: int = 20) -> tuple[str, ...]:
        """Its last lines."""


class Watcher(Protocol):
    """Who is told of an engine's life, always on the event loop. Must not raise."""

    def running(self, socket: str) -> None:
        """It serves on this Unix socket; comes before the state `READY` is told."""

    async def gone(self) -> None:
        """What served is no more; comes after the state was told."""

    def state(self, state: EngineState) -> None:
        """Where it stands now."""


class Supervisor:
    """Starts an engine, and starts it again when it breaks, with growing and jittered delays.

    `launch` brings up one process: it returns when that serves, raises `LaunchFailed` where another try may help and
    `StartupError` where none can. Being cancelled, it leaves nothing behind.
    """

    def __init__(
        self,
        engine_id: str,
        launch: Callable[[], Awaitable[Running]],
        watcher: Watcher,
        *,
        clock: Clock,
        policy: RestartPolicy | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._id = engine_id
        self._launch = launch
        self._watcher = watcher
        self._clock = clock
        self._policy = policy or RestartPolicy()
        self._jitter = jitter
        self._tasks = Tasks(on_death=self._died)
        self._life = Life(Phase.FAILED, detail="not started")
        self._work: asyncio.Task[object] | None = None
        self._running: Running | None = None
        self._log: tuple[str, ...] = ()
        self._expected_load_s: float | None = None
        self._began_at = 0.0

    @property
    def current(self) -> EngineState:
        """Where the engine stands, with the waiting time as it is now."""
        return self._state()

    def preparing(self, detail: str) -> None:
        """For `launch`: tell what it does before the model loads (a download)."""
        if self._life.phase is Phase.LOADING:
            self._life = replace(self._life, detail=detail)
            self._watcher.state(self._state())

    def loading(self, guess_s: float) -> None:
        """For `launch`: the model loads from now on. The guess at how long counts until one load was measured."""
        if self._expected_load_s is None:
            self._expected_load_s = guess_s
        self._began_at = self._clock.monotonic()
        self.preparing("")

    def start(self) -> None:
        """Begin to load, and return at once; also the way to try again after a failure. Idempotent while it lives."""
        if self._life.phase is Phase.FAILED:
            self._enter(Life(Phase.LOADING))
            self._work = self._tasks.spawn(self._live(self._work), name=f"engine {self._id}")

    async def close(self) -> None:
        """End the engine, whatever it is doing. Idempotent."""
        await self._tasks.close()
        await self._end_running()

    def _died(self, error: BaseException) -> None:
        self._enter(
            Life(Phase.FAILED, self._life.failures, "Headrace itself failed here; its log says more.")
        )
        log.error("engine supervision broke", action="engine.died", engine=self._id, exc_info=error)

    async def _live(self, before: asyncio.Task[object] | None) -> None:
        if before is not None:  # it told of its failure and may still be clearing up
            await asyncio.wait({before})
        await self._end_running()
        life, effect = self._life, cast("Effect", Launch())
        while not isinstance(effect, GiveUp):
            event = await self._carry_out(effect)
            life, effect = decide(life, event, self._policy)
            delay_s = 0.0
            if isinstance(effect, Delay):
                delay_s = effect.delay_s * (0.5 + self._jitter() / 2)
                effect = Delay(delay_s)
            self._enter(life, delay_s)
            if isinstance(event, Exited):
                await self._end_running()

    async def _carry_out(self, effect: Launch | Watch | Delay) -> Event:
        match effect:
            case Launch():
                return await self._bring_up()
            case Watch():
                return await self._until_exit()
            case Delay(delay_s):
                await self._pass(delay_s)
                return DelayOver()

    async def _bring_up(self) -> Event:
        self._began_at = self._clock.monotonic()
        try:
            self._running = await self._launch()
        except StartupError as error:
            return LoadFailed(error.message, fatal=True)
        except LaunchFailed as error:
            self._log = error.log
            return LoadFailed(f"The engine didn't start: {error.reason.rstrip('.')}.")
        self._expected_load_s = self._clock.monotonic() - self._began_at
        self._log = ()
        self._watcher.running(self._running.socket)
        return Loaded()

    async def _until_exit(self) -> Event:
        if self._running is None:
            raise RuntimeError("nothing runs")
        how = await self._running.wait()
        self._log = self._running.log_tail()
        return Exited(how, self._clock.monotonic() - self._began_at)

    async def _end_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await self._watcher.gone()
            await running.terminate()

    async def _pass(self, delay_s: float) -> None:
        over = asyncio.Event()
        timer = self._clock.call_later(delay_s, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def _enter(self, life: Life, delay_s: float = 0.0) -> None:
        self._life = life
        self._began_at = self._clock.monotonic() + delay_s  # of the load, or of serving
        state = self._state()
        log.info(
            "engine state",
            action="engine.state",
            engine=self._id,
            state=str(state.state),
            detail=state.detail,
            failures=state.failures,
        )
        self._watcher.state(state)

    def _state(self) -> EngineState:
        phase = self._life.phase
        state = {
            Phase.LOADING: NodeState.LOADING,
            Phase.READY: NodeState.READY,
            # Requests wait out a first crash; from the second on they are better told.
            Phase.BACKOFF: NodeState.LOADING if self._life.failures <= 1 else NodeState.DOWN,
            Phase.FAILED: NodeState.FAILED,
        }[phase]
        failed = phase in (Phase.BACKOFF, Phase.FAILED)
        return EngineState(
            self._id,
            state,
            self._life.detail,
            self._ready_in_s(),
            self._life.failures,
            self._log if failed else (),
        )

    def _ready_in_s(self) -> float | None:
        if self._life.phase is Phase.READY:
            return 0.0
        if self._life.phase is Phase.FAILED or self._expected_load_s is None:
            return None
        return max(0.1, self._began_at + self._expected_load_s - self._clock.monotonic())
