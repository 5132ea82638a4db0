"""The fake engine as a process: prints one JSON line with its address, serves until SIGTERM, SIGINT or its parent's end.

`GET /stats` shows the counts, `PUT /script` replaces the script.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from headrace.testing.fake_engine.engine import FakeEngine
from headrace.testing.fake_engine.script import Script
from headrace.testing.fake_engine.stats import Diary


def _arguments(argv: list[str]) -> tuple[Script, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="fake_engine", description="An OpenAI-compatible engine double.")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--socket", type=Path, help="listen on this Unix socket instead")
    parser.add_argument("--diary", type=Path, help="add what becomes of each inference request to this file")
    parser.add_argument("--model", action="append", help="a model to list; may be repeated")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--interval-ms", type=float, help="between two tokens")
    parser.add_argument("--delay-ms", type=float, help="before the first byte of an answer")
    parser.add_argument("--slots", type=int, help="requests worked on at once")
    parser.add_argument(
        "--script", default="{}", help="the whole script as JSON; the other options go over it"
    )
    given = parser.parse_args(argv)
    try:
        script = msgspec.json.decode(given.script, type=Script)
    except msgspec.DecodeError as problem:
        parser.error(f"--script: {problem}")
    if given.model:
        script = replace(script, models=tuple(given.model))
    if given.tokens is not None:
        script = replace(script, tokens=given.tokens)
    if given.interval_ms is not None:
        script = replace(script, interval_s=given.interval_ms / 1000)
    if given.delay_ms is not None:
        script = replace(script, delay_s=given.delay_ms / 1000)
    if given.slots is not None:
        script = replace(script, slots=given.slots)
    return script, given


async def _serve(script: Script, given: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    with _Parent(loop, stopped):
        engine = FakeEngine(script, socket_path=given.socket, port=given.port)
        engine.diary = Diary(given.diary)
        async with engine:
            address = {
                "url": engine.url,
                "port": engine.port,
                "socket": str(given.socket) if given.socket else None,
            }
            sys.stdout.write(msgspec.json.encode(address | {"pid": os.getpid()}).decode() + "\n")
            sys.stdout.flush()
            await stopped.wait()


class _Parent:
    """Sets *gone* when the process that started us ends; needs Linux's pidfd, elsewhere it never does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: asyncio.Event) -> None:
        self._loop = loop
        self._gone = gone
        self._fd: int | None = None

    def __enter__(self) -> None:
        parent = os.getppid()
        if parent <= 1 or not hasattr(os, "pidfd_open"):
            return
        try:
            self._fd = os.pidfd_open(parent)
        except ProcessLookupError:  # it ended before we looked
            self._gone.set()
            return
        self._loop.add_reader(self._fd, self._gone.set)

    def __exit__(self, *error: object) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)


if __name__ == "__main__":
    asyncio.run(_serve(*_arguments(sys.argv[1:])))
