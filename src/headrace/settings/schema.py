"""What can be set: one frozen model per section of `headrace.toml`. A field's description is its documentation.

Durations are seconds and sizes are bytes once they are read; in the file they are written `10s` and `64KiB`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from headrace.domain import quota as domain
from headrace.settings.routes import Route
from headrace.settings.section import Section
from headrace.settings.upstreams import Ollama, Upstream
from headrace.settings.values import (
    Bytes,
    Database,
    Key,
    Ledger,
    ModelName,
    Name,
    Origin,
    PerMinute,
    Proxy,
    Seconds,
    StorageUrl,
)


class MetricsAccess(StrEnum):
    """Who may read `/metrics`."""

    ADMIN = "admin"
    OPEN = "open"


class Server(Section):
    """The listener: where clients connect, and how long they may take."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on; `0.0.0.0` for all of IPv4."
    )
    port: int = Field(default=11435, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    cors_origins: tuple[Origin, ...] = Field(
        default=(
            "http://localhost:*",
            "https://localhost:*",
            "http://127.0.0.1:*",
            "https://127.0.0.1:*",
            "http://[::1]:*",
            "https://[::1]:*",
        ),
        description="Web origins whose pages may call the API; `:*` is any port, `*` alone is every origin.",
    )
    trusted_proxies: tuple[Proxy, ...] = Field(
        default=(),
        description="Proxies in front of it whose `X-Forwarded-For` is believed: addresses or networks, `unix` for peers on "
        "Unix sockets. Anybody else's is ignored.",
    )
    metrics: MetricsAccess = Field(
        default=MetricsAccess.ADMIN,
        description="Who may read `/metrics`: `admin`, those whose key has this scope; `open`, all who can connect.",
    )
    max_connections: int = Field(
        default=10000, ge=1, description="Open client connections at most; more are refused."
    )
    header_timeout: Seconds = Field(
        default=10.0, gt=0, description="Time to send the request line and headers."
    )
    body_timeout: Seconds = Field(default=30.0, gt=0, description="Longest pause while a body is being sent.")
    keep_alive: Seconds = Field(default=75.0, ge=0, description="How long an idle connection stays open.")
    max_header_bytes: Bytes = Field(
        default=64 * 1024, ge=1024, description="Size of request line and headers at most."
    )
    shutdown_delay: Seconds = Field(
        default=0.0,
        ge=0,
        description="Time between saying 'not ready' and closing the door, for load balancers to notice.",
    )
    drain: Seconds = Field(
        default=30.0, ge=0, description="Time that running answers get to finish at shutdown."
    )

    @property
    def cors_origin_regex(self) -> str:
        """What an `Origin` header has to match in full; empty when no origin is allowed."""
        return "|".join(_origin_pattern(origin) for origin in self.cors_origins)


def _origin_pattern(origin: str) -> str:
    if origin == "*":
        return ".*"
    if origin.endswith(":*"):
        return re.escape(origin[:-2]) + r"(?::\d{1,5})?"
    return re.escape(origin)


class Auth(Section):
    """Who may use the service."""

    api_keys: tuple[Key, ...] = Field(
        default=(),
        description="Static keys for inference. Without any key, the first start makes an admin key and keeps it.",
    )
    admin_keys: tuple[Key, ...] = Field(
        default=(), description="Static keys that may do everything, administration included, without limits."
    )
    secret_models: bool = Field(
        default=False,
        description="To a key that may not use a model, say that there is none (404) instead of that it may not (403).",
    )


class Engine(Section):
    """A model that this machine serves itself."""

    id: ModelName = Field(description="Name of the model in the API; unique.")
    model: str = Field(
        min_length=1,
        description="`demo`, a path to a `.gguf` file, `hf:owner/repo/file.gguf`, or `ollama:name` (its file, no copy).",
    )
    n_ctx: int = Field(
        default=8192,
        ge=0,
        description="Context in tokens, shared by all that is decoded at once; 0: the model's own.",
    )
    parallel: int = Field(default=4, ge=1, le=256, description="Requests decoded at once.")
    embeddings: bool = Field(default=False, description="Serve embeddings with it instead of text.")
    n_batch: int = Field(default=2048, ge=1, description="Prompt tokens computed at once.")
    n_gpu_layers: int = Field(default=-1, ge=-1, description="Layers on the GPU; -1: llama.cpp chooses.")
    main_gpu: int = Field(default=0, ge=0, description="Which GPU holds what isn't split.")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: llama.cpp chooses.")


class Allowance(Section):
    """What one who asks may use; 0 is no limit. Windows begin with their unit of UTC."""

    requests_per_minute: PerMinute = Field(
        default=0, description="Requests in a minute; `60/minute` is 60, too."
    )
    requests_per_day: int = Field(default=0, ge=0, description="Requests in a day.")
    requests_per_month: int = Field(default=0, ge=0, description="Requests in a month.")
    tokens_per_minute: int = Field(default=0, ge=0, description="Tokens in a minute, read and written.")
    tokens_per_day: int = Field(default=0, ge=0, description="Tokens in a day.")
    tokens_per_month: int = Field(default=0, ge=0, description="Tokens in a month.")
    concurrency: int = Field(default=0, ge=0, description="Requests that wait or run at once.")
    default_max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Limit of an answer for requests that set none, and what they are reckoned with; unset: the backend's own.",
    )

    @property
    def allowance(self) -> domain.Tier:
        """The same as the control plane knows it."""
        limits = {name: getattr(self, name) for name in domain.Limits.__struct_fields__}
        return domain.Tier(domain.Limits(**limits), self.default_max_tokens)


