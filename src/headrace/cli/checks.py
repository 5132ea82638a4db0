"""What `headrace doctor` looks at. Each check finds something and says what to do about it; none of them changes a thing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headrace.cli.access import gateway_url, own_key
from headrace.client import ClientError, HeadraceClient
from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.control.access import FIRST_KEY_FILE
from headrace.core.fetch import FetchFailed, fetch
from headrace.domain.inference import Timeouts
from headrace.engine.catalog import Catalog
from headrace.engine.sources.demo import DEMO_WHEEL
from headrace.gateway.listener import bind
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError, HeadraceError, StartupError
from headrace.kernel.units import format_bytes
from headrace.ports.connector import UpstreamRequest
from headrace.settings import Engine, Settings, Upstream, load

_LEAST_FREE_BYTES = 300 * 1024**2
_GOOD_FREE_BYTES = 2 * 1024**3
_TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
_COMMAND_TIMEOUT_S = 60.0
_YEAR_S = 365.25 * 86400
_EARLIEST = 56 * _YEAR_S
_LATEST = 130 * _YEAR_S


class Level(StrEnum):
    """How bad it is. FAIL: something that is asked for can't work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    check: str
    level: Level
    detail: str
    advice: str = ""


def run_quietly(command: Sequence[str]) -> bool:
    """Whether the command succeeds within a minute. Its output is dropped."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class Doctor:
    """One examination. `now`: UTC epoch seconds. `succeeds`: runs a command and says whether that went well."""

    environ: Mapping[str, str]
    now: float
    config: Path | None = None
    succeeds: Callable[[Sequence[str]], bool] = run_quietly

    def examine(self) -> list[Finding]:
        """Everything, in the order in which it should be mended. Blocks, and runs an event loop where it asks a server."""
        found = [self.clock()]
        try:
            settings = load(self.config, self.environ)
        except ConfigError as error:
            return [
                *found,
                Finding("settings", Level.FAIL, error.message, "Mend them; the rest depends on them."),
            ]
        found += settings_read(settings)
        found += [data_folder(settings.home), disk_space(settings.cache)]
        if settings.effective_engines:
            found.append(self.llama_cpp())
        catalog = Catalog.from_environment(settings.cache, self.environ)
        found += [self.model(engine, catalog) for engine in settings.effective_engines]
        if settings.ollama.probe:
            found.append(ollama(settings.ollama.url))
        found += [upstream(item) for item in settings.upstreams]
        return found + gateway(settings)

    def clock(self) -> Finding:
        """A clock that is years off makes every certificate invalid."""
        if _EARLIEST < self.now < _LATEST:
            return Finding("clock", Level.OK, "plausible")
        return Finding(
            "clock", Level.FAIL, "This machine's clock is years off.", "Set it; TLS depends on it."
        )

    def llama_cpp(self) -> Finding:
        """In a process of its own: on a processor that it isn't built for, it dies instead of raising."""
        if self.succeeds([sys.executable, "-c", "import xllamacpp"]):
            return Finding("llama.cpp", Level.OK, "can be loaded")
        return Finding(
            "llama.cpp",
            Level.FAIL,
            "The package xllamacpp can't be loaded.",
            "Try: python -m pip install --force-reinstall xllamacpp",
        )

    def model(self, engine: Engine, catalog: Catalog) -> Finding:
        """Whether the engine's model is here, or can be had."""
        name = f"model {engine.id}"
        if any(item.source == engine.model for item in catalog.cached()):
            return Finding(name, Level.OK, "is here")
        if engine.model.startswith("hf:"):
            return Finding(
                name,
                Level.WARN,
                f"{engine.model} isn't here yet; the start fetches it.",
                f"headrace pull {engine.id}",
            )
        if engine.model != "demo":
            try:
                return Finding(name, Level.OK, str(catalog.resolve(engine.model)))
            except StartupError as error:
                return Finding(
                    name, Level.FAIL, error.message, f"Correct the model of the engine {engine.id!r}."
                )
        package = DEMO_WHEEL.requirement.partition("==")[0]
        size = format_bytes(DEMO_WHEEL.size_bytes)
        if self.succeeds(
            [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
        ):
            return Finding(
                name,
                Level.WARN,
                f"isn't here yet; the first start fetches it ({size}).",
                "headrace pull demo",
            )
        return Finding(
            name,
            Level.FAIL,
            f"The demo model isn't here, and pip can't find {package}, in which it comes.",
            "Check the network and pip's index; or configure [[engines]] or [[upstreams]].",
        )


def settings_read(settings: Settings) -> Iterator[Finding]:
    """What was read, and what had no effect."""
    yield Finding("settings", Level.OK, str(settings.source or "no file; the defaults hold"))
    for warning in settings.warnings:
        yield Finding("environment", Level.WARN, warning, "Unset it, or leave it.")


def data_folder(home: Path) -> Finding:
    """It holds a key: others on this machine must not read it, and we must be able to write it."""
    name = "data folder"
    if not home.exists():
        parent = _existing(home)
        if not os.access(parent, os.W_OK | os.X_OK):
            return Finding(
                name,
                Level.FAIL,
                f"{home} can't be made: {parent} isn't writable.",
                "Set HEADRACE_HOME to another folder.",
            )
        return Finding(name, Level.OK, f"{home} (the first start makes it)")
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        return Finding(
            name,
            Level.FAIL,
            f"{home} is not a folder that can be written.",
            "Set HEADRACE_HOME to another folder.",
        )
    for path in (home / FIRST_KEY_FILE, home):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                return Finding(
                    name, Level.WARN, f"Others on this machine can look into {path}.", f"chmod go-rwx {path}"
                )
    return Finding(name, Level.OK, str(home))


def disk_space(cache: Path) -> Finding:
    """Room for models."""
    name = "disk space"
    free = shutil.disk_usage(_existing(cache)).free
    detail = f"{format_bytes(free)} free for models in {cache}"
    if free < _LEAST_FREE_BYTES:
        return Finding(
            name, Level.FAIL, detail, "Make room, or set HEADRACE_CACHE to a folder on another disk."
        )
    return Finding(name, Level.WARN if free < _GOOD_FREE_BYTES else Level.OK, detail)


def ollama(url: str) -> Finding:
    """An Ollama on this machine is used when it is there; it needn't be."""
    status = _status(url, "/api/version", None, Tls())
    there = "is running" if status == 200 else "is not running; it needn't be"
    return Finding("ollama", Level.OK, f"at {url} {there}")


def upstream(configured: Upstream) -> Finding:
    """Whether it answers, and takes our key."""
    name = f"upstream {configured.name}"
    path = "/api/tags" if configured.kind == "ollama" else "/v1/models"
    try:
        status = _status(configured.url, path, configured.read_api_key(), Tls(ca_file=configured.ca_file))
    except ConfigError as error:
        return Finding(name, Level.FAIL, error.message, "Correct the upstream's settings.")
    if isinstance(status, str):
        return Finding(
            name,
            Level.FAIL,
            f"{configured.url} can't be reached: {status}.",
            "Is it running, and is the url right?",
        )
    if status in (401, 403):
        return Finding(
            name,
            Level.FAIL,
            f"{configured.url} doesn't accept the key ({status}).",
            "Correct api_key or api_key_file.",
        )
    if status != 200:
        return Finding(
            name,
            Level.WARN,
            f"{configured.url} answers {status} to {path}.",
            "Name its models in the settings if it lists none.",
        )
    return Finding(name, Level.OK, f"{configured.url} answers")


def gateway(settings: Settings) -> list[Finding]:
    """Whether ours runs and the key opens it; or whether it could start."""
    url = gateway_url(settings)
    try:
        client = HeadraceClient(url, own_key(settings, url), timeouts=_TIMEOUTS)
    except ConfigError as error:
        return [
            Finding(
                "key",
                Level.FAIL,
                error.message,
                "Mend the file, or take it away: the next start makes another.",
            )
        ]
    try:
        return asyncio.run(_ask_gateway(client))
    except ClientError as error:
        return [_port(settings, error)]


async def _ask_gateway(client: HeadraceClient) -> list[Finding]:
    async with client:
        health = await client.health()
        level, advice = (Level.OK, "") if health.ok else (Level.WARN, "It is shutting down.")
        found = [Finding("gateway", level, f"{client.url}: {health.status}, {health.detail}", advice)]
        try:
            models = await client.models()
        except ClientError as error:
            advice = "Was the gateway started with other settings?"
            return [*found, Finding("key", Level.FAIL, error.message, advice)]
    found.append(Finding("key", Level.OK, "opens the gateway"))
    if not models:
        found.append(Finding("models", Level.WARN, "The gateway serves none.", "See its log."))
    return found


def _port(settings: Settings, error: ClientError) -> Finding:
    host, port = settings.server.host, settings.server.port
    if error.code != "unreachable":
        return Finding(
            "port",
            Level.FAIL,
            f"Something else answers on port {port}.",
            "Stop it, or set another server.port.",
        )
    try:
        bind(host, port).close()
    except (HeadraceError, OSError) as refused:
        return Finding("port", Level.FAIL, str(refused), "Set another server.port or server.host.")
    return Finding("port", Level.OK, f"{host}:{port} is free; the gateway isn't running")


def _status(url: str, path: str, key: str | None, tls: Tls) -> int | str:
    """The status of a GET, or why there is none."""
    headers = [(b"authorization", b"Bearer " + key.encode())] if key else []
    connector = DirectConnector(Endpoint.parse(url, tls=tls), clock=SystemClock(), headers=headers)
    return asyncio.run(_get(connector, path))


async def _get(connector: DirectConnector, path: str) -> int | str:
    try:
        return (await fetch(connector, UpstreamRequest("GET", path, timeouts=_TIMEOUTS))).status
    except FetchFailed as failed:
        return failed.failure.reason.rstrip(".")
    finally:
        await connector.close()


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
