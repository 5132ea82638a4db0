from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.domain.fleet import NodeState
from headrace.domain.inference import Operation
from headrace.engine.catalog import Catalog
from headrace.engine.local import LocalEngine, Machine
from headrace.engine.spec import EngineSpec, Setting
from headrace.engine.supervision import RestartPolicy
from headrace.engine.supervisor import EngineState
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.connector import Busy, Exchange, Loading, Lost, NotSent, UpstreamRequest
from support.gguf import Tensor, write_gguf
from support.recorder import Recorder

ModelNamed = Callable[[str], Path]
PATIENCE_S = 60
QUICK = RestartPolicy(most_failures=3, first_delay_s=0.02, most_delay_s=0.05)


class Stage:
    """An engine over the real direct connector."""

    def __init__(self, spec: EngineSpec, catalog: Catalog, machine: Machine | None = None) -> None:
        clock = SystemClock()
        self.told: list[EngineState] = []
        self._changed = asyncio.Event()
        self.engine = LocalEngine(
            spec,
            catalog=catalog,
            make_direct=lambda socket: DirectConnector(Endpoint.unix(socket), clock=clock),
            clock=clock,
            on_state=self._state,
            machine=machine or Machine(policy=QUICK),
        )

    def _state(self, state: EngineState) -> None:
        self.told.append(state)
        self._changed.set()

    async def until(self, *wanted: NodeState) -> EngineState:
        """Wait for the next such state; those told before don't count."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self._changed.clear()
                while self.told:
                    state = self.told.pop(0)
                    if state.state in wanted:
                        return state
                await self._changed.wait()

    def ask(self, operation: Operation, **body: object) -> tuple[Recorder, Exchange]:
        recorder = Recorder()
        streamed = bool(body.get("stream"))
        request = UpstreamRequest(
            "POST",
            operation.path,
            [(b"content-type", b"application/json")],
            json.dumps({"model": "any", **body}).encode(),
            stoppable=streamed,
        )
        return recorder, self.engine.connector.start(request, recorder)

    async def answer(self, operation: Operation, **body: object) -> dict[str, object]:
        recorder, _ = self.ask(operation, **body)
        await recorder.last()
        assert (recorder.failure, recorder.status) == (None, 200), recorder.body
        answer: dict[str, object] = json.loads(recorder.body)
        return answer

    async def chats(self) -> bool:
        answer = await self.answer(Operation.CHAT, messages=HELLO, max_tokens=4, temperature=0)
        return answer["usage"]["completion_tokens"] == 4  # type: ignore[index, no-any-return]


def mode_of_folder(socket: str) -> int | None:
    """Its permissions; None if it isn't there."""
    folder = Path(socket).parent
    return folder.stat().st_mode & 0o777 if folder.exists() else None


HELLO = [{"role": "user", "content": "Say hello."}]


@asynccontextmanager
async def running(
    spec: EngineSpec, catalog: Catalog, machine: Machine | None = None, *, ready: bool = True
) -> AsyncIterator[Stage]:
    stage = Stage(spec, catalog, machine)
    await stage.engine.start()
    try:
        if ready:
            await stage.until(NodeState.READY)
        yield stage
    finally:
        await stage.engine.close()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "cache", env={})


# -- with a stand-in for llama.cpp -------------------------------------------------------------------------------------


@pytest.mark.req("D36")
async def test_it_answers_loading_until_it_serves(fake_llama: ModelNamed, catalog: Catalog) -> None:
    async with running(EngineSpec("e", str(fake_llama("serve"))), catalog, ready=False) as stage:
        recorder, _ = stage.ask(Operation.CHAT)
        assert type((await recorder.last()).failure) is Loading
        await stage.until(NodeState.READY)
        recorder, _ = stage.ask(Operation.CHAT)
        assert bytes((await recorder.last()).body) == str(stage.engine.pid).encode()
    recorder, _ = stage.ask(Operation.CHAT)
    assert type((await recorder.last()).failure) is NotSent


@pytest.mark.req("D12")
async def test_a_killed_engine_comes_back_and_an_endless_loop_ends(
    fake_llama: ModelNamed, catalog: Catalog
) -> None:
    async with running(EngineSpec("e", str(fake_llama("serve"))), catalog) as stage:
        pids = []
        for _ in range(QUICK.most_failures - 1):
            pids.append(stage.engine.pid)
            os.kill(stage.engine.pid or 0, signal.SIGKILL)
            state = await stage.until(NodeState.LOADING, NodeState.DOWN)
            assert "was killed (SIGKILL), perhaps because memory ran out" in state.detail
            await stage.until(NodeState.READY)
        os.kill(stage.engine.pid or 0, signal.SIGKILL)
        assert "left alone" in (await stage.until(NodeState.FAILED)).detail
        assert len({*pids, stage.engine.pid}) == 3
        await stage.engine.start()
        await stage.until(NodeState.READY)


