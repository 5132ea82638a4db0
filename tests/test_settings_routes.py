"""Routes in the settings: how they are written, what they mean, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.domain.routing import Route, Selector, Strategy, Target, TimeLimits
from headrace.kernel.errors import ConfigError
from headrace.settings import Settings, load, reference
from headrace.settings.routes import Route as Written
from headrace.settings.routes import static_routes, written

FULL = """
[[routes]]
model = "llama-*"
selector = "tag:gpu&node:box-*"
strategy = "weighted"
target = "llama-3"
weights = { a = 3.0, "local/b" = 0 }
tokens_per_day = 9
priority = -2
reruns = true
timeouts = { connect = "2s", first_byte = "60s", idle = "30s", total = "10m" }
fallbacks = [
  { selector = "node:hosted", model = "gpt-4o-mini", strategy = "prefix", weights = { hosted = 1 }, when_busy = true },
  { tokens_per_day = 100000 },
]
"""
MEANT = Route(
    id="llama",
    model="llama-*",
    targets=(
        Target(
            Selector.parse("tag:gpu & node:box-*"),
            "llama-3",
            Strategy.WEIGHTED,
            {"a": 3.0, "local/b": 0.0},
            tokens_per_day=9,
        ),
        Target(
            Selector.parse("node:hosted"), "gpt-4o-mini", Strategy.PREFIX, {"hosted": 1.0}, when_busy=True
        ),
        Target(tokens_per_day=100_000),
    ),
    priority=-2,
    reruns=True,
    time_limits=TimeLimits(2.0, 60.0, 30.0, 600.0),
    static=True,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(text: str, **environ: str) -> Settings:
    Path("headrace.toml").write_text(text)
    return load(None, {"HEADRACE_HOME": "home", **environ})


def one(text: str) -> str:
    """A route that would be right, but for what is said here."""
    return f'[[routes]]\nmodel = "m"\n{text}\n'


@pytest.mark.req("C16", "C19", "C35")
def test_all_that_a_route_can_say() -> None:
    assert static_routes(settings(FULL).routes) == (MEANT,)


@pytest.mark.req("C19")
@pytest.mark.parametrize(("selector", "meant"), [("node:a,b", "node:a,b"), ("any", "any"), ("", "any")])
def test_a_model_is_pinned_to_nodes_or_to_any(selector: str, meant: str) -> None:
    (route,) = static_routes(settings(one(f'selector = "{selector}"')).routes)
    assert route == Route("m", "m", (Target(Selector.parse(meant)),), static=True)


def test_without_a_name_each_gets_its_own() -> None:
    found = settings(one("") + one("") + one('id = "m-2"') + "[[routes]]\nmodel = '*'\nid = ''\n").routes
    assert [route.id for route in static_routes(found)] == ["m", "m-3", "m-2", "all"]


def test_what_is_written_is_read_again(folder: Path) -> None:
    first = settings(FULL + one("timeouts = { idle = '1s' }"))
    (folder / "again.toml").write_text(reference.show(first))
    assert load(folder / "again.toml", {"HEADRACE_HOME": "home"}).routes == first.routes
    for route in static_routes(first.routes):
        form = written(route)
        assert Written.model_validate(form).route(route.id, static=True) == route
        assert set(form) == set(Written.model_fields)


def test_in_the_environment_tables_are_json() -> None:
    found = settings(
        one(""),
        HEADRACE_ROUTES__0__SELECTOR="node:a",
        HEADRACE_ROUTES__0__WEIGHTS='{"A": 2}',
        HEADRACE_ROUTES__0__TIMEOUTS__TOTAL="1m",
        HEADRACE_ROUTES__0__FALLBACKS='[{"selector": "node:b"}]',
        HEADRACE_ROUTES__1__MODEL="n",
    )
    first, second = static_routes(found.routes)
    assert first.targets == (
        Target(Selector.parse("node:a"), weights={"A": 2.0}),
        Target(Selector.parse("node:b")),
    )
    assert (first.time_limits, second.id) == (TimeLimits(total=60.0), "n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (one('selector = "gpu"'), "'selector' in [[routes]] number 1 of headrace.toml is wrong: 'gpu' is not a selector"),
        (one('strategy = "fastest"'), "'strategy' in [[routes]] number 1 of headrace.toml should be 'round-robin', "),
        (one("weights = { a = -1 }"), "is wrong: the weight of 'a' has to be 0 or more; it is -1.0"),
        (one("weights = { a = inf }"), "is wrong: the weight of 'a' has to be 0 or more; it is inf"),
        (one("weights = { a = 0 }"), "is wrong: one weight at least has to be more than 0"),
        (one("weights = { 'a b' = 1 }"), "is wrong: 'a b' is not the name of a backend"),
        (one("weights = 3"), "'weights' in [[routes]] number 1 of headrace.toml should be a table; it is 3"),
        (one("weights = { a = 'x' }"), "'weights' in [[routes]] number 1 of headrace.toml should be a number"),
        (one("id = 'a'") * 2, "'id' in [[routes]] number 2 of headrace.toml is 'a', which [[routes]] number 1 is called"),
        (one("id = 'a/b'"), "'id' in [[routes]] number 1 of headrace.toml is wrong: 'a/b' is not a name"),
        (one("target = 'x-*'"), "'target' in [[routes]] number 1 of headrace.toml is wrong: 'x-*' is not the name of a mod"),
        (one("selctor = 'any'"), "Unknown key 'selctor' in [[routes]] number 1 of headrace.toml; did you mean 'selector'?"),
        (one("timeouts = { idle = '0s' }"), "'idle' in [timeouts] of [[routes]] number 1 of headrace.toml should be great"),
        (
            one("fallbacks = [{}, { selector = 'b' }]"),
            "'selector' in fallbacks number 2 of [[routes]] number 1 of headrace.toml is wrong: 'b' is not a selector",
        ),
        (
            one("fallbacks = [{ target = 'b' }]"),
            "Unknown key 'target' in fallbacks number 1 of [[routes]] number 1 of headrace.toml; known are selector, model",
        ),
        (one("fallbacks = [{ tokens_per_day = -1 }]"), "'tokens_per_day' in fallbacks number 1 of [[routes]] number 1"),
        ("[[routes]]\nmodel = 'a b'\n", "'model' in [[routes]] number 1 of headrace.toml is wrong: 'a b' is not the name of"),
        ("[[routes]]\nmodel = 'a[b]'\n", "is wrong: 'a[b]' is not the name of a model or a pattern of names"),
        ("[[routes]]\nselector = 'any'\n", "'model' is missing in [[routes]] number 1 of headrace.toml"),
        ("[routes]\nmodel = 'm'\n", "should be written as [[routes]], once for each"),
    ],
)  # fmt: skip
def test_the_sentence_names_the_place_and_the_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(text)
    assert message in caught.value.message


def test_a_variable_that_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match="HEADRACE_ROUTES__0__WEIGHTS should be a table; it is 'a=1'"):
        settings(one(""), HEADRACE_ROUTES__0__WEIGHTS="a=1")
