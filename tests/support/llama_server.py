"""The real llama.cpp server of the wheel, on a TCP port, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import platformdirs

from headrace.engine.catalog import Catalog

PROGRAM = """
import sys, xllamacpp
model, port, key, slots = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = model, {"smollm2"}
params.hostnames, params.port = ["127.0.0.1"], int(port)
params.n_parallel, params.n_ctx, params.ui, params.verbosity = int(slots), 2048, False, 1
params.endpoint_props = params.endpoint_slots = True
if key:
    params.api_keys = [key]
server = xllamacpp.Server(params)
sys.stdin.read()
"""


def demo_model() -> Path:
    """The demo model's file; fetched once for the machine."""
    cache = os.environ.get("HEADRACE_CACHE") or platformdirs.user_cache_dir("headrace")
    return Catalog.from_environment(Path(cache), os.environ).resolve("demo")


@asynccontextmanager
async def llama_server(port: int, *, key: str = "", slots: int = 3) -> AsyncIterator[None]:
    """Start it; it may still be loading, or not yet listen, inside."""
    model = await asyncio.to_thread(demo_model)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        *(str(model), str(port), key, str(slots)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()
