"""Where things are kept: the database and the quota's Redis, and what of Python each needs."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, MutableMapping

from headrace.cli.checks_finding import Finding, Level
from headrace.kernel.errors import ConfigError, HeadraceError
from headrace.settings import Settings

_LIMIT_S = 5.0
_EXTRAS = {"postgresql": ("psycopg", "storage.url"), "redis": ("redis", "quota.url")}


def extras(settings: Settings) -> Iterator[Finding]:
    """What a configured URL needs and isn't installed."""
    wanted = {
        "postgresql": settings.storage.url.get_secret_value().startswith("postgres"),
        "redis": settings.quota.url.get_secret_value() != "embedded",
    }
    for extra, (module, key) in _EXTRAS.items():
        if wanted[extra] and importlib.util.find_spec(module) is None:
            yield Finding(
                f"extra {extra}",
                Level.FAILED,
                f"{key} needs the package {module}, which isn't installed.",
                f"python -m pip install 'headrace[{extra}]'",
            )


def database(settings: Settings, skews: MutableMapping[str, float]) -> Finding:
    """Whether it can be reached, and whether this program knows its schema. Puts how far its clock is ahead into *skews*."""
    from headrace.adapters.storage.backend import choose
    from headrace.adapters.storage.schema_version import Migrations

    try:
        backend = choose(settings.storage.url.get_secret_value(), settings.home)
    except ConfigError as error:
        return Finding("database", Level.FAILED, error.message, "Correct [storage] url.")
    if backend.file is not None and not backend.file.exists():
        return Finding("database", Level.OK, f"{backend.shown} (the first start makes it)")
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    from headrace.adapters.storage.schema_version import unusable

    migrations = Migrations(backend)
    try:
        engine = backend.engine(connections=1, writes=False, limit_s=_LIMIT_S)
        try:
            with engine.connect() as connection:
                current = migrations.current(connection)
                if backend.file is None:
                    before = time.time()
                    its = connection.execute(
                        text("SELECT extract(epoch FROM clock_timestamp())")
                    ).scalar_one()
                    skews["database"] = float(its) - (before + time.time()) / 2
        finally:
            engine.dispose()
    except DBAPIError as error:
        told = unusable(backend, error)
        return Finding("database", Level.FAILED, told, "headrace db check tells more.")
    except HeadraceError as error:
        return Finding("database", Level.FAILED, error.message, "headrace db check tells more.")
    return _schema(
        backend.shown, current, migrations.newest, known=current is None or migrations.knows(current)
    )


def _schema(shown: str, current: str | None, newest: str, *, known: bool) -> Finding:
    if not known:
        return Finding(
            "database",
            Level.FAILED,
            f"{shown} has schema {current}, which a newer Headrace made; this one knows none above {newest}.",
            "Install that version again, or put a backup from before in its place.",
        )
    if current != newest:
        return Finding(
            "database",
            Level.OK,
            f"{shown} has schema {current or 'none'}; the next start brings it to {newest}",
        )
    return Finding("database", Level.OK, f"{shown}, schema {newest}")


def quota(settings: Settings, skews: MutableMapping[str, float]) -> Finding | None:
    """Whether the quota's Redis answers; None where there is none to ask. Puts how far its clock is ahead into *skews*."""
    url = settings.quota.url.get_secret_value()
    if url == "embedded" or importlib.util.find_spec("redis") is None:
        return None
    import redis

    advice = "Is it running, and is [quota] url right?"
    try:
        # Its own way to read a URL; what it says of a wrong one may quote the password.
        client = redis.Redis.from_url(url, socket_timeout=_LIMIT_S, socket_connect_timeout=_LIMIT_S)
    except ValueError:
        return Finding("quota", Level.FAILED, "[quota] url is not the address of a Redis.", advice)
    try:
        before = time.time()
        seconds, micros = client.time()
        skews["Redis"] = seconds + micros / 1e6 - (before + time.time()) / 2
    except redis.AuthenticationError:
        return Finding("quota", Level.FAILED, "Redis refuses the password.", "Correct it in [quota] url.")
    except (redis.RedisError, OSError) as error:
        return Finding("quota", Level.FAILED, f"Redis doesn't answer: {type(error).__name__}.", advice)
    finally:
        client.close()
    return Finding("quota", Level.OK, "Redis answers")
