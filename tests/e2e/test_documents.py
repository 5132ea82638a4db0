"""What README and docs tell people to type works as it is written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.settings import load
from headrace.testing import Script
from support.command_line import Engine
from support.service import Service

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
ADDRESS, KEY = "http://127.0.0.1:11435", "sk-hr-…"
UPSTREAM, FILE = "http://10.0.0.5:8000", "~/models/my-model.gguf"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def every(*languages: str) -> list[object]:
    """All blocks of these languages, in all pages, as parameters: language and text."""
    return [
        pytest.param(language, block, id=f"{page.stem} {language} {number}")
        for page in PAGES
        for language in languages
        for number, block in enumerate(blocks(page, language), 1)
    ]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Service]:
    """A service that is configured as the tutorial says, with another file and another upstream."""
    engine = Engine(Script(models=("from-the-upstream",)))
    try:
        config = "\n".join(blocks(ROOT / "docs" / "tutorial.md", "toml"))
        assert UPSTREAM in config
        assert FILE in config
        config = config.replace(UPSTREAM, engine.url).replace(FILE, str(demo_model))
        with Service(
            tmp_path_factory.mktemp("told"), config.replace("[[engines]]", "[[engines]]\nthreads = 1")
        ) as service:
            yield service
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize(("language", "block"), every("sh", "python"))
def test_a_block_runs_as_it_is_written(told: Service, language: str, block: str) -> None:
    text = block.replace(ADDRESS, told.url).replace(KEY, told.key)
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command,
        cwd=told.home,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HEADRACE_HOME": str(told.home),
            "HEADRACE_URL": told.url,
            "HEADRACE_SERVER__PORT": str(told.port),
            "HEADRACE_API_KEY": told.key,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "export" in block or done.stdout.strip()
    assert '"error"' not in done.stdout


@pytest.mark.slow
def test_the_tutorials_configuration_serves_what_it_says(told: Service) -> None:
    with told.client() as client:
        assert {model.id for model in client.models.list()} == {
            "smollm2",
            "mine",
            "embedder",
            "from-the-upstream",
        }
        for model in ("mine", "from-the-upstream"):
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=2
            )
            assert answer.choices[0].message.content


@pytest.mark.parametrize(("language", "block"), every("toml"))
def test_a_configuration_is_valid(tmp_path: Path, language: str, block: str) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text(block, encoding="utf-8")
    assert load(file, {"HEADRACE_HOME": str(tmp_path)}).source == file


def test_the_pages_have_something_to_run() -> None:
    assert len(every("sh", "python")) > 10
    assert len(every("toml")) > 8
