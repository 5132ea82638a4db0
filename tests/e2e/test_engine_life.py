"""Engines that load, crash or lose their parent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from support.service import Service, gone, until

pytestmark = pytest.mark.slow

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


def ask(service: Service) -> str:
    with service.client() as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "hi"}], max_tokens=4
        )
    return answer.choices[0].message.content or ""


@pytest.mark.req("D30", "D36")
def test_a_request_waits_while_the_model_loads(tmp_path: Path) -> None:
    with Service(tmp_path, CONFIG) as service, ThreadPoolExecutor(1) as threads:
        until(lambda: bool(service.engines()))
        (engine,) = service.engines()
        engine.suspend()  # else it may be done before we have asked
        try:
            waiting = threads.submit(ask, service)
            _, health = service.call("GET", "/health", b"", {})
            assert health["detail"] == "runtimes=0"
            assert health["status"] == "ok"
            assert not waiting.done()
        finally:
            engine.resume()
        assert waiting.result()


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
