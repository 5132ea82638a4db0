"""What the checkout's gateway does for a request while it is measured: a figure without that says little."""

from __future__ import annotations

import http.client
from pathlib import Path

from bench.endpoint import Endpoint

DATABASES = ("*.db", "*.sqlite", "*.sqlite3")


def described(endpoint: Endpoint, settings: str, home: Path) -> str:
    """What is on, then every setting in force; `settings` is what `headrace config show` prints, `home` the data folder."""
    told = [f"{name}: {state}" for name, state in features(endpoint, home)]
    lines = [line for line in settings.strip().splitlines() if not line.startswith("#")]
    return "\n".join([*told, *lines])


def features(endpoint: Endpoint, home: Path) -> list[tuple[str, str]]:
    """Name and state of each; what can be seen from outside is looked at in the running gateway."""
    return [
        ("keys", _keys(endpoint)),
        ("body check, model resolution, admission, a slot of the backend's capacity", "on"),
        ("metering", "on: tokens of every answer, as the backend reports them or else counted"),
        ("records", _records(home)),
        ("metrics", _metrics(endpoint)),
        ("log line per request", "off"),
    ]


def _keys(endpoint: Endpoint) -> str:
    status = _status(Endpoint(endpoint.port, key=""), "/v1/models")
    return f"{'checked' if status == 401 else 'NOT checked'} (without one /v1/models answers {status})"


def _records(home: Path) -> str:
    kept = sorted(path.name for pattern in DATABASES for path in home.rglob(pattern))
    if kept:
        return f"a database is kept in the data folder ({', '.join(kept)}), see [storage]"
    return "a stub: each settled request is counted in memory (LocalControlPlane.totals), nothing is written"


def _metrics(endpoint: Endpoint) -> str:
    status = _status(endpoint, "/metrics")
    shown = "served" if status == 200 else "for admin keys only"
    return f"counters are kept (requests by ending, tokens, executions), /metrics answers {status}: {shown}"


def _status(endpoint: Endpoint, path: str) -> int | str:
    try:
        return endpoint.ask("GET", path).status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
