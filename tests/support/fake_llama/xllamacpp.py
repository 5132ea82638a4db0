"""A stand-in for the `xllamacpp` wheel: what it does is said by the model file's name, up to its first dot.

The child process under test runs unchanged; only this module takes the place of the library, by PYTHONPATH.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class CommonParams(SimpleNamespace):
    """Takes any parameter but those that begin with `no_such`."""

    def __init__(self) -> None:
        super().__init__(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        )

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("no_such"):
            raise AttributeError(name)
        super().__setattr__(name, value)


class llama_pooling_type:  # noqa: N801 - the wheel's name
    """As in the wheel."""

    LLAMA_POOLING_TYPE_MEAN = 1


class Server:
    """Serves one answer a connection on the Unix socket."""

    def __init__(self, params: Any) -> None:
        getattr(self, Path(params.model.path).name.partition(".")[0])(params)
        self.listening_address = "unix://" + params.hostnames[0]

    def serve(self, params: Any) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(params.hostnames[0])
        listener.listen()
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()

    def hang(self, params: Any) -> None:
        _say("0.00.000.001 I srv load_model: loading")
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock, as the real one does while it loads

    def stubborn(self, params: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.hang(params)

    def fail(self, params: Any) -> None:
        _say("0.00.000.001 I srv load_model: loading")
        _say("0.00.000.002 E llama_model_load: error loading model: a tensor is missing")
        _say("0.00.000.003 E srv    load_model: failed")
        raise RuntimeError("Failed to init server")

    def die(self, params: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def noise(self, params: Any) -> None:
        print("this goes to standard output, which is not its own")
        for number in range(20_000):
            _say(f"0.00.000.001 I line {number}")
        _say('0.00.000.002 W srv operator(): got exception: {"error": "SECRET"}')
        _say("x" * 100_000)
        self.serve(params)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _answer(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            body = str(os.getpid()).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
