"""The service as `headrace up` puts it together from a configuration, but on the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.adapters.storage.backend import choose
from headrace.bootstrap.running import Service, running
from headrace.engine.catalog import Catalog
from headrace.gateway.listener import bind
from headrace.settings import Settings, load
from support.raw import RawResponse, call
from support.waiting import until

KEY = "sk-composed-0123456789"
CHAT = "/v1/chat/completions"


@dataclass
class Composed:
    """A running service. It has one key, with the scope `admin`."""

    service: Service

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.service.port

    async def ask(
        self, model: str, headers: Mapping[str, str] | None = None, **members: object
    ) -> RawResponse:
        """One chat; *members* are more of its body."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **members}
        fields = {"authorization": f"Bearer {KEY}", **(headers or {})}
        return await call(self.port, "POST", CHAT, fields, json.dumps(body).encode())

    async def get(self, path: str) -> Any:
        """What an administrator reads at *path*."""
        response = await call(self.port, "GET", path, {"authorization": f"Bearer {KEY}"})
        assert response.status == 200, response
        return response.json

    async def record(self, request_id: str) -> dict[str, Any]:
        """What is kept of that request, once it is in the database."""
        async with asyncio.timeout(20):
            while True:
                for record in (await self.get("/admin/recent?limit=200"))["data"]:
                    if record["request_id"] == request_id:
                        return dict(record)
                await asyncio.sleep(0.02)

    async def ready(self, *names: str) -> None:
        """Wait until these backends are ready."""
        async with asyncio.timeout(20):
            while True:
                runtimes = (await self.get("/admin/runtimes"))["data"]
                if {one["id"] for one in runtimes if one["state"] == "ready"} >= set(names):
                    return
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def composed(home: Path, config: str) -> AsyncIterator[Composed]:
    """The service that *config* describes, from its start to its end."""
    settings = await asyncio.to_thread(_settings, home, config)
    catalog = Catalog.from_environment(settings.cache, os.environ)
    backend = choose("sqlite", settings.home)
    with contextlib.closing(bind("127.0.0.1", 0)) as listening:
        async with running(settings, listening, catalog, backend) as service:
            yield Composed(service)
            await until(lambda: not service.inference.active)


def _settings(home: Path, config: str) -> Settings:
    path = home / "headrace.toml"
    path.write_text(f'[auth]\nadmin_keys = ["{KEY}"]\n[ollama]\nprobe = false\n{config}', encoding="utf-8")
    return load(path, {"HEADRACE_HOME": str(home), "HEADRACE_CACHE": str(home)})
