"""LiteLLM's configuration as ours: what each part of it comes to mean."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.settings import ConfigFile
from headrace.settings.importing.litellm import translate
from headrace.settings.importing.writing import check, write


class Made:
    """What became of a configuration."""

    def __init__(self, text: str, *, with_secrets: bool = False) -> None:
        draft = translate(yaml.safe_load(text))
        self.text = write(draft, with_secrets=with_secrets)
        self.settings: ConfigFile = check(self.text)
        self.left = draft.left.lines

    def route(self, model: str) -> Any:
        (found,) = [route for route in self.settings.routes if route.model == model]
        return found

    def lacks(self, word: str) -> bool:
        return any(word in line for line in self.left)


def one(model: str, **params: object) -> str:
    entry = {"model_name": "m", "litellm_params": {"model": model, **params}}
    return yaml.safe_dump({"model_list": [entry]})


@pytest.mark.parametrize(
    ("model", "base", "kind", "url", "name"),
    [
        ("openai/gpt-9", None, "openai", "https://api.openai.com", "gpt-9"),
        ("gpt-9", None, "openai", "https://api.openai.com", "gpt-9"),
        ("claude-x", None, "anthropic", "https://api.anthropic.com", "claude-x"),
        ("openai/acme/big", "http://gpu:8000/v1", "openai", "http://gpu:8000", "acme/big"),
        ("hosted_vllm/acme/big", "http://gpu:8000", "openai", "http://gpu:8000", "acme/big"),
        ("ollama_chat/qwen3:8b", None, "ollama", "http://localhost:11434", "qwen3:8b"),
        ("groq/fast-one", None, "openai", "https://api.groq.com/openai", "fast-one"),
        ("anthropic/claude-x", "https://proxy.example", "anthropic", "https://proxy.example", "claude-x"),
    ],
)
def test_providers(model: str, base: str | None, kind: str, url: str, name: str) -> None:
    made = Made(one(model, **({"api_base": base} if base else {})))
    (upstream,) = made.settings.upstreams
    assert (upstream.kind, upstream.url, upstream.models) == (kind, url, (name,))
    assert made.route("m").target == name
    assert made.route("m").selector == f"node:{upstream.name}"
    assert made.left == []


@pytest.mark.parametrize(
    ("model", "params", "word"),
    [
        ("azure/deployment", {"api_base": "https://x.example"}, "'azure'"),
        ("bedrock/x", {}, "'bedrock'"),
        ("nonsense", {}, "without a provider"),
        ("hosted_vllm/x", {}, "api_base"),
        ("openai/x", {"api_base": "http://user:sk-secret@h"}, "api_base"),
        ("openai/x", {"api_base": "os.environ/BASE"}, "stands in the environment"),
    ],
)
def test_what_cannot_be_reached_is_told(model: str, params: dict[str, object], word: str) -> None:
    made = Made(one(model, **params))
    assert (made.settings.upstreams, made.settings.routes) == ((), ())
    assert made.lacks(word)
    assert not made.lacks("sk-secret")


def test_a_base_that_is_not_below_v1_is_told() -> None:
    made = Made(one("openai/x", api_base="https://h.example/v1beta/openai"))
    assert made.settings.upstreams[0].url == "https://h.example/v1beta/openai"
    assert made.lacks("at that very path")


def test_keys() -> None:
    made = Made(one("openai/x", api_key="os.environ/THE_KEY"))
    assert made.settings.upstreams[0].api_key is None
    assert 'HEADRACE_UPSTREAMS__0__API_KEY="$THE_KEY"' in made.text
    for none in ("none", "EMPTY", ""):
        assert "API_KEY" not in Made(one("openai/x", api_key=none)).text
    kept = Made(one("openai/x", api_key="sk-1"), with_secrets=True).settings.upstreams[0]
    assert kept.read_api_key() == "sk-1"
    hidden = Made(one("openai/x", api_key="sk-1"))
    assert "sk-1" not in hidden.text
    assert "HEADRACE_UPSTREAMS__0__API_KEY" in hidden.text
    assert Made(one("openai/x", api_key="two words"), with_secrets=True).lacks("one word")


def test_the_master_key_is_an_administrators() -> None:
    text = "general_settings: {master_key: sk-m, database_url: x, unheard_of: 1}"
    made = Made(text, with_secrets=True)
    assert [key.get_secret_value() for key in made.settings.auth.admin_keys] == ["sk-m"]
    assert made.lacks("general_settings.database_url")
    assert made.lacks("general_settings.unheard_of")
    assert "HEADRACE_AUTH__ADMIN_KEYS" in Made(text).text


GROUP = """
model_list:
  - {model_name: m, litellm_params: {model: openai/a, api_base: "http://h1", weight: 3}}
  - {model_name: m, litellm_params: {model: openai/a, api_base: "http://h2", weight: 1}}
  - {model_name: m, litellm_params: {model: openai/a, api_base: "http://h3"}}
