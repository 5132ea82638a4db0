"""The real thing: `headrace up` in a process of its own, serving the demo model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import platformdirs
import pytest

from headrace.engine.catalog import Catalog
from headrace.kernel.errors import StartupError
from support.live import missing
from support.service import Service

CONFIG = """
[[engines]]
id = "smollm2"
model = "demo"
threads = 1

[[engines]]
id = "narrow"
model = "demo"
parallel = 1
threads = 1
n_ctx = 2048

[[engines]]
id = "embedder"
model = "demo"
embeddings = true
n_ctx = 1024
parallel = 2
threads = 1

[[engines]]
id = "broken"
model = "broken.gguf"
"""


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model, fetched into the machine's cache before the first test needs it."""
    cache = os.environ.get("HEADRACE_CACHE") or platformdirs.user_cache_dir("headrace", appauthor=False)
    try:
        return Catalog.from_environment(Path(cache), os.environ).resolve("demo")
    except StartupError as error:
        missing("engine", error.message)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Service]:
    """A gateway over four engines; tests that do it harm start one of their own.

    smollm2: as it comes. narrow: one slot. embedder: for embeddings. broken: its file is no model. One thread each, because
    llama.cpp's threads wait for one another in loops, which is ruinous where other processes want the cores, too.
    """
    home = tmp_path_factory.mktemp("service")
    (home / "broken.gguf").write_text("This is not a model.")
    with Service(home, CONFIG) as running:
        yield running


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[openai.OpenAI]:
    """OpenAI's client for it."""
    with service.client() as client:
        yield client
