"""How the gateways of others are started: one core, one worker, one upstream, nothing logged per request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from bench.endpoint import Endpoint, free_port
from bench.peers import PEERS
from bench.procs import GATEWAY_CORE, pinned
from bench.site import Site, Stack, installed, up

MOST_REQUESTS = 16_384
"""At once: more than any load here has."""

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
      thresholds: [{max_connections: $most, max_pending_requests: $most, max_requests: $most}]
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $upstream}}}
""")

LITELLM_YAML = Template("""\
model_list:
- model_name: bench
  litellm_params:
    model: openai/bench
    api_base: http://127.0.0.1:$upstream/v1
    api_key: none
    max_retries: 0
general_settings:
  master_key: sk-bench
  disable_spend_logs: true
litellm_settings:
  callbacks: []
  success_callback: []
  failure_callback: []
  cache: false
  num_retries: 0
router_settings:
  num_retries: 0
""")
LITELLM_ENVIRONMENT = {
    # Else it asks the network for prices at its start.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
}


@contextmanager
def envoy(site: Site) -> Iterator[Stack]:
    """Envoy as a bare proxy: one worker, no access log, no key check."""
    port = free_port()
    text = ENVOY_YAML.substitute(port=port, upstream=site.upstream.endpoint.port, most=MOST_REQUESTS)
    config = site.folder / "envoy.yaml"
    config.write_text(text)
    command = [str(_program("envoy")), "-c", str(config)]
    command += ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    with up("envoy", pinned(command, GATEWAY_CORE), site.folder, port) as process:
        yield Stack("envoy", Endpoint(port), process.pid, " ".join(command[3:]) + "\n" + text)


@contextmanager
def vllm_router(site: Site) -> Iterator[Stack]:
    """The vLLM project's router, in Rust: one static backend, no key check."""
    port, metrics_port = free_port(), free_port()
    url = f"http://127.0.0.1:{site.upstream.endpoint.port}"
    command = [str(_program("vllm-router")), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", url]
    command += ["--policy", "round_robin", "--max-concurrent-requests", str(MOST_REQUESTS)]
    command += ["--log-level", "error", "--prometheus-port", str(metrics_port)]
    with up("vllm-router", pinned(command, GATEWAY_CORE), site.folder, port) as process:
        yield Stack("vllm-router", Endpoint(port), process.pid, " ".join(["vllm-router", *command[1:]]))


@contextmanager
def litellm(site: Site) -> Iterator[Stack]:
    """LiteLLM's proxy: one worker, a master key, no database, no callbacks, no retries."""
    port = free_port()
    text = LITELLM_YAML.substitute(upstream=site.upstream.endpoint.port)
    config = site.folder / "litellm.yaml"
    config.write_text(text)
    command = [str(_program("litellm")), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    environment = {**os.environ, **LITELLM_ENVIRONMENT}
    placed = pinned(command, GATEWAY_CORE)
    # Its plain /health asks the upstream.
    with up("litellm", placed, site.folder, port, env=environment, health="/health/liveliness") as process:
        told = " ".join(f"{name}={value}" for name, value in LITELLM_ENVIRONMENT.items())
        shown = " ".join(["litellm", *command[3:]])
        yield Stack("litellm", Endpoint(port), process.pid, f"{told}\n{shown}\n{text}")


def _program(name: str) -> Path:
    return installed(name, PEERS[name].installed())
