"""A gateway isn't held to the few open files that a shell gives its commands."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headrace.gateway.open_files import FILES_OF_OUR_OWN
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


@pytest.mark.slow
@pytest.mark.parametrize(("connections", "told"), [(1_000_000_000, True), (20, False)])
def test_the_log_says_when_there_are_too_few_for_the_connections(
    tmp_path: Path, few_files: int, connections: int, told: bool
) -> None:
    if few_files == resource.RLIM_INFINITY:
        pytest.skip("this machine grants as many as anybody likes: there are never too few")
    text = f"[server]\nmax_connections = {connections}\n[log]\nformat = 'json'\n{CONFIG}"
    with Service(tmp_path, text) as service:
        lines = [json.loads(line) for line in service.log.lines if "service.open_files" in line]
    facts = [(line["level"], line["granted"], line["needed"], line["room_for_connections"]) for line in lines]
    needed = 2 * connections + FILES_OF_OUR_OWN
    room = max(1, (few_files - FILES_OF_OUR_OWN) // 2)
    assert facts == ([("warning", few_files, needed, room)] if told else [])
