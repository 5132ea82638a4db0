"""How the checkout's own gateway is started: one core, one worker, one upstream, nothing logged per request."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from bench import filling
from bench.endpoint import Endpoint, free_port
from bench.features import described
from bench.procs import GATEWAY_CORE, pinned
from bench.programs import Upstream
from bench.site import Site, Stack, Unavailable, installed, up

SHOWN_WITHIN_S = 60.0
CAPACITY = 12_000
"""Requests that the upstream takes at once: more than any load here has, so that nobody waits for a slot."""

TOML = Template("""\
[server]
host = "127.0.0.1"
port = $port

[auth]
api_keys = ["sk-bench"]

[[upstreams]]
name = "bench"
url = "http://127.0.0.1:$upstream"
kind = "openai"
capacity = $capacity
cancels_unstreamed = $cancels_unstreamed
""")


@contextmanager
def headrace(site: Site) -> Iterator[Stack]:
    """The checkout's own gateway, with a key check, as an operator would start it."""
    with _stack("headrace", site, cancels_unstreamed=True) as stack:
        yield stack


@contextmanager
def headrace_assembling(site: Site) -> Iterator[Stack]:
    """The same for a backend that doesn't stop plain answers: it's asked for streams, and they are put together."""
    with _stack("headrace-assembling", site, cancels_unstreamed=False) as stack:
        yield stack


def headrace_toml(port: int, upstream: Upstream, *, cancels_unstreamed: bool) -> str:
    """The configuration of a gateway in front of one upstream."""
    told = "true" if cancels_unstreamed else "false"
    return TOML.substitute(
        port=port, upstream=upstream.endpoint.port, capacity=CAPACITY, cancels_unstreamed=told
    )


def headrace_command() -> Path:
    """The `headrace` command of this environment.

    Raises:
        Unavailable: it isn't installed.
    """
    return installed("headrace", Path(sys.executable).parent / "headrace")


@contextmanager
def headrace_up(
    folder: Path, toml: str, port: int, *, core: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`headrace up` with this configuration and a data folder of its own, until the block ends; up when it begins.

    Raises:
        Unavailable: it isn't installed, ended at once, or gave no 200 on /health in time.
    """
    config = folder / "headrace.toml"
    config.write_text(toml)
    command = [str(headrace_command()), "up", "--config", str(config)]
    placed = command if core is None else pinned(command, core)
    with up("headrace", placed, folder, port, env=headrace_environment(folder)) as process:
        yield process


def headrace_environment(folder: Path) -> dict[str, str]:
    """The environment for a `headrace` whose data lies in `folder`; the model cache stays the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    cache = {name: value for name, value in os.environ.items() if name == "HEADRACE_CACHE"}
    return kept | cache | {"HEADRACE_HOME": str(_home(folder))}


def effective_settings(folder: Path) -> str:
    """Every setting in force, defaults included, of the gateway that was started in `folder`, as TOML.

    Raises:
        Unavailable: the command doesn't tell.
    """
    command = [str(headrace_command()), "config", "show", "--config", str(folder / "headrace.toml")]
    environment = headrace_environment(folder)
    try:
        done = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=SHOWN_WITHIN_S
        )
    except subprocess.SubprocessError as error:
        raise Unavailable(f"headrace: `config show` failed ({error})") from error
    return done.stdout


@contextmanager
def _stack(name: str, site: Site, *, cancels_unstreamed: bool) -> Iterator[Stack]:
    port = free_port()
    folder = Path(
        tempfile.mkdtemp(prefix=f"{name}-", dir=site.folder)
    )  # two that run at once share no database
    text = headrace_toml(port, site.upstream, cancels_unstreamed=cancels_unstreamed)
    if site.records:
        shutil.copytree(filling.filled(site.folder, site.records), _home(folder))
    with headrace_up(folder, text, port, core=GATEWAY_CORE) as process:
        endpoint = Endpoint(port)
        told = described(endpoint, effective_settings(folder), _home(folder))
        if site.records:
            told = f"records in the database before the start: {site.records:,}\n{told}"
        yield Stack(name, endpoint, process.pid, told)


def _home(folder: Path) -> Path:
    return folder / "headrace-home"
