"""The stand-in for llama.cpp, and the real demo model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from headrace.engine.catalog import Catalog
from support.gguf import write_gguf

FAKE = Path(__file__).resolve().parents[1] / "support" / "fake_llama"

ModelNamed = Callable[[str], Path]


@pytest.fixture
def fake_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelNamed:
    """Children take the stand-in for the library; the result makes a model file that makes it behave so."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    return lambda behaviour: write_gguf(tmp_path / f"{behaviour}.gguf")


@pytest.fixture(scope="session")
def real_catalog() -> Catalog:
    """The catalog over the machine's cache, which the demo model is fetched into once."""
    cache = os.environ.get("HEADRACE_CACHE") or platformdirs.user_cache_dir("headrace")
    return Catalog.from_environment(Path(cache), os.environ)


@pytest.fixture(scope="session")
def demo_model(real_catalog: Catalog) -> Path:
    """The demo model's file."""
    return real_catalog.resolve("demo")
