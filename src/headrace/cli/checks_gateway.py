"""The running gateway, or the port that it would take."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.cli.access import gateway_url, own_key
from headrace.cli.checks_finding import Finding, Level
from headrace.client import ClientError, HeadraceClient
from headrace.domain.inference import Timeouts
from headrace.gateway.listener import bind
from headrace.kernel.errors import ConfigError, HeadraceError
from headrace.settings import Settings

_TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
_LISTENING = "0A"
_MOST_PROCESSES = 4096


def gateway(settings: Settings) -> list[Finding]:
    """Whether ours runs and the key opens it; or whether it could start."""
    url = gateway_url(settings)
    try:
        client = HeadraceClient(url, own_key(settings, url), timeouts=_TIMEOUTS)
    except ConfigError as error:
        advice = "Mend the file, or take it away: the next start makes another."
        return [Finding("key", Level.FAILED, error.message, advice)]
    try:
        return asyncio.run(_ask(client, settings.server.port))
    except ClientError as error:
        return [_port(settings, error)]


async def _ask(client: HeadraceClient, port: int) -> list[Finding]:
    async with client:
        health = await client.health()
        level, advice = (Level.OK, "") if health.ok else (Level.WARNING, "It is shutting down.")
        found = [
            Finding("port", Level.OK, f"{port} is taken by our own running service"),
            Finding("gateway", level, f"{client.url}: {health.status}, {health.detail}", advice),
        ]
        try:
            models = await client.models()
        except ClientError as error:
            advice = "Was the gateway started with other settings?"
            return [*found, Finding("key", Level.FAILED, error.message, advice)]
    found.append(Finding("key", Level.OK, "opens the gateway"))
    if not models:
        advice = "Its log says why; headrace node list shows how each backend is."
        found.append(Finding("models", Level.WARNING, "The gateway serves none.", advice))
    return found


def _port(settings: Settings, error: ClientError) -> Finding:
    host, port = settings.server.host, settings.server.port
    if error.code == "unreachable":
        try:
            bind(host, port).close()
        except (HeadraceError, OSError) as refused:
            return Finding("port", Level.FAILED, str(refused), "Set another server.port or server.host.")
        return Finding("port", Level.OK, f"{host}:{port} is free; the gateway isn't running")
    who = listens_on(port)
    return Finding(
        "port",
        Level.FAILED,
        f"{who or 'Something else'} answers on port {port}, and is no Headrace.",
        "Stop it, or set another server.port.",
    )


def listens_on(port: int, proc: Path = Path("/proc")) -> str | None:
    """The process that listens on TCP *port* of this machine, as `name (pid 123)`; None where it can't be seen."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _inodes(proc / "net" / table, port)}
    if not inodes:
        return None
    processes = [folder for folder in proc.glob("[0-9]*") if folder.name.isdecimal()][:_MOST_PROCESSES]
    for folder in processes:
        try:
            for descriptor in (folder / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
        except OSError:
            continue  # another user's, or gone meanwhile
    return None


def _inodes(table: Path, port: int) -> set[str]:
    """What links to the sockets of a table of the kernel's look like, for those that listen on *port*."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return set()
    rows = [line.split() for line in lines]
    return {
        f"socket:[{row[9]}]"
        for row in rows
        if len(row) > 9 and row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port
    }
