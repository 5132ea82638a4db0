"""Processes of a measurement: pinned to a core, ended with the block that started them, and their CPU time and memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import psutil

LOAD_CORE = 0
"""The upstream's and the load generator's core."""
GATEWAY_CORE = 1
"""The core of what is measured."""
STOP_WITHIN_S = 10.0


def pinned(command: Sequence[str], core: int) -> list[str]:
    """`command` bound to one core; as it is where the machine has only one."""
    if len(os.sched_getaffinity(0)) < 2:
        return list(command)
    return ["taskset", "-c", str(core), *command]


@contextmanager
def running(
    command: Sequence[str],
    *,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process for as long as the block lasts; then it and its children are gone, however it takes it.

    It has a process group of its own, so that Ctrl-C reaches the harness alone, which ends it in order.
    """
    process = subprocess.Popen(
        command, stdout=stdout, stderr=stderr, env=env, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ask it to stop, then kill its whole group: a child that outlives its parent would disturb the next turn."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_WITHIN_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def cpu_s(pid: int, *, children: bool = True) -> float:
    """CPU seconds, user and system, that the process used so far; with those of its descendants, ended ones too.

    To the nanosecond, but for ended children, whom the kernel counts in hundredths of a second. 0.0 for a process that
    is gone.
    """
    try:
        own = time.clock_gettime(_cpu_clock(pid))
        if not children:
            return own
        process = psutil.Process(pid)
        times = process.cpu_times()
        ended: float = times.children_user + times.children_system
        return own + ended + sum(cpu_s(child.pid) for child in process.children())
    except (psutil.NoSuchProcess, OSError):
        return 0.0


def _cpu_clock(pid: int) -> int:
    """The id of another process's CPU clock, as Linux forms it (`clock_getcpuclockid`): all its threads, ended ones too.

    /proc counts in ticks of 10 ms, which is more than a gateway needs for a second of a light load.
    """
    scheduled = 2
    return (~pid << 3) | scheduled


def raise_descriptor_limit() -> int:
    """Let this process and what it starts open as many files as the system allows; how many that are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def resident_mb(pid: int) -> float:
    """Resident memory in megabytes (10^6 bytes) of the process and its descendants; 0.0 when it's gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family) / 1e6
    except psutil.NoSuchProcess:
        return 0.0
