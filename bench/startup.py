"""From exec to the first 200 on /health, and the memory then: one upstream, no engine."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.endpoint import free_port
from bench.figures import Spread
from bench.ours import headrace_toml, headrace_up
from bench.procs import resident_mb
from bench.site import Site

BAR_S = 1.5
BAR_MB = 90.0


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds and megabytes over all starts. `first_s` is the one that had to make its data folder."""

    first_s: float
    seconds: Spread
    resident_mb: Spread


def measure(site: Site, times: int) -> Startup:
    """Start it `times` times, one after the other.

    Raises:
        site.Unavailable: it didn't come up.
    """
    seconds, resident = [], []
    for _ in range(times):
        port = free_port()
        toml = headrace_toml(port, site.upstream, cancels_unstreamed=True)
        begun = time.monotonic()
        with headrace_up(site.folder, toml, port) as process:
            seconds.append(time.monotonic() - begun)
            resident.append(resident_mb(process.pid))
    over_s, over_mb = Spread.over(seconds), Spread.over(resident)
    assert over_s is not None
    assert over_mb is not None
    return Startup(seconds[0], over_s, over_mb)
