"""A gateway isn't held to the few open files that a shell gives its commands."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.service import Service

CONFIG = """
[[upstreams]]
name = "nobody"
url = "http://127.0.0.1:9"
models = ["m"]
"""
FEW = 128


@pytest.fixture
def few_files() -> Iterator[int]:
    """What is started now may open few files; yields how many it may ask for."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, most))
    try:
        yield most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.slow
def test_the_service_takes_all_the_open_files_that_it_may(tmp_path: Path, few_files: int) -> None:
    assert few_files > FEW, "this machine grants no more: nothing can be seen here"
    with Service(tmp_path, CONFIG) as service:
        assert psutil.Process(service.process.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == few_files
