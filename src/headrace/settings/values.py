"""The kinds of values that settings hold, each with its check. A refusal says what a right value looks like."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import Ge
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr, WithJsonSchema

from headrace.kernel.units import parse_bytes, parse_seconds


class Unit(StrEnum):
    """How a number is written in the file."""

    DURATION = "duration"
    SIZE = "size"


class InConfigFolder:
    """Marks a path that is relative to the folder of the file it stands in."""


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not a duration; write it like 500ms, 30s, 15m or 2h")
    seconds = parse_seconds(value)
    if seconds > _LONGEST_S:
        raise ValueError(f"{value!r} is too long; ten years are the most")
    return seconds


def _bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{value!r} is not a size; write it like 512KiB, 10MiB or 2GB")
    if len(str(value)) > _MOST_DIGITS:
        raise ValueError(f"{value!r} is too large")
    return parse_bytes(value)


_LONGEST_S = 10 * 365 * 86400.0
_MOST_DIGITS = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}|\*))?")
_STORAGE_URL = re.compile(r"(sqlite(\+\w+)?:///|postgres(ql)?(\+\w+)?://)[^\s]")
HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name; use up to 64 letters, digits, '.', '_', ':' or '-', a letter or digit first"
        )
    return value


def _model_name(value: str) -> str:
    if not _MODEL_NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a model name; use up to 128 letters, digits, '.', '_', ':', '/' or '-', "
            "a letter or digit first"
        )
    return value


class StorageUrl(SecretStr):
    """Where a database is. It is shown without its password."""

    def _display(self) -> str:
        scheme, mark, rest = self.get_secret_value().partition("://")
        login, at, place = rest.rpartition("@")
        user, colon, _ = login.partition(":")
        login = f"{user}:********" if colon else login
        return re.sub(r"(password=)[^&]*", r"\1********", f"{scheme}{mark}{login}{at}{place}")


def _storage_url(value: StorageUrl) -> StorageUrl:
    """Never quotes the value: it may hold a password."""
    text = value.get_secret_value().strip()
    if text != "sqlite" and not _STORAGE_URL.match(text):
        raise ValueError(
            "it has to be the address of a database, like sqlite, sqlite:///path/to/file.db or "
            "postgresql://user:password@host/database"
        )
    return StorageUrl(text)


def _ledger_url(value: StorageUrl) -> StorageUrl:
    """Never quotes the value: it may hold a password."""
    text = value.get_secret_value().strip()
    if text != "embedded" and not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(
            "it has to be embedded, or the address of a Redis, like redis://:password@host:6379/0"
        )
    return StorageUrl(text)


def _per_minute(value: object) -> object:
    """`60/minute` is 60, as other gateways write it."""
    if isinstance(value, str):
        return re.sub(r"\s*(?:/|per)\s*(?:1\s*)?min(?:ute)?$", "", value.strip())
    return value


def _key(value: SecretStr) -> SecretStr:
    """Never quotes the value: it is a secret."""
    text = value.get_secret_value().strip()
    if not HEADER_SAFE.fullmatch(text):
        raise ValueError("a key is one word of visible ASCII characters")
    return SecretStr(text)


def _backend_url(value: str) -> str:
    """A trailing `/v1` is dropped: half of the world writes it, and our paths begin with it."""
    if any(mark in value for mark in "@?#"):  # may hold a password: not quoted
        raise ValueError("an address has no '@', '?' or '#'; a key goes into api_key or api_key_file")
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in value):
        raise ValueError(f"{value!r} is not an address; write it like http://10.0.0.5:8000")
    return value.rstrip("/").removesuffix("/v1")


def _origin(value: str) -> str:
    if value != "*" and not _ORIGIN.fullmatch(value):
        raise ValueError(
            f"{value!r} is not an origin; write it like https://app.example.com or http://localhost:*"
        )
    return value


def _proxy(value: str) -> str:
    try:
        return value if value == "unix" else str(ip_network(value, strict=False))
    except ValueError:
        raise ValueError(
            f"{value!r} is not an address or a network; write it like 10.0.0.0/8 or 127.0.0.1, or unix for Unix sockets"
        ) from None


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


_AS_WRITTEN = WithJsonSchema({"type": ["string", "number"]})
Seconds = Annotated[float, BeforeValidator(_seconds), Unit.DURATION, _AS_WRITTEN]
Bytes = Annotated[int, BeforeValidator(_bytes), Unit.SIZE, _AS_WRITTEN]
Name = Annotated[str, AfterValidator(_name)]
ModelName = Annotated[str, AfterValidator(_model_name)]
Key = Annotated[SecretStr, AfterValidator(_key)]
BackendUrl = Annotated[str, AfterValidator(_backend_url)]
Database = Annotated[
    StorageUrl,
    AfterValidator(_storage_url),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]
Ledger = Annotated[
    StorageUrl,
    AfterValidator(_ledger_url),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]
PerMinute = Annotated[int, BeforeValidator(_per_minute), Ge(0)]
Origin = Annotated[str, AfterValidator(_origin)]
Proxy = Annotated[str, AfterValidator(_proxy)]
ConfiguredPath = Annotated[Path | None, BeforeValidator(_none_if_empty), InConfigFolder()]
OptionalKey = Annotated[Key | None, BeforeValidator(_none_if_empty)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(_none_if_empty)]
OptionalName = Annotated[Name | None, BeforeValidator(_none_if_empty)]
