"""The engine double and the real engine, held to the same promises."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint
from headrace.domain.fleet import NodeState
from headrace.engine.catalog import Catalog
from headrace.engine.local import LocalEngine
from headrace.engine.spec import EngineSpec
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Connector
from headrace.testing.fake_engine import FakeEngine, Script
from support.engine_contract import EngineContract
from support.waiting import until


def direct(socket: str) -> Connector:
    return DirectConnector(Endpoint.unix(socket), clock=SystemClock(), limits=Limits(idle=0))


class TestFakeEngine(EngineContract):
    """The double."""

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Connector]:
        async with FakeEngine(Script(tokens=600, interval_s=0.002, slots=2)) as fake:
            connector = DirectConnector(Endpoint.parse(fake.url), clock=SystemClock())
            yield connector
            await connector.close()


@pytest.mark.slow
class TestLlamaCpp(EngineContract):
    """The real thing."""

    @pytest.fixture
    async def engine(self, real_catalog: Catalog) -> AsyncIterator[Connector]:
        local = LocalEngine(
            EngineSpec("smol", n_ctx=2048, parallel=2, threads=1),
            catalog=real_catalog,
            make_direct=direct,
            clock=SystemClock(),
            on_state=lambda _state: None,
        )
        await local.start()
        try:
            await until(lambda: local.current.state is NodeState.READY, timeout_s=90)
            yield local.connector
        finally:
            await local.close()
