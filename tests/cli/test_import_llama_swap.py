"""llama-swap's configuration as ours: what each part of it comes to mean."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.settings import ConfigFile
from headrace.settings.importing.llama_server import parse
from headrace.settings.importing.llama_swap import translate
from headrace.settings.importing.writing import check, write

ENVIRON = {"MODELS_HERE": "/srv/models", "A_KEY": "sk-from-the-environment"}


class Made:
    """What became of a configuration."""

    def __init__(self, text: str, *, with_secrets: bool = False) -> None:
        draft = translate(yaml.safe_load(text), ENVIRON)
        self.text = write(draft, with_secrets=with_secrets)
        self.settings: ConfigFile = check(self.text)
        self.left = draft.left.lines

    def lacks(self, word: str) -> bool:
        return any(word in line for line in self.left)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-m a.gguf", {}),
        ("--model a.gguf --ctx-size 8192 --parallel 4", {"n_ctx": 8192, "parallel": 4}),
        ("-m=a.gguf -c=512", {"n_ctx": 512}),
        (
            "-m a.gguf -ngl 99 -mg 1 -b 512 -t 6",
            {"n_gpu_layers": 99, "main_gpu": 1, "n_batch": 512, "threads": 6},
        ),
        ("-m a.gguf -ngl auto -t -1 -np -1", {"n_gpu_layers": -1, "threads": 0}),
        ("-m a.gguf -ngl all", {"n_gpu_layers": 999}),
        ("--embeddings -m a.gguf", {"embeddings": True}),
        ("-m a.gguf -np 100000", {"parallel": 256}),
        ("--port 8080 --host 0.0.0.0 --alias x --api-key y -m a.gguf", {}),
    ],
)
def test_options_of_the_server(options: str, said: dict[str, object]) -> None:
    command = parse(f"/opt/x/llama-server {options}")
    assert command is not None
    assert command.model == "a.gguf"
    assert command.settings == {"n_ctx": 0, "parallel": 1} | said
    assert command.left == []


def test_options_that_engines_do_not_have() -> None:
    command = parse("llama-server -m a.gguf --jinja --temp -0.5 --mmproj p.gguf -fa on -c many")
    assert command is not None
    assert command.settings["n_ctx"] == 0
    assert [option for option, _ in command.left] == ["--jinja", "--temp", "--mmproj", "-fa", "n_ctx"]


@pytest.mark.parametrize(
    "text", ["", "vllm serve x", "docker run llama-server -m a.gguf", "llama-server 'unclosed", "# x"]
)
def test_commands_of_something_else(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ("-hf acme/chat-GGUF:Q4 -hff chat.gguf", "hf:acme/chat-GGUF/chat.gguf"),
        ("-hf acme/chat-GGUF:Q4", None),
        ("-m model.bin", None),
        ("--port 1", None),
    ],
)
def test_where_a_model_is(options: str, model: str | None) -> None:
    command = parse(f"llama-server.exe {options}")
    assert command is not None
    assert command.model == model
    assert bool(command.left) == (model is None)


SWAP = """
startPort: 6000
logLevel: warn
macros:
  bin: /opt/llama-server --port ${PORT}
  ctx: 4096
  args: -c ${ctx} --no-webui
models:
  zeta:
    cmd: |
      # the large one
      ${bin} \\
      -m ${env.MODELS_HERE}/${MODEL_ID}.gguf ${args}
    macros: {ctx: 16384}
    aliases: [gpt-4o-mini, {id: fast, name: Fast}]
    filters: {setParamsByID: {"${MODEL_ID}:high": {x: 1}}}
  alpha:
    cmd: serve --port ${PORT} --token sk-of-the-command
    useModelName: acme/big
    concurrencyLimit: 20
    timeouts: {connect: 3, responseHeader: 60, keepalive: 5}
    aliases: [big]
  fixed:
    cmd: docker run img
    proxy: http://127.0.0.1:9000/v1
peers:
  far: {proxy: "http://10.0.0.9:8080", apiKey: "${env.A_KEY}", models: [a, b]}
