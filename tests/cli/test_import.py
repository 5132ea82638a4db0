"""`headrace import`: what it writes where, and what it says of files that are no configuration."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.importing_yaml import MOST_BYTES, read_yaml
from headrace.kernel.errors import HeadraceError
from headrace.testing import Script
from support.command_line import Engine, Result
from support.service import Service

Command = Callable[..., Result]
SECRET = "sk-very-secret-0123456789"
LITELLM = f"""
model_list:
  - model_name: chat
    litellm_params: {{model: openai/gpt-9, api_key: {SECRET}, temperature: 0.5}}
general_settings: {{master_key: {SECRET}-master}}
"""
SWAP = f"""
apiKeys: [{SECRET}]
models:
  qwen: {{cmd: "llama-server --port ${{PORT}} -m /srv/qwen.gguf --jinja"}}
  other: {{cmd: "serve --port ${{PORT}} --api-key {SECRET}"}}
peers:
  far: {{proxy: "http://10.0.0.9:8080", apiKey: {SECRET}, models: [a]}}
"""


@pytest.mark.parametrize(
    ("kind", "text", "left"), [("litellm", LITELLM, "temperature"), ("llama-swap", SWAP, "--jinja")]
)
def test_the_result_is_one_that_the_settings_take(
    headrace: Command, tmp_path: Path, kind: str, text: str, left: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    made = headrace("import", kind, "config.yaml")
    assert made.status == 0
    assert any(left in line for line in made.err.splitlines() if line.startswith("not carried over: "))
    (tmp_path / "headrace.toml").write_text(made.out)
    assert headrace("config", "check").status == 0
    assert SECRET not in made.out + made.err
    whole = headrace("import", kind, "config.yaml", "--with-secrets")
    assert SECRET in whole.out
    assert SECRET not in whole.err
    (tmp_path / "headrace.toml").write_text(whole.out)
    assert headrace("config", "check").status == 0
    assert SECRET not in headrace("config", "show").out


@pytest.mark.slow
def test_a_service_with_the_result_answers_by_the_same_names(
    headrace: Command, serve: Callable[[Script], Engine], tmp_path: Path
) -> None:
    engine = serve(Script(dialect="openai", models=("org/real",), checks_model=True, text="from the first"))
    other = serve(Script(dialect="openai", models=("spare",), checks_model=True, text="from the second"))
    (tmp_path / "config.yaml").write_text(f"""
model_list:
  - {{model_name: chat, litellm_params: {{model: hosted_vllm/org/real, api_base: "{engine.url}/v1"}}}}
  - {{model_name: spare, litellm_params: {{model: openai/spare, api_base: "{other.url}"}}}}
router_settings:
  model_group_alias: {{gpt-4: chat}}
  fallbacks: [{{chat: [spare]}}]
""")
    made = headrace("import", "litellm", "config.yaml").out
    with Service(tmp_path / "service", made) as service:
        client = service.client()

        def said(model: str) -> str | None:
            messages: Any = [{"role": "user", "content": "hi"}]
            return client.chat.completions.create(model=model, messages=messages).choices[0].message.content

        assert [said(model) for model in ("chat", "gpt-4", "spare")] == ["from the first"] * 2 + [
            "from the second"
        ]
        engine.stop()
        assert [said(model) for model in ("chat", "gpt-4")] == ["from the second"] * 2


def test_a_file_that_is_there_stays(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(LITELLM)
    output = tmp_path / "made.toml"
    arguments = ("import", "litellm", "config.yaml", "--output", str(output))
    first = headrace(*arguments)
    assert (first.status, first.out) == (0, "")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    output.write_text("mine")
    refused = headrace(*arguments)
    assert (refused.status, output.read_text()) == (1, "mine")
    assert "--force" in refused.err
    assert headrace(*arguments, "--force").status == 0
    assert "[[upstreams]]" in output.read_text()
    assert headrace("import", "litellm", "config.yaml", "--output", "/nowhere/made.toml").status == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "made.toml"]


@pytest.mark.parametrize(
    "raw",
    [
        b"- a list",
        b"key: [unclosed",
        b"key: !!python/object/apply:os.system [true]",
        b"\xff\xfe",
        b"a: " + b"x" * MOST_BYTES,
        b"[" * 5000,
        b"{a: &a [x], b: [" + b"*a," * 1001 + b"]}",
        b"".join(b"k%d: &k%d\n  <<: [%s]\n  m%d: 1\n" % (n, n, b",".join([b"*k%d" % (n - 1)] * 9), n) if n
                 else b"k0: &k0 {m: 1}\n" for n in range(12)),
    ],
    ids=["list", "broken", "python", "bytes", "large", "deep", "aliases", "merges"],
)  # fmt: skip
def test_files_that_are_no_configuration(headrace: Command, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(raw)
    result = headrace("import", "litellm", "config.yaml")
    assert (result.status, result.out) == (1, "")
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("headrace: config.yaml ")


def test_what_yaml_says_quotes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"a: *{SECRET}\n")
    with pytest.raises(HeadraceError) as caught:
        read_yaml(path)
    assert SECRET not in caught.value.message
    with pytest.raises(HeadraceError, match="can't be read"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_without_what_reads_yaml(headrace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(LITELLM)
    monkeypatch.delitem(sys.modules, "headrace.cli.importing_yaml", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = headrace("import", "litellm", "config.yaml")
    assert result.status == 1
    assert "pip install 'headrace[import]'" in result.err
