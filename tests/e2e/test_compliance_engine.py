"""What a client of OpenAI's API gets from a real model, through the whole service."""

from __future__ import annotations

import pytest

from support.openai_contract import OpenAIContract, Site
from support.service import Service

pytestmark = pytest.mark.slow


class TestRealEngine(OpenAIContract):
    """llama.cpp with the demo model."""

    @pytest.fixture
    async def site(self, service: Service) -> Site:
        return Site(service.port, service.key, "smollm2", "embedder", "smollm2")