@pytest.mark.req("D14")
async def test_a_model_that_never_loads_fails_with_its_reason_and_log(
    fake_llama: ModelNamed, catalog: Catalog
) -> None:
    async with running(EngineSpec("e", str(fake_llama("fail"))), catalog, ready=False) as stage:
        state = await stage.until(NodeState.FAILED)
    assert state.detail.startswith("The engine didn't start: error loading model: a tensor is missing.")
    assert state.failures == QUICK.most_failures
    assert any("a tensor is missing" in line for line in state.log)


@pytest.mark.req("D14")
async def test_a_bad_model_file_fails_at_once_and_starts_no_process(tmp_path: Path, catalog: Catalog) -> None:
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_text("<html>")
    cut.write_bytes(write_gguf(tmp_path / "whole.gguf").read_bytes()[:-64])
    big = write_gguf(tmp_path / "big.gguf", tensors=[Tensor("a", (125 << 30,))])
    with big.open("r+b") as file:
        file.truncate((500 << 30) + 4096)
    for path, words in [
        (tmp_path / "none.gguf", "There is no model file"),
        (tmp_path, "is a folder"),
        (text, "is not a GGUF file (it begins with b'<htm')"),
        (cut, "it is truncated"),
        (big, "needs about 525.1 GiB, and 8.0 GiB are free"),
    ]:
        machine = Machine(available_bytes=lambda: 8 << 30, policy=QUICK)
        async with running(EngineSpec("e", str(path)), catalog, machine, ready=False) as stage:
            state = await stage.until(NodeState.FAILED)
            assert words in state.detail
            assert stage.engine.pid is None
            recorder, _ = stage.ask(Operation.CHAT)
            failure = (await recorder.last()).failure
            assert type(failure) is NotSent
            assert words in failure.reason


async def test_the_memory_check_can_be_left_out(fake_llama: ModelNamed, catalog: Catalog) -> None:
    spec = EngineSpec("e", str(fake_llama("serve")), check_memory=False)
    async with running(spec, catalog, Machine(available_bytes=lambda: 1)):
        pass