"""


def test_a_group_is_divided_by_weight() -> None:
    route = Made(GROUP).route("m")
    assert (route.selector, route.strategy, route.target) == ("node:h1,h2,h3", "weighted", "a")
    assert route.weights == {"h1": 3, "h2": 1, "h3": 0}


@pytest.mark.parametrize(
    ("name", "strategy", "told"),
    [
        ("simple-shuffle", "weighted", False),
        ("least-busy", "least-busy", False),
        ("latency-based-routing", "latency", False),
        ("usage-based-routing-v2", "least-busy", True),
        ("cost-based-routing", "least-busy", True),
        ("of-my-own", "least-busy", True),
    ],
)
def test_strategies(name: str, strategy: str, told: bool) -> None:
    made = Made(f"{GROUP}router_settings: {{routing_strategy: {name}}}")
    assert made.route("m").strategy == strategy
    assert made.lacks("routing_strategy") == told


def test_limits_are_weights_where_nothing_else_is() -> None:
    made = Made(GROUP.replace("weight", "rpm"))
    assert made.route("m").weights == {"h1": 3, "h2": 1, "h3": 0}
    assert made.lacks("rpm, tpm")


def test_an_order_makes_fallbacks() -> None:
    made = Made(
        GROUP.replace("weight: 3", "order: 2")
        .replace("weight: 1", "order: 1")
        .replace('"http://h3"', '"http://h3", order: 2')
    )
    route = made.route("m")
    assert route.selector == "node:h2"
    assert [(each.selector, each.when_busy) for each in route.fallbacks] == [("node:h1,h3", False)]
    assert route.reruns


def test_several_names_in_a_group_are_told() -> None:
    made = Made(GROUP.replace('openai/a, api_base: "http://h3"', 'openai/b, api_base: "http://h3"'))
    (other,) = made.route("m").fallbacks
    assert (other.model, other.selector, other.when_busy) == ("b", "node:h3", True)
    assert made.lacks("by several names")


def test_models_of_one_endpoint_share_an_upstream() -> None:
    made = Made("""
model_list:
  - {model_name: a, litellm_params: {model: openai/a, api_base: "http://h"}}
  - {model_name: b, litellm_params: {model: openai/b, api_base: "http://h/v1/"}}
  - {model_name: c, litellm_params: {model: openai/c, api_base: "http://h", api_key: sk-other}}
  - {model_name: d, litellm_params: {model: openai/d, api_base: "http://h", max_parallel_requests: 2}}
""")
    assert [(each.name, each.models, each.capacity) for each in made.settings.upstreams] == [
        ("h", ("a", "b"), None), ("h-2", ("c",), None), ("h-3", ("d",), 2),
    ]  # fmt: skip
    assert made.settings.routes == (), "each name leads to its one backend by itself"


def test_a_name_that_others_serve_too_is_pinned() -> None:
    made = Made("""
model_list:
  - {model_name: a, litellm_params: {model: openai/a, api_base: "http://h1"}}
  - {model_name: b, litellm_params: {model: openai/a, api_base: "http://h2"}}
""")
    assert made.route("a").selector == "node:h1"
    assert (made.route("b").selector, made.route("b").target) == ("node:h2", "a")


def test_time_limits() -> None:
    made = Made(one("openai/x", timeout=30, stream_timeout="90"))
    assert (made.settings.upstreams[0].timeouts.first_byte, made.settings.upstreams[0].timeouts.idle) == (
        90,
        90,
    )
    assert made.lacks("stream_timeout")
    made = Made(one("openai/x") + "router_settings: {timeout: 20}\nlitellm_settings: {request_timeout: 40}\n")
    assert made.settings.upstreams[0].timeouts.idle == 20
    assert made.left == []
    made = Made(one("openai/x") + "litellm_settings: {request_timeout: 40}\n")
    assert made.settings.upstreams[0].timeouts.idle == 40


def test_fallbacks_and_aliases() -> None:
    made = Made("""
