"""The port to a kind of backend: how one is reached, and how it is found out what it holds and whether it lives.

A kind is an object of the entry-point group `headrace.backends`, under the name that `[[upstreams]] kind` has (C27).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Timeouts
from headrace.kernel.clock import Clock
from headrace.ports.connector import Connector

GROUP = "headrace.backends"


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """One backend as the settings have it.

    url: its base, `http://host:port/prefix`. api_key: never shown. cancels_unstreamed: None: what the kind does by itself.
    models: names given by the settings; empty: it is asked.
    """

    name: str
    url: str
    capacity: int = 64
    models: tuple[str, ...] = ()
    api_key: str = field(default="", repr=False)
    ca_file: Path | None = None
    cancels_unstreamed: bool | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)


class Report(msgspec.Struct, frozen=True):
    """What a backend says of itself.

    models: what it can serve; None: it doesn't say. loaded: those in memory; None: it doesn't say. slots: requests that it
    works on at once; None: it doesn't say. ready_in_s: not None while it can't answer yet: when it is expected to, 0 where
    nobody knows. product: what it is and its version, for people. absent: of the names given by the settings, those that it says
    it hasn't.
    """

    models: tuple[ModelInfo, ...] | None = None
    loaded: frozenset[str] | None = None
    slots: int | None = None
    ready_in_s: float | None = None
    product: str = ""
    absent: frozenset[str] = frozenset()


class Unwell(Exception):
    """A backend didn't answer, or not as one of its kind does. `message`: one sentence, free of secrets.

    refused_key: it answered, and doesn't take our key.
    """

    def __init__(self, message: str, *, refused_key: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.refused_key = refused_key


class Prober(Protocol):
    """Asks a backend how it is."""

    async def look(self) -> Report:
        """One cheap look, never an inference request; bounded to some seconds.

        Raises:
            Unwell: it doesn't answer as it should.
        """


class Opened(NamedTuple):
    """A backend that can be used. The connector's `close` frees what both hold."""

    connector: Connector
    prober: Prober


class BackendKind(Protocol):
    """What backends of one kind speak."""

    name: str
    title: str
    """For people: what products it is for."""

    def open(self, spec: BackendSpec, clock: Clock) -> Opened:
        """Make the way to one; nothing is connected yet.

        Raises:
            ConfigError: its settings can't work.
        """