class Tier(Allowance):
    """What the users of one kind may use. A user's own limits win over those of its tier."""

    name: Name = Field(description="Its name; unique.")


class Limits(Allowance):
    """What one request may take, and what each key or user may use that has no tier and no limit of its own."""

    max_body: Bytes = Field(default=10 * 1024 * 1024, ge=1024, description="Size of a request body at most.")
    queue_wait: Seconds = Field(
        default=60.0, ge=0, description="How long a request waits for a free place before it is refused."
    )
    queue_size: int = Field(default=1024, ge=0, description="Requests that wait at once; more are refused.")
    anonymous_requests_per_minute: int = Field(
        default=60,
        ge=0,
        description="Requests without a valid key that one address (of IPv6: one /64) may send; 0: no limit. Who has a valid "
        "key isn't counted.",
    )


class Models(Section):
    """Which model answers a request that names none."""

    default: str | None = Field(
        default=None, description="For chat and completions; unset: the request has to name one."
    )
    default_embed: str | None = Field(
        default=None, description="For embeddings; unset: the request has to name one."
    )


class Storage(Section):
    """Where users, keys, records of requests and quota are kept."""

    url: Database = Field(
        default=StorageUrl("sqlite"),
        json_schema_extra={"default": "sqlite"},
        description="`sqlite`: the file `headrace.db` in the data folder. Or `sqlite:///path/to/file.db`, or "
        "`postgresql://user:password@host/database`, with what libpq knows behind a `?` (`sslmode=verify-full`).",
    )
    records_retention: Seconds = Field(
        default=30 * 86400.0, gt=0, description="How long the record of a request is kept."
    )


class OnUnavailable(StrEnum):
    """What becomes of requests that are held to limits while what is used can't be counted."""

    REFUSE = "refuse"
    ALLOW = "allow"


class Quota(Section):
    """Where it is counted what keys and users have used."""

    url: Ledger = Field(
        default=StorageUrl("embedded"),
        json_schema_extra={"default": "embedded"},
        description="`embedded`: in this process, its journal in the database. Or `redis://:password@host:6379/0`, for several "
        "gateways that share it; it needs the extra `redis`.",
    )
    strict: bool = Field(
        default=False,
        description="Embedded only: commit each reservation before its request begins, so that a crash charges nothing beyond "
        "what was under way. Else it may charge some hundredths of a limit too much, never too little.",
    )
    on_unavailable: OnUnavailable = Field(
        default=OnUnavailable.REFUSE,
        description="While the journal or Redis can't be reached: `refuse`, or `allow` what was set aside beforehand.",
    )
    prefix: str = Field(
        default="", description="In front of every key in Redis; `{headrace}:` for a cluster."
    )


class LogLevel(StrEnum):
    """How much is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """For whom the log is written."""

    CONSOLE = "console"
    JSON = "json"


class Log(Section):
    """The log, on standard error."""

    level: LogLevel = Field(default=LogLevel.INFO, description="The least that is told.")
    format: LogFormat = Field(
        default=LogFormat.CONSOLE, description="`console` for people, `json` for machines."
    )


class ConfigFile(Section):
    """Everything that `headrace.toml` can hold."""

    server: Server = Server()
    auth: Auth = Auth()
    engines: tuple[Engine, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    ollama: Ollama = Ollama()
    routes: tuple[Route, ...] = ()
    limits: Limits = Limits()
    tiers: tuple[Tier, ...] = ()
    models: Models = Models()
    storage: Storage = Storage()
    quota: Quota = Quota()
    log: Log = Log()


DEMO_ENGINE = Engine(id="smollm2", model="demo")


class Settings(ConfigFile):
    """The settings of one run: what the file and the environment say, and where things are kept.

    home: the data folder. cache: where models are kept. source: the file that was read, None without one.
    unused_aliases: names of variables that are known, set, and read by nothing yet.
    warnings: sentences for a person, about these and other variables that do nothing.
    """

    home: Path
    cache: Path
    source: Path | None = None
    unused_aliases: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def serves_demo(self) -> bool:
        """Whether nothing to serve is configured, so that the demo model is served."""
        return not self.engines and not self.upstreams

    @property
    def effective_engines(self) -> tuple[Engine, ...]:
        """The engines to run: those configured, or else the demo model."""
        return (DEMO_ENGINE,) if self.serves_demo else self.engines
