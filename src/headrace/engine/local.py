"""A model served by this machine: source, check, process, supervision and connector as one component."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from headrace.engine.catalog import Catalog
from headrace.engine.connector import EngineConnector
from headrace.engine.gguf import GgufHeader, read_header
from headrace.engine.memory import available_memory_bytes, check_fits
from headrace.engine.process import CHILD_COMMAND, EngineProcess
from headrace.engine.spec import EngineSpec
from headrace.engine.supervision import RestartPolicy
from headrace.engine.supervisor import EngineState, Supervisor, Watcher
from headrace.kernel.clock import Clock
from headrace.kernel.errors import StartupError
from headrace.kernel.units import format_bytes
from headrace.ports.connector import Connector

_BASE_LOAD_S = 1.0
_LOAD_BYTES_PER_S = 300e6  # a plain SSD; the first load measures it better


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine gives to its engines.

    available_bytes: how much memory is left, None if nobody knows. run_dir: where the folders of the sockets are made,
    the system's temporary folder if None. command: what runs a child. policy: how a broken engine is started again.
    """

    available_bytes: Callable[[], int | None] = available_memory_bytes
    run_dir: Path | None = None
    command: tuple[str, ...] = CHILD_COMMAND
    policy: RestartPolicy = field(default_factory=RestartPolicy)


class LocalEngine(Watcher):
    """One engine. `connector` is there from the beginning and answers `Loading` until the engine serves.

    `on_state` hears of every change, on the event loop. A crash is followed by a restart, as the machine's policy says.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        catalog: Catalog,
        make_direct: Callable[[str], Connector],
        clock: Clock,
        on_state: Callable[[EngineState], None],
        machine: Machine | None = None,
    ) -> None:
        self.spec = spec
        self._catalog = catalog
        self._on_state = on_state
        self._machine = machine or Machine()
        self._process: EngineProcess | None = None
        self._stopped = Event()
        self._supervisor = Supervisor(spec.id, self._launch, self, clock=clock, policy=self._machine.policy)
        self.connector = EngineConnector(
            slots=spec.parallel, make_direct=make_direct, current=lambda: self._supervisor.current
        )

    @property
    def current(self) -> EngineState:
        """Where the engine stands now."""
        return self._supervisor.current

    @property
    def pid(self) -> int | None:
        """The process id of the latest child; None before the first."""
        return self._process.pid if self._process else None

    @property
    def socket(self) -> str:
        """The Unix socket of the latest child; empty before the first."""
        return self._process.socket if self._process else ""

    async def start(self) -> None:
        """Begin to load and return at once; `on_state` tells the rest. Also tries again after a failure."""
        self._supervisor.start()

    async def close(self) -> None:
        """End the engine and whatever it is doing (a download keeps what it has). Idempotent."""
        self._stopped.set()
        await self._supervisor.close()
        await self.connector.close()

    def running(self, socket: str) -> None:
        """The supervisor tells: it serves."""
        self.connector.running(socket)

    async def gone(self) -> None:
        """The supervisor tells: it is no more."""
        await self.connector.gone()

    def state(self, state: EngineState) -> None:
        """The supervisor tells where it stands."""
        self._on_state(state)

    async def _launch(self) -> EngineProcess:
        path, header = await self._prepare()
        self._supervisor.loading(_BASE_LOAD_S + header.tensor_bytes / _LOAD_BYTES_PER_S)
        parameters = self.spec.child_parameters(
            model_path=str(path),
            mean_pooling=self.spec.embeddings and not header.is_embedding,
            n_ctx_train=header.n_ctx_train,
        )
        process = EngineProcess(parameters, command=self._machine.command, run_dir=self._machine.run_dir)
        self._process = process
        await process.start()
        return process

    async def _prepare(self) -> tuple[Path, GgufHeader]:
        loop = asyncio.get_running_loop()
        told = _Throttled(lambda detail: loop.call_soon_threadsafe(self._supervisor.preparing, detail))

        def work() -> tuple[Path, GgufHeader]:
            def progress(done: int, total: int | None) -> None:
                if self._stopped.is_set():
                    raise StartupError("The engine was closed.")  # ends the download, so that its thread ends
                told(done, total)

            path = self._catalog.resolve(self.spec.model, progress)
            header = read_header(path)
            if self.spec.check_memory and self.spec.n_gpu_layers <= 0:  # else the weights go elsewhere
                check_fits(header, self._machine.available_bytes(), n_ctx=self.spec.n_ctx, model=path.name)
            return path, header

        return await asyncio.to_thread(work)


class _Throttled:
    """Tells of a download at each full percent, or each 16 MiB when the size isn't known."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._step = -1

    def __call__(self, done: int, total: int | None) -> None:
        step = done * 100 // total if total else done >> 24
        if step == self._step:
            return
        self._step = step
        of = f" of {format_bytes(total)}" if total else ""
        self._tell(f"downloading the model: {format_bytes(done)}{of}")