model_list:
  - {model_name: big, litellm_params: {model: openai/big, api_base: "http://h1"}}
  - {model_name: small, litellm_params: {model: ollama/small}}
  - {model_name: cloud, litellm_params: {model: openai/gpt, tags: [paid, "not a tag"]}}
router_settings:
  num_retries: 3
  fallbacks: [{big: [cloud, {model: small, temperature: 0}, nobody]}]
  model_group_alias: {gpt-4: big, hidden-one: {model: small, hidden: true}, lost: nowhere}
litellm_settings:
  default_fallbacks: [cloud]
""")
    assert [(each.selector, each.model) for each in made.route("big").fallbacks] == [
        ("node:openai", "gpt"), ("node:ollama", "small"),
    ]  # fmt: skip
    assert [each.model for each in made.route("small").fallbacks] == ["gpt"]
    assert made.route("cloud").fallbacks == ()
    assert made.route("gpt-4").target == "big"
    assert [each.model for each in made.route("gpt-4").fallbacks] == ["gpt", "small"]
    assert made.route("hidden-one").target == "small"
    assert all(route.reruns for route in made.settings.routes)
    assert made.settings.upstreams[2].tags == ("paid",)
    for word in ("(nobody)", "changes nothing else", "(hidden-one)", "(lost)", "num_retries", ".tags"):
        assert made.lacks(word), word


def test_patterns_and_odd_names() -> None:
    made = Made("""
model_list:
  - {model_name: "*", litellm_params: {model: "openai/*"}}
  - {model_name: "groq/*", litellm_params: {model: "groq/*"}}
  - {model_name: "two words", litellm_params: {model: openai/x}}
  - {model_name: "line\\nbreak", litellm_params: {model: "openai/q]\\n[server"}}
  - {model_name: 7}
  - just text
""")
    assert [(each.name, each.models) for each in made.settings.upstreams][:2] == [
        ("openai", ()),
        ("groq", ()),
    ]
    assert made.settings.routes == ()
    assert made.lacks("groq/*")
    assert made.lacks("two words")
    assert made.lacks("model_list[4]")
    assert not any("\n" in line for line in made.left)


def test_what_a_log_says() -> None:
    made = Made("litellm_settings: {json_logs: true, set_verbose: true, callbacks: [x], drop_params: true}")
    assert (made.settings.log.format, made.settings.log.level) == ("json", "debug")
    assert made.lacks("litellm_settings.callbacks")
    assert made.lacks("litellm_settings.drop_params")


def test_every_other_key_is_told() -> None:
    made = Made(
        one("openai/x", temperature=1, api_version="v")
        + "environment_variables: {A: sk-hidden}\nnew_section: 1\nrouter_settings: {redis_host: h, odd: 1}\n"
    )
    for key in ("environment_variables", "new_section", "router_settings.redis_host", "router_settings.odd",
                "litellm_params.temperature", "litellm_params.api_version"):  # fmt: skip
        assert made.lacks(key), key
    assert not made.lacks("sk-hidden")


WORDS = st.sampled_from(
    ["model_list", "model_name", "litellm_params", "model", "api_base", "api_key", "order", "fallbacks", "model_group_alias",
     "master_key", "routing_strategy", "hidden", "default_fallbacks", "openai/a", "ollama/b", "gpt-9", "claude-x", "a", "b",
     "http://h:1", "https://h/v1", "os.environ/A", "*"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=40,
)
OPTIONAL = (
    "api_base",
    "api_key",
    "weight",
    "order",
    "rpm",
    "timeout",
    "tags",
    "max_parallel_requests",
    "custom_llm_provider",
)
PARAMS = st.fixed_dictionaries({"model": WORDS}, optional=dict.fromkeys(OPTIONAL, VALUES))
ENTRIES = st.fixed_dictionaries({"model_name": WORDS | st.text(max_size=9), "litellm_params": PARAMS})


@settings(max_examples=150, deadline=None)
@given(st.lists(ENTRIES | VALUES, max_size=6), VALUES, VALUES, VALUES)
def test_whatever_it_is_the_result_is_one_that_the_settings_take(
    entries: list[Any], router: object, module: object, more: object
) -> None:
    document = {
        "model_list": entries,
        "router_settings": router,
        "litellm_settings": module,
        "general_settings": more,
    }
    for with_secrets in (False, True):
        write(translate(document), with_secrets=with_secrets)
