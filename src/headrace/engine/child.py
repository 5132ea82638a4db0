"""The child process of one engine: `python -m headrace.engine.child`.

It reads one line of JSON from its standard input (nothing secret stands in its arguments), loads the model, serves
llama.cpp's HTTP API on a Unix socket, and tells of it in one line of JSON on its standard output: `{"ready": {…}}` or
`{"error": "…"}`. Then it waits for its standard input to end, which it does when the parent is gone in whatever way.

Loading holds the interpreter's lock from beginning to end (seen), so no thread and no signal handler of ours runs
meanwhile. The kernel ends us instead: by SIGTERM's default action, and on Linux by the parent's death signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_MAX_LINE = 1 << 20
_WARNINGS = 2  # llama.cpp's verbosity: errors and warnings, no lines about single requests
_NO_PING = -1


def main() -> int:
    """Serve until the parent is gone; the exit status is 1 if the model could not be loaded."""
    control = _take_control_pipe()
    line = sys.stdin.buffer.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        return 1  # the parent went before it said anything
    told = json.loads(line)
    _end_with_parent(signal.SIGKILL, told["parent"])
    socket = Path(told["socket"])
    try:
        server = _load(told)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        _tell(control, {"error": str(error)})
        return 1
    _leave_cleanly_on_sigterm(socket)
    _end_with_parent(signal.SIGTERM, told["parent"])
    _tell(control, {"ready": {"address": server.listening_address}})
    while os.read(0, 4096):  # nothing comes any more, but its end
        pass
    _leave(socket)
    return 0


def _take_control_pipe() -> int:
    """Keep standard output for ourselves; what a library prints goes to the log."""
    control = os.dup(1)
    os.dup2(2, 1)
    return control


def _tell(control: int, message: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(control, json.dumps(message).encode() + b"\n")


def _end_with_parent(signum: signal.Signals, parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:  # it went before we asked to be told
        os._exit(1)


def _leave_cleanly_on_sigterm(socket: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: _leave(socket))


def _leave(socket: Path) -> None:
    """Leave at once, with no destructors of llama.cpp's threads to wait for; the folder of the socket goes too."""
    with contextlib.suppress(OSError):
        socket.unlink()
    with contextlib.suppress(OSError):
        socket.parent.rmdir()
    os._exit(0)


def _load(told: dict[str, Any]) -> Any:
    """Raises what xllamacpp raises: `RuntimeError` for a model that doesn't load, others for a wrong parameter."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    for name, value in {**told["params"], **told["extra"]}.items():
        try:
            setattr(params, name, value)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"llama.cpp's parameter {name} can't be set to {value!r}: {error}") from None
    params.model.path = told["model"]
    params.model_alias = {told["alias"]}
    params.hostnames = [told["socket"]]
    params.port = 0
    params.ui = False
    params.verbosity = _WARNINGS
    params.sse_ping_interval = _NO_PING
    params.endpoint_slots = True
    params.embedding = told["embeddings"]
    if told["mean_pooling"]:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if told["threads"]:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = told["threads"]
    return xllamacpp.Server(params)


if __name__ == "__main__":
    sys.exit(main())
