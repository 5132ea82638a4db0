"""Engines that load, crash or lose their parent."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import openai
import pytest

from support.service import Service, gone, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_model")]

CONFIG = """
[[engines]]
id = "smollm2"
model = "demo"
threads = 1
"""
STORY: Any = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Tell a long story."}],
    "max_tokens": 1500,
    "extra_body": {"ignore_eos": True},
}


def ask(service: Service, model: str = "smollm2") -> str:
    with service.client() as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=4
        )
    return answer.choices[0].message.content or ""


@pytest.mark.req("D30", "D36")
def test_a_request_waits_while_its_model_loads_and_another_model_answers(tmp_path: Path) -> None:
    with Service(tmp_path, CONFIG + CONFIG.replace("smollm2", "other")) as service:
        until(lambda: len(service.engines()) == 2)
        loading = service.engines()[0]
        loading.suspend()  # else it may be done before we have asked
        with ThreadPoolExecutor(2) as threads:
            try:
                asked = {threads.submit(ask, service, model) for model in ("smollm2", "other")}
                answered, waiting = wait(asked, return_when=FIRST_COMPLETED)
                assert [bool(one.result()) for one in answered] == [True]
                assert len(waiting) == 1
                assert service.call("GET", "/health", b"", {})[1]["detail"] == "runtimes=1"
            finally:
                loading.resume()
            assert [bool(one.result()) for one in waiting] == [True]


@pytest.mark.req("D29")
def test_a_crash_ends_the_stream_with_an_error_and_the_engine_comes_back(tmp_path: Path) -> None:
    with Service(tmp_path, CONFIG) as service, service.client() as client:
        stream = iter(client.chat.completions.create(**STORY, stream=True))
        assert next(stream).choices
        (engine,) = service.engines()
        engine.kill()
        with pytest.raises(openai.APIError, match="broke off") as broken:
            list(stream)
        assert broken.value.code == "upstream_failed"
        assert ask(service)
        (restarted,) = service.engines()
        assert restarted.pid != engine.pid
        service.log.until("was killed")


def test_no_engine_outlives_a_gateway_that_was_killed(tmp_path: Path) -> None:
    with Service(tmp_path, CONFIG) as service:
        ask(service)
        engines = service.engines()
        assert len(engines) == 1
        service.process.kill()
        assert gone(engines)
