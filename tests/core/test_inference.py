"""One request from admission to settlement, every turn it can take."""

from __future__ import annotations

import json

import pytest

from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.core.inference import Inference, InferenceCall
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation
from headrace.kernel.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from headrace.ports.connector import Busy, Failure, Lost, NotSent, Traits
from headrace.ports.control import Ending
from headrace.testing.clock import ManualClock
from headrace.wire.openai import decode_request
from support.answers import DONE, RecordedAnswer, chunk, usage_chunk
from support.scripted import ScriptedConnector
from support.strict import check_chat_stream

ROLE = chunk({"role": "assistant", "content": ""})
FINISH = chunk({}, finish="stop")


class Bench:
    """A control plane over scripted backends."""

    def __init__(self, *backends: str, capacity: int = 4, traits: Traits | None = None) -> None:
        self.clock = ManualClock()
        self.registry = Registry()
        self.control = LocalControlPlane(self.registry, self.clock, queue_size=2, queue_wait_s=60)
        self.connectors = {name: ScriptedConnector(traits or Traits()) for name in backends}
        self.inference = Inference(self.control, self.connectors)
        for name in backends:
            models = (ModelInfo("m"),)
            self.registry.upsert(Node(name, "direct", models, capacity=capacity, state=NodeState.READY))

    def ask(
        self, *, stream: bool = True, usage: bool = False, model: str = "m"
    ) -> tuple[InferenceCall, RecordedAnswer]:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream}
        if usage:
            body["stream_options"] = {"include_usage": True}
        answer = RecordedAnswer()
        decoded = decode_request(Operation.CHAT, json.dumps(body).encode())
        call = self.inference.start(f"req_{id(answer)}", Principal("p"), decoded, answer)
        return call, answer

    def settled(self) -> dict[Ending, int]:
        assert self.control.running == 0
        assert not self.inference.active
        assert not any(self.control.busy(name) for name in self.connectors)
        return dict(self.control.totals.requests)


@pytest.mark.req("D18", "D19", "D20")
def test_a_stream_passes_as_it_came() -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(ROLE + chunk({"content": "hi"}), chunk({}, finish="stop"), DONE)
    exchange.sink.end()
    assert answer.content_type == b"text/event-stream"
    assert answer.body == ROLE + chunk({"content": "hi"}) + chunk({}, finish="stop") + DONE
    assert answer.calls[-1] == "end"
    assert bench.settled() == {Ending.COMPLETED: 1}


@pytest.mark.compliance("O13")
def test_the_backend_is_asked_for_usage_and_the_client_gets_it_only_when_it_asked() -> None:
    for wanted in (True, False):
        bench = Bench("a")
        _, answer = bench.ask(usage=wanted)
        exchange = bench.connectors["a"].last
        assert json.loads(exchange.request.body)["stream_options"] == {"include_usage": True}
        exchange.answer(ROLE, chunk({"content": "hi"}), chunk({}, finish="stop") + usage_chunk(7, 2) + DONE)
        exchange.sink.end()
        assert ([event.get("usage") for event in answer.events[:-1] if event.get("usage")] != []) is wanted
        assert answer.events[-1] == "[DONE]"
        totals = bench.control.totals
        assert (totals.prompt_tokens, totals.completion_tokens) == (7, 2)


@pytest.mark.compliance("O13", "O14")
def test_usage_that_a_backend_leaves_out_is_counted_and_marked() -> None:
    bench = Bench("a")
    _, answer = bench.ask(usage=True)
    exchange = bench.connectors["a"].last
    exchange.answer(ROLE, chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, finish="stop"))
    exchange.sink.end()
    last, done = answer.events[-2:]
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["id"] == "c1"
    assert last["usage"]["estimated"] is True
    assert last["usage"]["completion_tokens"] == 2
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 2


@pytest.mark.compliance("O01")
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_a_stream_cut_anywhere_gives_the_same_answer(size: int) -> None:
    deltas = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "h\u00e9 \U0001f600"}, None),
        ({}, "stop"),
    ]
    chunks = [chunk(delta, finish=finish, usage=None) for delta, finish in deltas]
    whole = b"".join(chunks) + usage_chunk(3, 1) + DONE
    bench = Bench("a")
    _, answer = bench.ask(usage=True)
    exchange = bench.connectors["a"].last
    exchange.answer(*[whole[i : i + size] for i in range(0, len(whole), size)])
    exchange.sink.end()
    assert answer.body == whole
    assert answer.ended


