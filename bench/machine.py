"""The machine that a measurement ran on, and how busy others kept it meanwhile."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """What doesn't change during a run."""

    processor: str
    cores: int
    kernel: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        """The one we run on."""
        return cls(_processor(), os.cpu_count() or 1, platform.release(), platform.python_version())

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, Linux {self.kernel}, Python {self.python}"


@dataclass(frozen=True, slots=True)
class Weather:
    """Load average over one minute, and the seconds that the hypervisor has kept from all cores since it started."""

    load_average: float
    stolen_s: float

    @classmethod
    def now(cls) -> Weather:
        """At this moment."""
        return cls(os.getloadavg()[0], _stolen_s())


def busy_s(core: int) -> float:
    """Seconds that a core spent on any work since the machine started: neither idle, nor waiting, nor stolen."""
    fields = next(
        line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} ")
    )
    user, nice, system, _idle, _waiting, interrupts, soft, *_ = (int(field) for field in fields.split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _stolen_s() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")