@pytest.mark.req("D36")
async def test_closing_while_it_loads_leaves_nothing(
    fake_llama: ModelNamed, catalog: Catalog, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    async with running(
        EngineSpec("e", str(fake_llama("hang"))), catalog, Machine(run_dir=run_dir), ready=False
    ) as stage:
        async with asyncio.timeout(PATIENCE_S):
            while stage.engine.pid is None:  # noqa: ASYNC110 - a spawned child is no state of the engine
                await asyncio.sleep(0.01)
    assert not psutil.pid_exists(stage.engine.pid or 0)
    assert list(run_dir.iterdir()) == []


@pytest.mark.req("D33")
def test_what_llama_cpp_is_told() -> None:
    spec = EngineSpec("e", n_ctx=4096, parallel=2, n_batch=1024, n_gpu_layers=7, main_gpu=1, threads=3)
    told = spec.child_parameters(model_path="/m.gguf", mean_pooling=False, n_ctx_train=100)
    expected = {"n_ctx": 4096, "n_parallel": 2, "n_batch": 1024, "n_gpu_layers": 7, "main_gpu": 1}
    params = told["params"]
    assert isinstance(params, dict)
    assert expected.items() <= params.items()
    assert told["threads"] == 3


@pytest.mark.parametrize(("n_ctx", "share"), [(4096, 1024), (0, 128)])
def test_the_inputs_of_embeddings_share_one_cache_and_each_has_its_part(n_ctx: int, share: int) -> None:
    spec = EngineSpec("e", n_ctx=n_ctx, parallel=4, embeddings=True)
    params = spec.child_parameters(model_path="/m.gguf", mean_pooling=True, n_ctx_train=512)["params"]
    assert isinstance(params, dict)
    assert (params["kv_unified"], params["kv_unified_per_slot"]) == (True, share)
    assert params["n_ubatch"] == params["n_batch"] >= share


@pytest.mark.req("D33")
@pytest.mark.parametrize("wrong", [{"id": ""}, {"parallel": 0}, {"n_ctx": -1}, {"n_gpu_layers": -2}])
def test_a_spec_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EngineSpec(**({"id": "e"} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["hostnames", "port", "api_keys", "public_path", "slot_save_path", "server_tools"]
)
def test_no_second_door_by_extra_settings(name: str) -> None:
    extra: dict[str, Setting] = {name: "x"}
    with pytest.raises(ConfigError, match=f"extra can't set {name}"):
        EngineSpec("e", extra=extra)


# -- with llama.cpp itself ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.req("D01", "D14", "D38")
async def test_the_demo_model_chats_and_nobody_else_reaches_it(
    real_catalog: Catalog, demo_model: Path
) -> None:
    async with running(EngineSpec("smol", n_ctx=2048, parallel=2), real_catalog) as stage:
        answer = await stage.answer(Operation.CHAT, messages=HELLO, max_tokens=4)
        assert answer["object"] == "chat.completion"
        assert (await stage.answer(Operation.COMPLETION, prompt="Hello", max_tokens=2))[
            "object"
        ] == "text_completion"
        first, one = stage.ask(Operation.CHAT, messages=HELLO, max_tokens=200, stream=True, ignore_eos=True)
        second, other = stage.ask(
            Operation.CHAT, messages=HELLO, max_tokens=200, stream=True, ignore_eos=True
        )
        third, _ = stage.ask(Operation.CHAT, messages=HELLO)
        assert type((await third.last()).failure) is Busy
        await first.until(lambda: first.chunks > 3)
        await second.until(lambda: second.chunks > 3)  # both at once
        one.cancel()
        other.cancel()
        await first.last()
        await second.last()
        child = psutil.Process(stage.engine.pid)
        assert child.net_connections("inet") == []
        assert mode_of_folder(stage.engine.socket) == 0o700
    assert not child.is_running()
    assert mode_of_folder(stage.engine.socket) is None


@pytest.mark.slow
@pytest.mark.req("D12", "D36")
async def test_a_crash_in_the_middle_of_an_answer(real_catalog: Catalog, demo_model: Path) -> None:
    async with running(EngineSpec("smol", n_ctx=2048, parallel=2), real_catalog) as stage:
        recorder, _ = stage.ask(Operation.CHAT, messages=HELLO, max_tokens=500, stream=True, ignore_eos=True)
        await recorder.until(lambda: recorder.chunks > 3)
        os.kill(stage.engine.pid or 0, signal.SIGKILL)
        assert type((await recorder.last()).failure) is Lost
        state = await stage.until(NodeState.LOADING)
        assert state.ready_in_s is not None
        await stage.until(NodeState.READY)
        assert await stage.chats()


@pytest.mark.slow
@pytest.mark.req("D14")
async def test_a_model_that_llama_cpp_refuses(tmp_path: Path, catalog: Catalog) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    async with running(EngineSpec("e", str(path)), catalog, ready=False) as stage:
        state = await stage.until(NodeState.FAILED)
    assert state.detail.startswith("The engine didn't start: ")
    assert "\n" not in state.detail
    assert state.log


async def alone(stage: Stage, text: str) -> object:
    """The embedding of a text that is asked for on its own, to the last digits."""
    answer = await stage.answer(Operation.EMBEDDING, input=text)
    return pytest.approx(answer["data"][0]["embedding"], abs=1e-3)  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.req("D01")
@pytest.mark.compliance("O71")
async def test_the_demo_model_embeds(real_catalog: Catalog, demo_model: Path) -> None:
    spec = EngineSpec("smol", n_ctx=2048, parallel=2, n_batch=512, embeddings=True, threads=1)
    async with running(spec, real_catalog) as stage:
        given = ["one", "two, and a good deal more of them"]
        floats = await stage.answer(Operation.EMBEDDING, input=given)
        vectors = [item["embedding"] for item in floats["data"]]  # type: ignore[attr-defined]
        assert vectors == [await alone(stage, text) for text in given], (
            "of different lengths, computed together"
        )
        assert [len(vector) for vector in vectors] == [576, 576]
        assert vectors[0] != vectors[1]
        base64 = await stage.answer(Operation.EMBEDDING, input="one", encoding_format="base64")
        assert isinstance(base64["data"][0]["embedding"], str)  # type: ignore[index]
        long = await stage.answer(
            Operation.EMBEDDING, input="word " * 900
        )  # more than n_batch, less than a slot
        assert long["usage"]["prompt_tokens"] > 512  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
async def test_restarts_leave_no_open_files_and_no_children(real_catalog: Catalog, demo_model: Path) -> None:
    policy = RestartPolicy(most_failures=100, first_delay_s=0.01, most_delay_s=0.01)
    async with running(
        EngineSpec("smol", n_ctx=512, parallel=1), real_catalog, Machine(policy=policy)
    ) as stage:
        me = psutil.Process()
        before = None
        children = len(me.children())  # others' too
        for _ in range(3):
            os.kill(stage.engine.pid or 0, signal.SIGKILL)
            await stage.until(NodeState.READY)
            open_files = me.num_fds()
            assert before is None or open_files <= before
            before = open_files
        assert len(me.children()) <= children