def test_a_whole_answer_is_streamed_and_assembled_where_the_backend_only_stops_streams() -> None:
    bench = Bench("a")
    _, answer = bench.ask(stream=False)
    exchange = bench.connectors["a"].last
    sent = json.loads(exchange.request.body)
    assert sent["stream"] is True
    assert exchange.request.stoppable
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    exchange.answer(ROLE, chunk({"content": "he"}), chunk({"content": "llo", "reasoning_content": "hm"}))
    exchange.sink.data(chunk({"tool_calls": [call]}))
    for piece in ('{"a"', ":1}"):
        exchange.sink.data(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
    exchange.sink.data(chunk({}, finish="tool_calls", vendor={"x": 1}) + usage_chunk(5, 6) + DONE)
    assert answer.calls == []
    exchange.sink.end()
    assert answer.content_type == b"application/json"
    assert answer.json["object"] == "chat.completion"
    assert answer.json["usage"]["total_tokens"] == 11
    assert answer.json["vendor"] == {"x": 1}
    [choice] = answer.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    call["function"] = {"name": "f", "arguments": '{"a":1}'}
    del call["index"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "hello",
        "reasoning_content": "hm",
        "tool_calls": [call],
    }
    assert bench.control.totals.completion_tokens == 6


@pytest.mark.compliance("O15", "O16")
def test_choices_and_log_probabilities_are_assembled_each_in_its_place() -> None:
    bench = Bench("a")
    _, answer = bench.ask(stream=False)
    exchange = bench.connectors["a"].last
    exchange.sink.head(200, [(b"content-type", b"text/event-stream")])
    for index, text in ((0, "a"), (1, "x"), (1, "y"), (0, "b")):
        probability = {"content": [{"token": text, "logprob": -0.5}]}
        piece = {"index": index, "delta": {"content": text}, "logprobs": probability, "finish_reason": None}
        exchange.sink.data(chunk(choices=[piece]))
    exchange.sink.data(chunk(choices=[{"index": i, "delta": {}, "finish_reason": "stop"} for i in (0, 1)]))
    exchange.sink.end()
    first, second = answer.json["choices"]
    assert (first["message"]["content"], second["message"]["content"]) == ("ab", "xy")
    assert [item["token"] for item in second["logprobs"]["content"]] == ["x", "y"]
    assert answer.json["usage"]["estimated"] is True


def test_a_backend_that_stops_unstreamed_requests_is_asked_for_the_whole() -> None:
    bench = Bench("a", traits=Traits(cancels_unstreamed=True))
    _, answer = bench.ask(stream=False)
    exchange = bench.connectors["a"].last
    assert json.loads(exchange.request.body)["stream"] is False
    body = {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "12345"}}]}
    exchange.answer(json.dumps(body).encode(), content_type=b"application/json; charset=utf-8")
    exchange.sink.end()
    [choice] = answer.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": "12345"}
    assert answer.json["usage"]["completion_tokens"] == 2
    assert answer.json["usage"]["estimated"] is True


@pytest.mark.compliance("O95")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("moment", ["before the head", "after the head", "under way"])
def test_a_client_that_leaves_stops_the_backend_and_frees_the_slot_when_it_has_stopped(
    stream: bool, moment: str
) -> None:
    bench = Bench("a", capacity=1)
    call, answer = bench.ask(stream=stream)
    exchange = bench.connectors["a"].last
    if moment != "before the head":
        exchange.answer(*([ROLE, chunk({"content": "x"}) * 3] if moment == "under way" else []))
    told = list(answer.calls)
    call.cancel()
    call.cancel()
    assert exchange.cancelled
    assert bench.control.busy("a") == 1
    exchange.sink.fail(Lost("cancelled"))
    assert answer.calls == told
    assert bench.settled() == {Ending.CANCELLED: 1}
    if moment == "under way":
        assert bench.control.totals.completion_tokens == 3


def test_a_client_that_leaves_while_it_waits_leaves_the_queue() -> None:
    bench = Bench("a", capacity=1)
    bench.ask()
    waiting, answer = bench.ask()
    assert bench.control.waiting == 1
    waiting.cancel()
    assert bench.control.waiting == 0
    assert answer.calls == []
    bench.connectors["a"].last.sink.fail(Lost("x"))
    assert len(bench.connectors["a"].exchanges) == 1
    bench.settled()


@pytest.mark.parametrize("failure", [NotSent("refused"), Busy("full")])
def test_what_never_started_moves_on_to_another_backend(failure: Failure) -> None:
    bench = Bench("a", "b")
    _, answer = bench.ask()
    bench.connectors["a"].last.sink.fail(failure)
    exchange = bench.connectors["b"].last
    exchange.answer(ROLE, DONE)
    exchange.sink.end()
    assert answer.ended
    assert bench.control.totals.executions == 2
    assert bench.settled() == {Ending.COMPLETED: 1}