"""


def test_a_server_of_llama_cpp_is_an_engine() -> None:
    made = Made(SWAP)
    (engine,) = made.settings.engines
    assert (engine.id, engine.model, engine.n_ctx, engine.parallel) == (
        "zeta",
        "/srv/models/zeta.gguf",
        16384,
        1,
    )
    assert made.lacks("--no-webui")
    assert made.settings.log.level == "warning"


def test_other_servers_are_upstreams_on_the_ports_that_they_had() -> None:
    made = Made(SWAP)
    alpha, fixed, far = made.settings.upstreams
    assert (alpha.url, alpha.models, alpha.capacity) == ("http://localhost:6000", ("acme/big",), 20)
    assert (alpha.timeouts.connect, alpha.timeouts.first_byte) == (3, 60)
    assert (fixed.url, fixed.models) == ("http://127.0.0.1:9000", ("fixed",))
    assert (far.url, far.models) == ("http://10.0.0.9:8080", ("a", "b"))
    assert made.lacks("start this one yourself")
    assert made.lacks("timeouts.keepalive")
    assert "sk-of-the-command" not in made.text


def test_other_names_are_routes() -> None:
    found = {route.model: (route.selector, route.target) for route in Made(SWAP).settings.routes}
    assert found == {
        "gpt-4o-mini": ("node:local/zeta", "zeta"),
        "fast": ("node:local/zeta", "zeta"),
        "zeta:high": ("node:local/zeta", "zeta"),
        "alpha": ("node:alpha", "acme/big"),
        "big": ("node:alpha", "acme/big"),
    }


def test_keys_stay_where_they_are() -> None:
    text = f"{SWAP}\napiKeys: [sk-plain, '${{env.B_KEY}}', '${{env.B_KEY}} ${{x}}']"
    made = Made(text)
    assert "sk-plain" not in made.text
    assert 'HEADRACE_AUTH__API_KEYS="$B_KEY"' in made.text
    assert 'HEADRACE_UPSTREAMS__2__API_KEY="$A_KEY"' in made.text
    assert made.lacks("apiKeys")
    kept = Made(text, with_secrets=True)
    assert [key.get_secret_value() for key in kept.settings.auth.api_keys] == ["sk-plain"]
    assert "sk-from-the-environment" not in kept.text + made.text


def test_names_that_engines_cannot_have() -> None:
    made = Made(
        """
models:
  "Qwen 3 (large)": {cmd: llama-server -m /a.gguf, aliases: ["star*", "q3"]}
  "~odd": {cmd: llama-server -m /b.gguf}
"""
    )
    assert [engine.id for engine in made.settings.engines] == ["Qwen-3-large", "odd"]
    assert {route.model: route.target for route in made.settings.routes} == {
        "q3": "Qwen-3-large",
        "~odd": "odd",
    }
    assert made.lacks("star*")
    assert made.lacks("Qwen 3 (large)")


def test_what_has_no_place_is_told() -> None:
    made = Made(
        """
globalTTL: 5
groups: {g: {members: [a]}}
brandNew: 1
models:
  a: {cmd: llama-server -m rel.gguf, ttl: 1, env: [A=sk-hidden], unlisted: true, checkEndpoint: none, brandNew: 2}
  b: {cmd: llama-server -m /b.gguf, timeouts: {connect: 1}}
  c: {cmd: "serve ${unknown} --port 1", proxy: "http://localhost:${unknown}"}
  d: {cmd: llama-server -hf acme/x}
  e: {}
hooks: {on_startup: {preload: [a]}}
peers: {p: {proxy: "http://u:sk-hidden@h", models: []}, q: {proxy: "http://h", filters: {stripParams: x}}}
"""
    )
    for word in ("globalTTL", "groups", "brandNew:", "models: All engines", "models.*.ttl (a)", "models.*.env (a)",
                 "unlisted", "checkEndpoint", "models.*.brandNew", "models.*.timeouts (b)", "${unknown}", "(c)",
                 "no engine for it", "relative path", "peers.*.proxy (p)", "peers.*.filters (q)"):  # fmt: skip
        assert made.lacks(word), word
    assert not made.lacks("sk-hidden")
    assert not made.lacks("hooks")


def test_text_that_is_no_unicode_is_written_all_the_same() -> None:
    made = Made('peers: {p: {proxy: "http://h", models: ["a\\ud800", "b\\x7f"]}}')
    assert made.settings.upstreams[0].models == ("a?", "b\x7f")
    assert made.text.encode()


def test_macros_that_grow_are_bounded() -> None:
    macros = {f"m{n}": f"${{m{n - 1}}}" * 9 if n else "x" * 900 for n in range(20)}
    made = Made(
        yaml.safe_dump({"macros": macros, "models": {"a": {"cmd": "llama-server ${m19}"}}}, sort_keys=False)
    )
    assert made.settings.engines == ()


WORDS = st.sampled_from(
    ["models", "cmd", "proxy", "aliases", "id", "macros", "peers", "apiKey", "timeouts", "connect", "filters", "setParamsByID",
     "llama-server -m a.gguf", "llama-server -hf a/b", "serve --port ${PORT}", "${m}", "${env.A_KEY}", "http://h:1", "a", "m"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=30,
)
OPTIONAL = ("proxy", "aliases", "macros", "timeouts", "filters", "useModelName", "concurrencyLimit")
MODELS = st.fixed_dictionaries({"cmd": WORDS}, optional=dict.fromkeys(OPTIONAL, VALUES))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(WORDS | st.text(max_size=9), MODELS | VALUES, max_size=5), VALUES, VALUES, VALUES)
def test_whatever_it_is_the_result_is_one_that_the_settings_take(
    models: dict[str, Any], peers: object, macros: object, more: object
) -> None:
    document = {
        "models": models,
        "peers": peers,
        "macros": macros,
        "startPort": more,
        "apiKeys": more,
        "logLevel": more,
    }
    for with_secrets in (False, True):
        write(translate(document, ENVIRON), with_secrets=with_secrets)
