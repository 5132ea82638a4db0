"""What a client of OpenAI's API gets, over each connector and each lane that there is without a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.domain.fleet import NodeState
from headrace.engine.connector import EngineConnector
from headrace.engine.supervisor import EngineState
from headrace.kernel.clock import SystemClock
from headrace.testing.fake_engine import FakeEngine, Script
from support.house import KEY, gateway
from support.openai_contract import SAID, OpenAIContract, Site

SCRIPT = Script(models=("fake", "org/model:7b"), tokens=40)
SHAPER = {"shaper": Script(text=SAID)}


class TestDirect(OpenAIContract):
    """A backend that is reached over TCP, by each lane; it speaks llama.cpp's dialect or OpenAI's, or cancels whole answers."""

    @pytest.fixture(params=["token lane", "asgi lane", "openai's dialect"])
    async def site(self, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
        dialect = "openai" if "openai" in request.param else "llama.cpp"
        script = Script(models=SCRIPT.models, tokens=SCRIPT.tokens, dialect=dialect)  # type: ignore[arg-type]
        async with (
            FakeEngine(script, by_model=SHAPER) as engine,
            gateway(engine.url, asgi="asgi" in request.param) as house,
        ):
            yield Site(house.port, KEY)


class TestLocalEngine(OpenAIContract):
    """The connector to an engine of our own, on a Unix socket, with a double for the engine."""

    @pytest.fixture
    async def site(self, tmp_path: Path) -> AsyncIterator[Site]:
        socket = tmp_path / "engine.sock"
        async with FakeEngine(SCRIPT, by_model=SHAPER, socket_path=socket):
            connector = EngineConnector(
                slots=4,
                make_direct=lambda path: DirectConnector(Endpoint.unix(path), clock=SystemClock()),
                current=lambda: EngineState("fake", NodeState.READY),
            )
            connector.running(str(socket))
            async with gateway(engines={"fake": connector, "shaper": connector}) as house:
                yield Site(house.port, KEY)