@pytest.mark.parametrize(
    ("failure", "error"), [(Lost("cut"), UpstreamFailed), (Lost("slow", timed_out=True), UpstreamTimeout)]
)
def test_what_may_have_been_executed_is_not_executed_again(
    failure: Failure, error: type[RequestError]
) -> None:
    bench = Bench("a", "b")
    _, answer = bench.ask()
    bench.connectors["a"].last.sink.fail(failure)
    assert isinstance(answer.error, error)
    assert answer.calls == ["fail"]
    assert bench.connectors["b"].exchanges == []
    assert bench.settled() == {Ending.FAILED: 1}


def test_an_answer_that_breaks_off_ends_with_an_error_and_is_charged() -> None:
    bench = Bench("a", "b")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(ROLE, chunk({"content": "x"}))
    exchange.sink.fail(Lost("cut"))
    assert isinstance(answer.error, UpstreamFailed)
    assert answer.calls == ["head", "data", "data", "fail"]
    assert bench.connectors["b"].exchanges == []
    assert bench.control.totals.completion_tokens == 1
    assert bench.settled() == {Ending.FAILED: 1}


def test_every_backend_is_tried_once_and_then_the_client_hears_why() -> None:
    bench = Bench("a", "b")
    _, answer = bench.ask()
    for connector in bench.connectors.values():
        connector.last.sink.fail(NotSent("connection refused"))
    assert isinstance(answer.error, UpstreamFailed)
    assert "connection refused" in answer.error.message
    assert bench.settled() == {Ending.FAILED: 1}


@pytest.mark.compliance("O40")
@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (400, b'{"error":{"message":"bad tool","code":"x","param":"tools"}}', UpstreamRefused, "bad tool"),
        (
            400,
            b'{"error":{"message":"too long","type":"exceed_context_size_error"}}',
            UpstreamRefused,
            "too long",
        ),
        (404, b"<html>", UpstreamRefused, "answered 404"),
        (501, b'{"error":{"message":"no embeddings"}}', InvalidRequest, "no embeddings"),
        (401, b'{"error":{"message":"Incorrect key sk-secret"}}', UpstreamFailed, "refused our credentials"),
        (500, b'{"error":"boom"}', UpstreamFailed, "boom"),
        (503, b"", UpstreamFailed, "answered 503"),
        (302, b"", UpstreamFailed, "answered 302"),
    ],
)
def test_what_a_refusal_of_the_backend_means(
    status: int, body: bytes, error: type[RequestError], said: str
) -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(body, status=status, content_type=b"text/html")
    exchange.sink.end()
    assert isinstance(answer.error, error)
    assert said in answer.error.message
    assert "sk-secret" not in answer.error.message
    bench.settled()


def test_a_busy_backend_is_asked_again_later_and_not_for_ever() -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    for _ in range(40):
        exchange = bench.connectors["a"].last
        exchange.sink.head(429, [(b"retry-after", b"2")])
        exchange.sink.end()
        assert bench.control.running == 0
        assert answer.calls == []
        bench.clock.advance(1.9)
        assert bench.connectors["a"].last is exchange, "it is left alone for as long as it asked"
        bench.clock.advance(0.1)
        if answer.error:
            break
    assert isinstance(answer.error, Unavailable)
    assert len(bench.connectors["a"].exchanges) == 31, "60 s of queue, one execution every 2 s"
    assert bench.settled() == {Ending.FAILED: 1}


@pytest.mark.compliance("O41")
def test_a_context_overflow_has_openais_code() -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(b'{"error":{"message":"m","type":"exceed_context_size_error"}}', status=400)
    exchange.sink.end()
    assert isinstance(answer.error, UpstreamRefused)
    assert answer.error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "chunks",
    [
        (b'data: {"error":{"message":"out of memory"}}\n\n',),
        (b'data: nonsense with "usage"\n\n',),
        (b"data: " + b"x" * 2_000_000,),
    ],
)
def test_a_stream_that_is_none_fails_before_anything_is_passed_on(chunks: tuple[bytes, ...]) -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(*chunks)
    assert exchange.cancelled
    exchange.sink.fail(Lost("cancelled"))
    assert isinstance(answer.error, UpstreamFailed)
    assert answer.calls == ["fail"]
    bench.settled()


