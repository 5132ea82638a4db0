"""How each of the compared stacks is started: one core, one worker, one upstream, nothing logged per request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench.endpoint import Endpoint, free_port
from bench.peers import Peers
from bench.procs import GATEWAY_CORE, pinned, running
from bench.programs import Programs, Upstream

UP_WITHIN_S = 30.0

HEADRACE_TOML = Template("""\
[server]
host = "127.0.0.1"
port = $port

[auth]
api_keys = ["sk-bench"]

[[upstreams]]
name = "bench"
url = "http://127.0.0.1:$upstream"
kind = "openai"
capacity = 4096
cancels_unstreamed = $cancels_unstreamed
""")

ENVOY_YAML = Template("""\
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: $port}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: "/"}
                route: {cluster: upstream, timeout: 0s}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 5s
    circuit_breakers:
      thresholds: [{max_connections: 8192, max_pending_requests: 8192, max_requests: 8192}]
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $upstream}}}
""")


class Unavailable(Exception):
    """This stack can't be measured here; the text says why in one line. Nothing of it is left running."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that is up. `pid` is None where there is no gateway; `configuration` is what it was started with."""

    name: str
    endpoint: Endpoint
    pid: int | None
    configuration: str


@dataclass(frozen=True, slots=True)
class Site:
    """What every stack is started on: the built programs, the upstream behind it, and a folder for its files."""

    programs: Programs
    upstream: Upstream
    folder: Path


@contextmanager
def direct(site: Site) -> Iterator[Stack]:
    """No gateway: the load generator asks the upstream itself."""
    yield Stack("direct", site.upstream.endpoint, None, "the upstream asked without a gateway")


@contextmanager
def headrace(site: Site) -> Iterator[Stack]:
    """The checkout's own gateway, with a key check, as an operator would start it."""
    with _headrace("headrace", site, cancels_unstreamed=True) as stack:
        yield stack


@contextmanager
def headrace_assembling(site: Site) -> Iterator[Stack]:
    """The same for a backend that doesn't stop plain answers: it's asked for streams, and they are put together."""
    with _headrace("headrace-assembling", site, cancels_unstreamed=False) as stack:
        yield stack


@contextmanager
def envoy(site: Site) -> Iterator[Stack]:
    """Envoy as a bare proxy: one worker, no access log, no key check."""
    port = free_port()
    text = ENVOY_YAML.substitute(port=port, upstream=site.upstream.endpoint.port)
    config = site.folder / "envoy.yaml"
    config.write_text(text)
    binary = _installed("envoy", Peers.installed().envoy)
    command = [str(binary), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    with _up("envoy", pinned(command, GATEWAY_CORE), site.folder, port) as process:
        yield Stack("envoy", Endpoint(port), process.pid, " ".join(command[3:]) + "\n" + text)


@contextmanager
def vllm_router(site: Site) -> Iterator[Stack]:
    """The vLLM project's router, in Rust: one static backend, no key check."""
    port, metrics_port = free_port(), free_port()
    binary = _installed("vllm-router", Peers.installed().vllm_router)
    url = f"http://127.0.0.1:{site.upstream.endpoint.port}"
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", url]
    command += ["--policy", "round_robin", "--max-concurrent-requests", "8192", "--log-level", "error"]
    command += ["--prometheus-port", str(metrics_port)]
    with _up("vllm-router", pinned(command, GATEWAY_CORE), site.folder, port) as process:
        yield Stack("vllm-router", Endpoint(port), process.pid, " ".join(["vllm-router", *command[1:]]))


STACKS: dict[str, Callable[[Site], AbstractContextManager[Stack]]] = {
    "direct": direct,
    "headrace": headrace,
    "headrace-assembling": headrace_assembling,
    "envoy": envoy,
    "vllm-router": vllm_router,
}
USUAL = ("direct", "headrace", "envoy", "vllm-router")
"""Those that run when nobody says which."""


def headrace_toml(port: int, upstream: Upstream, *, cancels_unstreamed: bool) -> str:
    """The configuration of a gateway in front of one upstream."""
    told = "true" if cancels_unstreamed else "false"
    return HEADRACE_TOML.substitute(port=port, upstream=upstream.endpoint.port, cancels_unstreamed=told)


def headrace_command() -> Path:
    """The `headrace` command of this environment.

    Raises:
        Unavailable: it isn't installed.
    """
    return _installed("headrace", Path(sys.executable).parent / "headrace")


@contextmanager
def headrace_up(
    folder: Path, toml: str, port: int, *, core: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`headrace up` with this configuration and a data folder of its own, until the block ends; up when it begins.

    Raises:
        Unavailable: it isn't installed, ended at once, or gave no 200 on /health within `UP_WITHIN_S`.
    """
    config = folder / "headrace.toml"
    config.write_text(toml)
    command = [str(headrace_command()), "up", "--config", str(config)]
    placed = command if core is None else pinned(command, core)
    environment = headrace_environment(folder)
    with _up("headrace", placed, folder, port, environment) as process:
        yield process


def headrace_environment(folder: Path) -> dict[str, str]:
    """The environment for a `headrace` whose data lies in `folder`; the model cache stays the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    cache = {name: value for name, value in os.environ.items() if name == "HEADRACE_CACHE"}
    return kept | cache | {"HEADRACE_HOME": str(folder / "headrace-home")}


@contextmanager
def _headrace(name: str, site: Site, *, cancels_unstreamed: bool) -> Iterator[Stack]:
    port = free_port()
    folder = site.folder / name
    folder.mkdir(exist_ok=True)
    text = headrace_toml(port, site.upstream, cancels_unstreamed=cancels_unstreamed)
    with headrace_up(folder, text, port, core=GATEWAY_CORE) as process:
        yield Stack(name, Endpoint(port), process.pid, text)


def _installed(name: str, path: Path | None) -> Path:
    if path is None or not path.exists():
        raise Unavailable(f"{name}: not installed")
    return path


@contextmanager
def _up(
    name: str, command: Sequence[str], folder: Path, port: int, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    log = folder / f"{name}.log"
    with log.open("w") as output, running(command, stdout=output, stderr=output, env=env) as process:
        if not Endpoint(port).wait_until_up("/health", UP_WITHIN_S, lambda: process.poll() is None):
            words = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Unavailable(f"{name}: didn't come up ({words[-1][:200]})")
        yield process
