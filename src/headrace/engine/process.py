"""One engine's child process: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from headrace.engine.log_ring import LogRing
from headrace.kernel.aio import Tasks
from headrace.kernel.errors import StartupError

log = structlog.get_logger(__name__)

CHILD_COMMAND = (sys.executable, "-m", "headrace.engine.child")

_SOCKET = "e.sock"  # llama.cpp takes a host name for a Unix socket's path by its ending
_MAX_SOCKET_PATH = 100  # sun_path holds 104 to 108 bytes
_READ_BYTES = 16 * 1024
_MAX_CONTROL_LINE = 64 * 1024

_ENV_NAMES = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV"}
_ENV_PREFIXES = (
    "CUDA",
    "NVIDIA",
    "GGML",
    "LC_",
    "PYTHON",
    "OMP_",
    "GOMP",
    "KMP_",
    "HIP_",
    "HSA_",
    "ROCR_",
    "VK_",
)
"""The environment that the child gets: what the compute libraries read, and none of the gateway's secrets."""


class LaunchFailed(Exception):
    """The engine didn't become ready. `reason`: one sentence. `log`: the last lines it wrote."""

    def __init__(self, reason: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = tuple(log_lines)


class EngineProcess:
    """A child process that serves one model on `socket`, in its own session and process group.

    Nobody else reaches it: the socket lies in a folder of mode 0700, and it listens nowhere else. It ends when this
    process ends, in whatever way. `start` at most once, then `terminate`.
    """

    def __init__(
        self,
        parameters: Mapping[str, object],
        *,
        command: Sequence[str] = CHILD_COMMAND,
        run_dir: Path | None = None,
        grace_s: float = 5.0,
    ) -> None:
        self._parameters = parameters
        self._command = command
        self._run_dir = run_dir
        self._grace_s = grace_s
        self._log = LogRing()
        self._tasks = Tasks()
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None
        self._exited: asyncio.Future[str] | None = None

    @property
    def socket(self) -> str:
        """The path of the Unix socket; empty before `start`."""
        return str(self._folder / _SOCKET) if self._folder else ""

    @property
    def pid(self) -> int | None:
        """The child's process id; None before it was spawned."""
        return self._process.pid if self._process else None

    def log_tail(self, most: int = 20) -> tuple[str, ...]:
        """The last lines that the child wrote, oldest first; free of prompts and answers."""
        return self._log.tail(most)

    async def start(self) -> None:
        """Spawn the child and return when it serves. No time-out: a big model on a slow disk takes minutes.

        Raises:
            LaunchFailed: it ended, or said that it can't; nothing is left of it.
            StartupError: it could not even be spawned.
        """
        try:
            await self._spawn()
            await self._wait_ready()
        except BaseException:  # also a cancellation: no child may stay behind
            await asyncio.shield(self.terminate())
            raise

    async def wait(self) -> str:
        """Wait until the child has ended by itself or by `terminate`; how it ended, in a few words."""
        if self._exited is None:
            raise RuntimeError("wait() before start()")
        return await asyncio.shield(self._exited)

    async def terminate(self) -> None:
        """End the child: SIGTERM, then SIGKILL to its whole group after the grace time. Idempotent, never raises."""
        process = self._process
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._grace_s):
                        await process.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it may have spawned
            await self.wait()  # the log is read to its end, and whoever waits hears of it
            await self._tasks.close()
            if process.stdin is not None:
                process.stdin.close()
                with contextlib.suppress(ConnectionError):
                    await process.stdin.wait_closed()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _spawn(self) -> None:
        self._exited = asyncio.get_running_loop().create_future()
        try:
            self._folder = await asyncio.to_thread(_private_folder, self._run_dir)
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                start_new_session=True,
                limit=_MAX_CONTROL_LINE,
            )
        except OSError as error:
            raise StartupError(f"The engine's process can't be started: {error}.") from error
        log_read = self._tasks.spawn(self._read_log(), name="engine.log")
        self._tasks.spawn(self._watch_exit(log_read), name="engine.exit")

    async def _wait_ready(self) -> None:
        process, exited = self._process, self._exited
        if process is None or process.stdin is None or process.stdout is None or exited is None:
            raise RuntimeError("not spawned")
        told = {**self._parameters, "socket": self.socket, "parent": os.getpid()}
        process.stdin.write(json.dumps(told).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        try:
            line = await process.stdout.readline()
            answer = json.loads(line) if line else None
        except ValueError:  # not JSON, or a line beyond the limit
            answer = ""
        if isinstance(answer, dict) and "ready" in answer:
            return
        if answer is None:
            why = await self.wait()
        else:
            await asyncio.wait(
                {exited}, timeout=self._grace_s
            )  # it leaves by itself, having written all of its log
            told_why = answer.get("error") if isinstance(answer, dict) else None
            why = str(told_why or "it said something that isn't understood")
        raise LaunchFailed(self._log.first_error() or why, self._log.tail())

    async def _read_log(self) -> None:
        stream = self._process.stderr if self._process else None
        while stream is not None and (data := await stream.read(_READ_BYTES)):
            self._log.feed(data)

    async def _watch_exit(self, log_read: asyncio.Task[object]) -> None:
        if self._process is None or self._exited is None:
            return
        code = await self._process.wait()
        await asyncio.wait({log_read}, timeout=1.0)  # a grandchild could hold the pipe open
        how = describe_exit(code)
        log.debug("engine process ended", action="engine.exited", pid=self._process.pid, how=how)
        if not self._exited.done():
            self._exited.set_result(how)


def describe_exit(code: int) -> str:
    """How a process ended, for people, from its return code as `subprocess` gives it."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if -code == signal.SIGKILL:
        return f"was killed ({name}), perhaps because memory ran out"
    return f"was ended by {name}"


def _private_folder(run_dir: Path | None) -> Path:
    """A fresh folder that only we can enter, of a path short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir=run_dir))  # mkdtemp makes it 0700
    if len(os.fsencode(folder)) + len(f"/{_SOCKET}") <= _MAX_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # the folder's mode guards it


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in env.items() if name in _ENV_NAMES or name.startswith(_ENV_PREFIXES)
    }