@pytest.mark.parametrize("content_type", [b"text/html", b"application/json", b""])
def test_a_stream_of_another_type_is_refused(content_type: bytes) -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(b"<html>", content_type=content_type)
    assert exchange.cancelled
    exchange.sink.end()
    assert isinstance(answer.error, UpstreamFailed)


def test_back_pressure_reaches_exactly_the_backend() -> None:
    bench = Bench("a")
    call, _ = bench.ask()
    call.pause()
    assert bench.connectors["a"].last.paused
    call.resume()
    assert not bench.connectors["a"].last.paused


def test_an_aborted_call_tells_its_client_and_stops_its_backend() -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    bench.connectors["a"].last.answer(ROLE)
    bench.inference.abort_all(Unavailable("shutting down"))
    assert answer.calls == ["head", "data", "fail"]
    assert bench.connectors["a"].last.cancelled
    bench.connectors["a"].last.sink.fail(Lost("cancelled"))
    assert bench.settled() == {Ending.CANCELLED: 1}


def test_a_node_whose_connector_is_gone_is_passed_over() -> None:
    bench = Bench("a", "b")
    del bench.connectors["a"]
    _, answer = bench.ask()
    bench.connectors["b"].last.answer(ROLE)
    assert answer.calls == ["head", "data"]


def test_an_unknown_model_is_refused_with_near_names() -> None:
    bench = Bench("a")
    bench.registry.upsert(Node("c", "direct", (ModelInfo("llama-3.1-8b"),), state=NodeState.READY))
    _, answer = bench.ask(model="lama-3.1-8B")
    assert isinstance(answer.error, ModelNotFound)
    assert answer.error.near == ("llama-3.1-8b",)


def test_chunks_after_done_are_dropped() -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    exchange = bench.connectors["a"].last
    exchange.answer(ROLE, FINISH + DONE, chunk({"content": "late"}))
    exchange.sink.end()
    assert answer.body == ROLE + FINISH + DONE


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (
            "input (9000 tokens) is too large to process. increase the physical batch size",
            "context_length_exceeded",
        ),
        ("image input is not supported - hint: provide the mmproj", "unsupported"),
    ],
)
def test_llama_cpps_500_for_a_request_it_cannot_take_is_the_clients_fault(message: str, code: str) -> None:
    bench = Bench("a")
    _, answer = bench.ask()
    bench.connectors["a"].last.answer(json.dumps({"error": {"message": message}}).encode(), status=500)
    bench.connectors["a"].last.sink.end()
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.code == code


@pytest.mark.compliance("O71")
@pytest.mark.parametrize("vector", [[0.5] * 4, "AAAAAAAAAAAAAAAAAAAAAA=="])
def test_dimensions_that_a_model_does_not_have_are_refused_not_ignored(vector: object) -> None:
    for wanted, refused in ((4, False), (2, True)):
        bench = Bench("a")
        answer = RecordedAnswer()
        body = json.dumps({"model": "m", "input": "x", "dimensions": wanted}).encode()
        bench.inference.start("r", Principal("p"), decode_request(Operation.EMBEDDING, body), answer)
        reply = {
            "data": [{"embedding": vector, "index": 0}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        bench.connectors["a"].last.answer(json.dumps(reply).encode(), content_type=b"application/json")
        bench.connectors["a"].last.sink.end()
        assert isinstance(answer.error, InvalidRequest) is refused
        assert answer.ended is not refused


@pytest.mark.compliance("O14", "O15")
def test_usage_told_for_each_choice_adds_up() -> None:
    bench = Bench("a")
    answer = RecordedAnswer()
    request = {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2, "stream": True}
    body = json.dumps({**request, "stream_options": {"include_usage": True}}).encode()
    bench.inference.start("r", Principal("p"), decode_request(Operation.CHAT, body), answer)
    exchange = bench.connectors["a"].last
    exchange.sink.head(200, [(b"content-type", b"text/event-stream")])
    for index, tokens in ((1, 3), (0, 4)):
        piece = {"index": index, "delta": {"role": "assistant", "content": "x"}, "finish_reason": None}
        exchange.sink.data(
            chunk(choices=[piece]) + chunk(choices=[{**piece, "delta": {}, "finish_reason": "stop"}])
        )
        exchange.sink.data(usage_chunk(9, tokens))
    exchange.sink.data(DONE)
    exchange.sink.end()
    said = check_chat_stream(answer.body, usage=True, choices=2)
    assert sorted(said) == [0, 1]
    assert answer.events[-2]["usage"]["completion_tokens"] == 7
    assert bench.control.totals.completion_tokens == 7
