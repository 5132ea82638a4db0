"""The way to a backend that speaks HTTP, made of what the settings say of it."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.connectors.refusals import Dialect, Judging, KnownRefusals
from headrace.domain.inference import Api
from headrace.kernel.clock import Clock
from headrace.ports.backend import BackendSpec
from headrace.ports.connector import Traits

_FOR_LOOKS = 16
"""Connections beyond the capacity: a backend that is full must still be asked how it is."""


def bearer(spec: BackendSpec) -> list[tuple[bytes, bytes]]:
    """How OpenAI's API takes a key; empty where there is none."""
    return [(b"authorization", b"Bearer " + spec.api_key.encode())] if spec.api_key else []


def open_http(
    spec: BackendSpec,
    clock: Clock,
    *,
    headers: Sequence[tuple[bytes, bytes]],
    cancels_unstreamed: bool,
    dialect: Dialect | None = None,
    api: Api = Api.OPENAI,
) -> Judging:
    """A connector to it; nothing is connected yet. *headers* go with every request. *cancels_unstreamed* counts where the
    settings don't say it. *dialect* None: the refusals that we know. *api*: what it is asked.

    Raises:
        ConfigError: its URL, CA file or key can't work.
    """
    stops = cancels_unstreamed if spec.cancels_unstreamed is None else spec.cancels_unstreamed
    direct = DirectConnector(
        Endpoint.parse(spec.url, tls=Tls(ca_file=spec.ca_file)),
        clock=clock,
        headers=headers,
        limits=Limits(connections=spec.capacity + _FOR_LOOKS, idle=spec.capacity),
        timeouts=spec.timeouts,
        traits=Traits(cancels_unstreamed=stops, slots=spec.capacity, api=api),
    )
    return Judging(direct, dialect or KnownRefusals())
