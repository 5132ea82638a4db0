"""The whole stack on the real engine: tokens per second against the engine asked directly, and the gateway's share of CPU."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

import platformdirs

from bench.endpoint import Endpoint, free_port
from bench.figures import Spread
from bench.ours import headrace_command, headrace_environment, headrace_up
from bench.procs import cpu_s, running
from bench.site import UP_WITHIN_S, Unavailable

STREAMS = 4
MAX_TOKENS = 96
WARM_UP_TOKENS = 8
MODEL_ID = "smollm2"
MODEL_FILES = "**/SmolLM2-135M-Instruct*.gguf"
PULL_WITHIN_S = 600
ANSWER_WITHIN_S = 60.0
ROUNDS_WITHIN_S = 90.0
"""No new round begins after this: on a busy machine an engine's threads wait for each other and crawl."""

TOML = Template("""\
[server]
host = "127.0.0.1"
port = $port

[auth]
api_keys = ["sk-bench"]

[[engines]]
id = "$id"
model = "$model"
n_ctx = 8192
parallel = $streams
""")


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Over the rounds, of which there are fewer than asked for where time ran out.

    `share` is the gateway's CPU time ÷ the engine's; `ratio` is through ÷ direct, round by round.
    """

    model: str
    rounds: int
    direct_tokens_per_s: Spread
    through_tokens_per_s: Spread
    ratio: Spread
    share: Spread


@dataclass(frozen=True, slots=True)
class _Turn:
    tokens_per_s: float
    gateway_cpu_s: float
    engine_cpu_s: float


def measure(folder: Path, model: Path, rounds: int) -> EngineFigures:
    """Ask both in turns, `STREAMS` streams at a time.

    Both engines are loaded throughout; the one that isn't asked waits without using CPU.

    Raises:
        site.Unavailable: one of them didn't come up.
    """
    port = free_port()
    toml = TOML.substitute(port=port, id=MODEL_ID, model=model, streams=STREAMS)
    with direct_engine(model, folder) as direct, headrace_up(folder, toml, port) as gateway:
        through = Endpoint(port)
        for endpoint in (direct, through):
            _generate(endpoint, WARM_UP_TOKENS)  # the first request loads and warms: it isn't counted
        pairs = _rounds(rounds, direct, through, gateway.pid)
    return _summary(model, pairs)


@contextmanager
def direct_engine(model: Path, folder: Path) -> Iterator[Endpoint]:
    """The engine alone on a port of its own, until the block ends.

    Raises:
        site.Unavailable: it didn't come up.
    """
    port = free_port()
    command = [sys.executable, "-m", "bench.direct_engine", str(model), str(port)]
    log = folder / "direct-engine.log"
    with log.open("w") as output, running(command, stdout=output, stderr=output) as process:
        endpoint = Endpoint(port)
        if not endpoint.wait_until_up("/health", UP_WITHIN_S, lambda: process.poll() is None):
            raise Unavailable("the engine alone didn't come up")
        yield endpoint


def demo_model(folder: Path) -> Path:
    """The demo model's file, fetched by `headrace pull demo` where it isn't in the cache yet.

    Raises:
        site.Unavailable: there is no such command, it failed, or left no model.
    """
    given = os.environ.get("HEADRACE_CACHE")
    cache = Path(given) if given else platformdirs.user_cache_path("headrace", appauthor=False)
    if (found := next(cache.glob(MODEL_FILES), None)) is None:
        command = [str(headrace_command()), "pull", "demo"]
        environment = headrace_environment(folder)
        done = subprocess.run(
            command, env=environment, timeout=PULL_WITHIN_S, capture_output=True, check=False
        )
        found = next(cache.glob(MODEL_FILES), None)
        if done.returncode or found is None:
            raise Unavailable("`headrace pull demo` brought no model")
    return found


def _rounds(count: int, direct: Endpoint, through: Endpoint, gateway: int) -> list[tuple[_Turn, _Turn]]:
    begun, pairs = time.monotonic(), [_round(0, direct, through, gateway)]
    while len(pairs) < count and time.monotonic() - begun < ROUNDS_WITHIN_S:
        pairs.append(_round(len(pairs), direct, through, gateway))
    return pairs


def _round(number: int, direct: Endpoint, through: Endpoint, gateway: int) -> tuple[_Turn, _Turn]:
    if number % 2:
        second = _turn(through, gateway)
        return _turn(direct, gateway), second
    return _turn(direct, gateway), _turn(through, gateway)


def _turn(endpoint: Endpoint, gateway: int) -> _Turn:
    own, family = cpu_s(gateway, children=False), cpu_s(gateway)
    speed = _generate(endpoint)
    own_after, family_after = cpu_s(gateway, children=False), cpu_s(gateway)
    return _Turn(speed, own_after - own, (family_after - own_after) - (family - own))


def _generate(endpoint: Endpoint, max_tokens: int = MAX_TOKENS) -> float:
    """Tokens per second over all streams, from the first request's start to the last one's end."""
    begun = time.monotonic()
    with ThreadPoolExecutor(STREAMS) as clients:
        tokens = sum(clients.map(lambda _: _stream(endpoint, max_tokens), range(STREAMS)))
    return tokens / (time.monotonic() - begun)


def _stream(endpoint: Endpoint, max_tokens: int) -> int:
    """Read one stream to its end; the tokens that its usage tells."""
    body = {
        "model": MODEL_ID,
        # The engine keeps prompts: only an opening that it never saw makes it compute this one.
        "messages": [{"role": "user", "content": f"{uuid.uuid4()}: tell me a long story about a mill."}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=ANSWER_WITHIN_S)
    headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return _tokens(connection.getresponse())
    finally:
        connection.close()


def _tokens(response: http.client.HTTPResponse) -> int:
    tokens = 0
    for line in response:
        if line.startswith(b"data: {") and b'"completion_tokens":' in line:
            usage = json.loads(line[6:]).get("usage") or {}
            tokens = usage.get("completion_tokens", tokens)
    if not tokens:
        raise RuntimeError(f"no tokens came, status {response.status}")
    return tokens


def _summary(model: Path, pairs: list[tuple[_Turn, _Turn]]) -> EngineFigures:
    def over(values: list[float]) -> Spread:
        spread = Spread.over(values)
        assert spread is not None
        return spread

    return EngineFigures(
        model.name,
        len(pairs),
        over([direct.tokens_per_s for direct, _ in pairs]),
        over([through.tokens_per_s for _, through in pairs]),
        over([through.tokens_per_s / direct.tokens_per_s for direct, through in pairs]),
        over([through.gateway_cpu_s / max(through.engine_cpu_s, 1e-9) for _, through in pairs]),
    )
