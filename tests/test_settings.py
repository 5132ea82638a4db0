"""Settings: where they come from, what beats what, and what is said about mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernel.errors import ConfigError
from headrace.kernel.units import parse_bytes, parse_seconds
from headrace.settings import DEMO_ENGINE, Settings, load, reference


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(text: str = "", **environ: str) -> Settings:
    """The settings of a `headrace.toml` with this text, under this environment."""
    Path("headrace.toml").write_text(text)
    return load(None, {"HEADRACE_HOME": "home", **environ})


def refusal(text: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(text, **environ)
    return caught.value.message


UPSTREAM = '[[upstreams]]\nname = "a"\nurl = "http://h:1"\n'


def test_without_anything_the_demo_model_is_served_on_loopback() -> None:
    found = load(None, {})
    assert (found.server.host, found.server.port) == ("127.0.0.1", 11435)
    assert found.serves_demo
    assert found.effective_engines == (DEMO_ENGINE,)
    assert (DEMO_ENGINE.id, DEMO_ENGINE.model) == ("smollm2", "demo")
    assert found.source is None


@pytest.mark.parametrize("text", ['[[engines]]\nid = "e"\nmodel = "demo"\n', UPSTREAM])
def test_the_demo_model_is_not_served_beside_what_is_configured(text: str) -> None:
    assert not settings(text).serves_demo


@pytest.mark.req("D32", "D33")
def test_every_key_of_the_file_arrives_in_its_unit() -> None:
    found = settings(
        """
        [server]
        host = "0.0.0.0"
        port = 80
        header_timeout = "500ms"
        keep_alive = 5
        max_header_bytes = "32KiB"
        drain = "2m"
        [[engines]]
        id = "org/small"
        model = "hf:o/r/f.gguf"
        n_ctx = 2048
        n_batch = 256
        n_gpu_layers = 20
        main_gpu = 1
        [[upstreams]]
        name = "box"
        url = "https://10.0.0.5:8000/v1/"
        kind = "ollama"
        models = ["m"]
        tags = ["gpu"]
        timeouts = { connect = "1s" }
        [limits]
        max_body = "1MiB"
        [models]
        default = "m"
        [log]
        level = "debug"
        format = "json"
        """
    )
    assert (found.server.host, found.server.port, found.server.header_timeout) == ("0.0.0.0", 80, 0.5)
    assert (found.server.keep_alive, found.server.max_header_bytes, found.server.drain) == (5.0, 32768, 120.0)
    engine, upstream = found.engines[0], found.upstreams[0]
    assert (engine.id, engine.n_ctx, engine.n_batch) == ("org/small", 2048, 256)
    assert (engine.n_gpu_layers, engine.main_gpu) == (20, 1)
    assert (upstream.url, upstream.kind, upstream.models) == (
        "https://10.0.0.5:8000",
        "ollama",
        ("m",),
    )
    assert upstream.tags == ("gpu",)
    assert (upstream.timeouts.connect, upstream.timeouts.idle) == (1.0, 600.0)
    assert (found.limits.max_body, found.models.default) == (1024 * 1024, "m")
    assert (found.log.level, found.log.format) == ("debug", "json")


def test_what_an_upstream_leaves_open_and_what_it_can_say() -> None:
    plain = settings(UPSTREAM).upstreams[0]
    assert (plain.kind, plain.capacity, plain.weight, plain.timeouts.total) == ("openai", None, 1.0, None)
    said = settings(UPSTREAM + "capacity = 8\nweight = 2.5\ntimeouts = { total = '5m' }\n").upstreams[0]
    assert (said.capacity, said.weight, said.timeouts.total) == (8, 2.5, 300.0)


def test_which_file_is_read(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    (home / "headrace.toml").write_text("[server]\nport = 1\n")
    environ = {"HEADRACE_HOME": str(home)}
    assert load(None, environ).server.port == 1
    (folder / "headrace.toml").write_text("[server]\nport = 2\n")
    assert load(None, environ).server.port == 2
    (folder / "mine.toml").write_text("[server]\nport = 3\n")
    assert load(folder / "mine.toml", environ).server.port == 3
    assert load(folder / "mine.toml", environ).source == folder / "mine.toml"


def test_an_engine_and_an_upstream_may_have_one_name() -> None:
    assert settings("[[engines]]\nid = 'a'\nmodel = 'demo'\n" + UPSTREAM).upstreams[0].name == "a"


def test_paths_of_a_file_are_relative_to_it(folder: Path) -> None:
    (folder / "etc").mkdir()
    file = folder / "etc" / "mine.toml"
    file.write_text(
        '[[engines]]\nid = "e"\nmodel = "models/a.gguf"\n[[engines]]\nid = "f"\nmodel = "hf:o/r/a.gguf"\n'
        + UPSTREAM
        + 'api_key_file = "key"\nca_file = "/etc/ca.pem"\n'
    )
    found = load(file, {})
    assert found.engines[0].model == str(folder / "etc" / "models" / "a.gguf")
    assert found.engines[1].model == "hf:o/r/a.gguf"
    assert found.upstreams[0].api_key_file == folder / "etc" / "key"
    assert found.upstreams[0].ca_file == Path("/etc/ca.pem")


def test_home_and_cache_come_from_the_environment() -> None:
    found = load(None, {"HEADRACE_HOME": "/srv/headrace", "HEADRACE_CACHE": "/var/cache/hr"})
    assert (found.home, found.cache) == (Path("/srv/headrace"), Path("/var/cache/hr"))
    other = load(None, {})
    assert "headrace" in str(other.home)
    assert "headrace" in str(other.cache)


class TestEnvironment:
    @pytest.mark.parametrize(
        ("name", "value", "section", "key", "expected"),
        [
            ("HEADRACE_SERVER__PORT", "8000", "server", "port", 8000),
            ("HEADRACE_SERVER__DRAIN", "1m", "server", "drain", 60.0),
            ("HEADRACE_LIMITS__MAX_BODY", "2MB", "limits", "max_body", 2_000_000),
            ("HEADRACE_OLLAMA__PROBE", "false", "ollama", "probe", False),
            (
                "HEADRACE_SERVER__CORS_ORIGINS",
                "https://a.b, http://c:*",
                "server",
                "cors_origins",
                ("https://a.b", "http://c:*"),
            ),
            ("HEADRACE_SERVER__CORS_ORIGINS", '["https://a.b"]', "server", "cors_origins", ("https://a.b",)),
            ("HEADRACE_MODELS__DEFAULT", "m", "models", "default", "m"),
            ("HEADRACE_LOG__LEVEL", "error", "log", "level", "error"),
        ],
    )
    def test_a_key_by_its_variable(
        self, name: str, value: str, section: str, key: str, expected: object
    ) -> None:
        assert getattr(getattr(load(None, {name: value}), section), key) == expected

    def test_it_beats_the_file_and_leaves_the_rest_of_it(self) -> None:
        found = settings("[server]\nport = 1\nhost = '::1'\n", HEADRACE_SERVER__PORT="2")
        assert (found.server.port, found.server.host) == (2, "::1")

    def test_an_empty_variable_is_unset(self) -> None:
        assert settings("[server]\nport = 1\n", HEADRACE_SERVER__PORT="", API_KEYS=" ").server.port == 1

    def test_tables_of_a_list_by_number(self) -> None:
        found = settings(
            UPSTREAM,
            HEADRACE_UPSTREAMS__0__API_KEY="secret",
            HEADRACE_UPSTREAMS__0__TIMEOUTS__CONNECT="9s",
            HEADRACE_UPSTREAMS__1__NAME="b",
            HEADRACE_UPSTREAMS__1__URL="http://b:2",
        )
        first, second = found.upstreams
        assert (first.name, first.read_api_key(), first.timeouts.connect) == ("a", "secret", 9.0)
        assert (second.name, second.url) == ("b", "http://b:2")

    def test_a_whole_list_as_json_takes_the_place_of_the_files(self) -> None:
        listed = json.dumps([{"name": "b", "url": "http://b:2"}])
        assert [item.name for item in settings(UPSTREAM, HEADRACE_UPSTREAMS=listed).upstreams] == ["b"]

    def test_more_than_ten_tables_keep_their_order(self) -> None:
        environ = {f"HEADRACE_ENGINES__{number}__ID": f"e{number}" for number in range(12)}
        environ |= {f"HEADRACE_ENGINES__{number}__MODEL": "demo" for number in range(12)}
        assert [engine.id for engine in load(None, environ).engines] == [f"e{number}" for number in range(12)]


class TestAliases:
    @pytest.mark.req("C41")
    def test_the_founding_names_mean_the_same(self) -> None:
        found = load(
            None,
            {
                "API_KEYS": "one, two",
                "OLLAMA_BASE_URL": "http://localhost:9999",
                "DEFAULT_MODEL": "deepseek-r1",
                "DEFAULT_EMBED_MODEL": "nomic-embed-text",
                "LOCAL_RUNTIME_ENABLED": "false",
            },
        )
        assert [key.get_secret_value() for key in found.auth.api_keys] == ["one", "two"]
        assert (found.ollama.url, found.ollama.probe) == ("http://localhost:9999", False)
        assert (found.models.default, found.models.default_embed) == ("deepseek-r1", "nomic-embed-text")
        assert found.warnings == ()

    @pytest.mark.req("C41")
    def test_host_and_port_count_only_where_asked_for(self) -> None:
        ambient = {"HOST": "0.0.0.0", "PORT": "80"}
        assert load(None, ambient).server.port == 11435
        found = load(None, {**ambient, "HEADRACE_COMPAT": "ollabridge"})
        assert (found.server.host, found.server.port) == ("0.0.0.0", 80)

    def test_the_canonical_name_beats_the_alias_and_the_alias_beats_the_file(self) -> None:
        text = '[models]\ndefault = "file"\n'
        assert settings(text, DEFAULT_MODEL="alias").models.default == "alias"
        assert settings(text, DEFAULT_MODEL="alias", HEADRACE_MODELS__DEFAULT="own").models.default == "own"

    @pytest.mark.parametrize(
        "name",
        [
            "ENROLLMENT_SECRET",
            "ENROLLMENT_TTL_SECONDS",
            "RELAY_ENABLED",
            "OBRIDGE_NODE_ID",
            "OBRIDGE_PUBLIC_LINK_CMD",
        ],
    )
    def test_a_name_that_nothing_reads_yet_is_accepted_and_told(self, name: str) -> None:
        found = load(None, {name: "topsecret"})
        assert found.unused_aliases == (name,)
        assert len(found.warnings) == 1
        assert name in found.warnings[0]
        assert "topsecret" not in found.warnings[0]

    @pytest.mark.req("C09", "C42")
    @pytest.mark.parametrize("said", ["60/minute", "60 per minute", "60", "60/1min"])
    def test_the_founding_name_of_the_rate_limit_is_each_keys(self, said: str) -> None:
        assert settings(RATE_LIMIT=said).limits.requests_per_minute == 60

    @pytest.mark.parametrize("said", ["60/hour", "-1", "many"])
    def test_a_rate_limit_that_is_none_of_a_minute_is_an_error(self, said: str) -> None:
        with pytest.raises(ConfigError, match="RATE_LIMIT"):
            settings(RATE_LIMIT=said)

    def test_mode_gateway_is_what_this_is(self) -> None:
        assert load(None, {"MODE": "gateway"}).unused_aliases == ()
        assert load(None, {"MODE": "node"}).unused_aliases == ("MODE",)

    def test_a_single_underscore_is_pointed_out(self) -> None:
        found = load(
            None, {"HEADRACE_SERVER_PORT": "1", "HEADRACE_SERVICE_HOST": "10.0.0.1", "HEADRACE_DEBUG": "1"}
        )
        assert found.warnings == ("HEADRACE_SERVER_PORT has no effect; did you mean HEADRACE_SERVER__PORT?",)


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[server]\nprot = 1\n", "Unknown key 'prot' in [server] of headrace.toml; did you mean 'port'?"),
            ("[sever]\nport = 1\n", "Unknown section [sever] in headrace.toml; did you mean [server]?"),
            (
                "port = 1\n",
                "Unknown key 'port' at the top of headrace.toml; did you mean 'port' in [server]?",
            ),
            (
                "[server]\nport = 'x'\n",
                "'port' in [server] of headrace.toml should be a whole number; it is 'x'.",
            ),
            (
                "[server]\nport = 70000\n",
                "'port' in [server] of headrace.toml should be less than or equal to 65535; it is 70000.",
            ),
            ("server = 5\n", "[server] of headrace.toml should be a table; it is 5."),
            ("engines = 5\n", "[engines] of headrace.toml should be written as [[engines]], once for each."),
            (
                UPSTREAM + "[[upstreams]]\nname = 'b'\n",
                "'url' is missing in [[upstreams]] number 2 of headrace.toml.",
            ),
            (
                UPSTREAM + "timeouts = { conect = 1 }\n",
                "Unknown key 'conect' in [timeouts] of [[upstreams]] number 1 of headrace.toml; did you mean 'connect'?",
            ),
            (
                UPSTREAM + UPSTREAM,
                "'name' in [[upstreams]] number 2 of headrace.toml is 'a', which [[upstreams]] number 1 is called already; "
                "give it another.",
            ),
            (
                "[[engines]]\nid = 'a'\nmodel = 'demo'\n" * 2,
                "'id' in [[engines]] number 2 of headrace.toml is 'a', which [[engines]] number 1 is called already; "
                "give it another.",
            ),
            (
                UPSTREAM + "kind = 'olama'\n",
                "'kind' in [[upstreams]] number 1 of headrace.toml is 'olama', which nothing here speaks; did you mean 'ollama'?",
            ),
            (
                UPSTREAM + "weight = -1\n",
                "'weight' in [[upstreams]] number 1 of headrace.toml should be greater than or equal to 0; it is -1.",
            ),
            (
                UPSTREAM + "timeouts = { total = 0 }\n",
                "'total' in [timeouts] of [[upstreams]] number 1 of headrace.toml should be greater than 0; it is 0.",
            ),
            (
                UPSTREAM + "api_key = 'k'\napi_key_file = 'f'\n",
                "[[upstreams]] number 1 of headrace.toml is wrong: has both api_key and api_key_file; keep one of them.",
            ),
        ],
    )
    def test_the_sentence_names_the_place_and_the_way_out(self, text: str, message: str) -> None:
        assert refusal(text) == message

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            (
                {"HEADRACE_SERVER__PROT": "1"},
                "Unknown variable HEADRACE_SERVER__PROT; did you mean HEADRACE_SERVER__PORT?",
            ),
            (
                {"HEADRACE_SEVER__PORT": "1"},
                "Unknown variable HEADRACE_SEVER__PORT; did you mean HEADRACE_SERVER__...?",
            ),
            ({"HEADRACE_SERVER__PORT": "x"}, "HEADRACE_SERVER__PORT should be a whole number; it is 'x'."),
            ({"HEADRACE_COMPAT": "x", "PORT": "1"}, "HEADRACE_COMPAT: 'x' is not known; 'ollabridge' is."),
            (
                {"HEADRACE_UPSTREAMS__1__URL": "http://x"},
                "HEADRACE_UPSTREAMS__1__URL: number 0 has to be set first, they are counted from 0.",
            ),
            (
                {"HEADRACE_UPSTREAMS__URL": "http://x"},
                "HEADRACE_UPSTREAMS__URL: write it like HEADRACE_UPSTREAMS__0__KEY, 0 being the first [[upstreams]].",
            ),
            (
                {"HEADRACE_ENGINES": '[{"id": "x", "model": "demo", "modl": 1}]'},
                "Unknown key 'modl' in [[engines]] number 1 in HEADRACE_ENGINES; did you mean 'model'?",
            ),
            (
                {"HEADRACE_ENGINES": "{"},
                'HEADRACE_ENGINES: has to be a JSON list of objects, like [{"key": "value"}].',
            ),
            (
                {"OLLAMA_BASE_URL": "nowhere"},
                "OLLAMA_BASE_URL is wrong: 'nowhere' is not an address; write it like http://10.0.0.5:8000.",
            ),
        ],
    )
    def test_a_variable_is_named(self, environ: dict[str, str], message: str) -> None:
        assert refusal(**environ) == message

    def test_all_are_told_at_once(self) -> None:
        message = refusal(
            "[server]\nport = 'x'\ndrain = 'soon'\n[lgo]\nlevel = 'info'\n" + UPSTREAM + UPSTREAM,
            HEADRACE_LIMITS__MAX_BODY="huge",
        )
        assert message.startswith("5 things are wrong with the settings:\n")
        for part in (
            "'port' in [server]",
            "'soon' is not a duration",
            "[log]",
            "HEADRACE_LIMITS__MAX_BODY",
            "'a'",
        ):
            assert part in message

    def test_toml_that_is_none_is_told_with_its_line(self) -> None:
        assert re.search(r"headrace.toml is not valid TOML: .*line 2", refusal("[server]\nport = = 1\n"))

    def test_a_file_that_is_asked_for_has_to_be_there(self) -> None:
        with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
            load(Path("nowhere.toml"), {})

    @pytest.mark.parametrize(
        "url",
        [
            "h:1",
            "ftp://h",
            "http://",
            "http://h:x",
            "http://[",
            "http://h:1?x=1",
            "http://u:p@h:1",
            "http://a b",
        ],
    )
    def test_addresses_that_are_none(self, url: str) -> None:
        assert "url" in refusal(f"[ollama]\nurl = {json.dumps(url)}\n")

    @pytest.mark.parametrize(
        "origin", ["localhost", "http://h/path", "http://h:*:1", "file://x", "http://*.h"]
    )
    def test_origins_that_are_none(self, origin: str) -> None:
        assert "is not an origin" in refusal(f"[server]\ncors_origins = [{json.dumps(origin)}]\n")

    @pytest.mark.parametrize("proxy", ["", "proxy.example", "10.0.0.0/33", "10.0.0", "10.0.0.1:80", "*"])
    def test_proxies_that_are_none(self, proxy: str) -> None:
        assert "is not an address or a network" in refusal(
            f"[server]\ntrusted_proxies = [{json.dumps(proxy)}]\n"
        )

    def test_who_may_read_the_metrics_is_named(self) -> None:
        assert "metrics" in refusal('[server]\nmetrics = "everybody"\n')


@pytest.mark.req("C32")
def test_the_door_is_closed_unless_it_is_opened() -> None:
    server, limits = settings().server, settings().limits
    assert (server.trusted_proxies, server.metrics, limits.anonymous_requests_per_minute) == ((), "admin", 60)
    opened = settings(
        '[server]\nmetrics = "open"\n[limits]\nanonymous_requests_per_minute = 0\n',
        HEADRACE_SERVER__TRUSTED_PROXIES="127.0.0.1,10.1.2.3/8,2001:DB8::/32,unix",
    )
    assert opened.server.trusted_proxies == ("127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32", "unix")
    assert (opened.server.metrics, opened.limits.anonymous_requests_per_minute) == ("open", 0)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("http://localhost", True),
        ("https://127.0.0.1:8443", True),
        ("http://[::1]:5173", True),
        ("http://localhost.evil.com", False),
        ("http://localhost:3000.evil.com", False),
        ("http://evil.com", False),
        ("null", False),
    ],
)
def test_pages_of_this_machine_may_call_by_default(origin: str, allowed: bool) -> None:
    assert bool(re.fullmatch(load(None, {}).server.cors_origin_regex, origin)) is allowed


def test_one_origin_and_all_origins() -> None:
    one = load(None, {"HEADRACE_SERVER__CORS_ORIGINS": "https://a.b"}).server.cors_origin_regex
    assert re.fullmatch(one, "https://a.b")
    assert not re.fullmatch(one, "https://aXb")
    assert not re.fullmatch(one, "https://a.b:81")
    assert re.fullmatch(
        load(None, {"HEADRACE_SERVER__CORS_ORIGINS": "*"}).server.cors_origin_regex, "https://x.y"
    )


class TestSecrets:
    TEXT = "[auth]\napi_keys = ['hunter2']\n" + UPSTREAM + "api_key = 'hunter2'\n"

    def test_nothing_that_is_written_has_them(self) -> None:
        found = settings(self.TEXT)
        for text in (reference.show(found), json.dumps(reference.shown(found)), repr(found), str(found)):
            assert "hunter2" not in text
        assert found.auth.api_keys[0].get_secret_value() == "hunter2"

    @pytest.mark.parametrize(
        "text",
        [
            "[auth]\napi_keys = ['hun ter2']\n",
            "[auth]\napi_keys = 'hunter2'\n",
            "[auth]\napi_key = 'hunter2'\n",
            UPSTREAM + "api_key = 'hun ter2'\n",
            UPSTREAM + "api_key = ['hunter2']\n",
            "[ollama]\nurl = 'http://user:hunter2@h:999999'\n",
        ],
    )
    def test_no_error_has_them(self, text: str) -> None:
        assert "ter2" not in refusal(text)

    def test_a_key_file_is_read_when_it_is_needed(self, folder: Path) -> None:
        upstream = settings(UPSTREAM + "api_key_file = 'key'\n").upstreams[0]
        with pytest.raises(ConfigError, match="can't be read"):
            upstream.read_api_key()
        (folder / "key").write_text("hunter2\n")
        assert upstream.read_api_key() == "hunter2"
        (folder / "key").write_text("two words\n")
        with pytest.raises(ConfigError, match="one key and nothing else"):
            upstream.read_api_key()

    def test_an_empty_key_is_none(self) -> None:
        assert settings(UPSTREAM + "api_key = ''\napi_key_file = ''\n").upstreams[0].read_api_key() is None


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(None, {}).server.port = 1


def test_what_show_writes_gives_the_same_settings_again(folder: Path) -> None:
    first = settings(
        "[server]\ndrain = '1.5s'\nmax_header_bytes = 2001\n[models]\ndefault = 'ü \"quoted\" \\\\'\n"
        + UPSTREAM
        + "timeouts = { idle = '10ms' }\ntags = ['x']\n[[engines]]\nid = 'e'\nmodel = '/m/a.gguf'\n"
    )
    (folder / "again.toml").write_text(reference.show(first))
    again = load(folder / "again.toml", {"HEADRACE_HOME": "home"})
    assert again.model_copy(update={"source": first.source}) == first


@given(
    seconds=st.decimals(min_value=0, max_value=100_000, places=3),
    size=st.integers(min_value=1024, max_value=2**50),
)
def test_units_as_they_are_shown_are_read_again(seconds: Any, size: int) -> None:
    found = Settings(
        home=Path(),
        cache=Path(),
        server={"drain": f"{seconds}s", "max_header_bytes": size},  # type: ignore[arg-type]
    )
    shown = dict(line.split(" = ") for line in reference.show(found).splitlines() if " = " in line)
    assert parse_seconds(json.loads(shown["drain"])) == pytest.approx(float(seconds))
    assert parse_bytes(json.loads(shown["max_header_bytes"])) == size


@given(st.text(max_size=12) | st.floats() | st.integers())
def test_whatever_stands_for_a_duration_or_size_is_read_or_refused_in_words(value: object) -> None:
    text = str(value)
    for section, key in (("SERVER", "DRAIN"), ("LIMITS", "MAX_BODY")):
        name = f"HEADRACE_{section}__{key}"
        said = ""
        try:
            read = getattr(getattr(load(None, {name: text}), section.lower()), key.lower())
        except ConfigError as error:
            read, said = None, error.message
        assert name in said if read is None else read >= 0


class TestStorage:
    URL = "postgresql://me:p@ss/w:rd@db.example:5432/own?sslmode=require&password=sesame"

    def test_the_founding_documents_name_of_its_url_is_an_alias(self) -> None:
        found = load(None, {"DATABASE_URL": "sqlite:///./x.db"})
        assert found.storage.url.get_secret_value() == "sqlite:///./x.db"
        assert (found.unused_aliases, found.warnings) == ((), ())
        assert load(None, {}).storage.url.get_secret_value() == "sqlite"

    def test_its_password_is_shown_nowhere(self) -> None:
        found = load(None, {"DATABASE_URL": self.URL})
        for text in (repr(found), str(found.storage), reference.show(found), str(reference.shown(found))):
            assert "w:rd" not in text
            assert "sesame" not in text
            assert "me:********@db.example:5432/own?sslmode=require&password=********" in text
        assert found.storage.url.get_secret_value() == self.URL

    @pytest.mark.parametrize(
        "url", ["sesame", "mysql://me:sesame@h/d", "sqlite://", "sqlite:sesame", "postgres://"]
    )
    def test_what_is_no_databases_address_is_refused_without_quoting_it(self, url: str) -> None:
        with pytest.raises(ConfigError, match="has to be the address of a database") as caught:
            load(None, {"HEADRACE_STORAGE__URL": url})
        assert "sesame" not in caught.value.message

    def test_a_file_is_relative_to_the_file_it_is_written_in(self, tmp_path: Path) -> None:
        path = tmp_path / "headrace.toml"
        for written, meant in (
            ("sqlite:///data/x.db", f"sqlite:///{tmp_path}/data/x.db"),
            ("sqlite:////var/x.db", "sqlite:////var/x.db"),
            ("sqlite", "sqlite"),
            ("postgresql:///x", "postgresql:///x"),
        ):
            path.write_text(f'[storage]\nurl = "{written}"\n')
            assert load(path, {}).storage.url.get_secret_value() == meant

    def test_the_schema_for_editors_knows_the_default(self) -> None:
        assert reference.schema()["$defs"]["Storage"]["properties"]["url"]["default"] == "sqlite"


def test_the_schema_knows_every_key() -> None:
    schema = reference.schema()
    assert set(schema["properties"]) == {
        "server",
        "auth",
        "engines",
        "upstreams",
        "ollama",
        "routes",
        "limits",
        "models",
        "storage",
        "tiers",
        "quota",
        "log",
    }
    assert "header_timeout" in schema["$defs"]["Server"]["properties"]
