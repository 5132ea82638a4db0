"""What a client of OpenAI's API gets through backends of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.connectors import ollama, openai
from headrace.ports.backend import BackendSpec
from headrace.testing.fake_engine import FakeEngine, Script
from support.backend_contract import opened
from support.house import KEY, gateway
from support.openai_contract import SAID, OpenAIContract, Site


@pytest.mark.req("C25", "C26")
class TestKinds(OpenAIContract):
    @pytest.fixture(params=["openai", "vllm", "lm-studio", "ollama"])
    async def site(self, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
        kind: Any = ollama.KIND if request.param == "ollama" else openai.KIND
        script = Script(tokens=40, dialect=request.param, cancels_unstreamed=request.param == "ollama")
        async with (
            FakeEngine(script, by_model={"shaper": Script(text=SAID, dialect=request.param)}) as engine,
            opened(kind, BackendSpec("b", engine.url)) as way,
            gateway(engines={"fake": way.connector, "shaper": way.connector}) as house,
        ):
            yield Site(house.port, KEY)
