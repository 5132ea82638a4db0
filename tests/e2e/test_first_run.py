"""The first minute: `headrace up` with nothing configured."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import __version__
from support.live import missing
from support.service import Service

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_model")]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Service]:
    """A service without any configuration, in a data folder that wasn't there."""
    with Service(tmp_path_factory.mktemp("first") / "home") as service:
        yield service


@pytest.mark.req("C02", "D01", "D03")
def test_the_line_that_it_prints_is_answered_by_a_chat(fresh: Service) -> None:
    if shutil.which("curl") is None:
        missing("curl", "no such program")
    done = subprocess.run(["bash", "-c", fresh.curl], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"].strip()


@pytest.mark.req("D44")
def test_nobody_gets_in_without_the_key(fresh: Service) -> None:
    status, answer = fresh.call("POST", "/v1/chat/completions", b"{}", {})
    assert status == 401
    assert answer["error"]["code"] == "invalid_api_key"


def test_the_key_is_for_its_owner_alone_and_is_told_on_the_console_only(fresh: Service) -> None:
    assert fresh.key.startswith("sk-hr-")
    assert fresh.key in fresh.console.text
    assert fresh.key not in fresh.log.text
    assert stat.S_IMODE((fresh.home / "first-key").stat().st_mode) == 0o600


@pytest.mark.req("C07", "D09")
def test_health_and_version_need_no_key(fresh: Service) -> None:
    told = {"status": "ok", "mode": "gateway", "default_model": "smollm2", "detail": "runtimes=1"}
    fresh.client().chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "hi"}], max_tokens=1
    )
    assert fresh.call("GET", "/health", b"", {}) == (200, told)
    assert fresh.call("GET", "/v1/health", b"", {}) == (200, told)
    assert fresh.call("GET", "/version", b"", {}) == (200, {"version": __version__})


@pytest.mark.req("C04")
def test_the_demo_model_is_listed(fresh: Service) -> None:
    assert [model.id for model in fresh.client().models.list()] == ["smollm2"]
    assert fresh.client().models.retrieve("smollm2").owned_by == "headrace"


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    with Service(tmp_path) as first:
        key = first.key
    with Service(tmp_path) as second:
        assert second.key == key
        assert key not in second.console.text, (
            "it is shown once; what is printed at every start ends up in a log"
        )
        done = subprocess.run(
            ["bash", "-c", second.curl], capture_output=True, text=True, timeout=60, check=False
        )
        assert json.loads(done.stdout)["object"] == "chat.completion"
        assert [model.id for model in second.client().models.list()] == ["smollm2"]


def test_a_configured_key_is_not_printed(tmp_path: Path) -> None:
    with Service(tmp_path, environ={"API_KEYS": "sk-of-the-team"}) as service:
        assert "sk-of-the-team" not in service.console.text + service.log.text
        assert "$HEADRACE_API_KEY" in service.curl
        assert not (tmp_path / "first-key").exists()
        status, _ = service.call("GET", "/v1/models", b"", {"authorization": "Bearer sk-of-the-team"})
        assert status == 200
