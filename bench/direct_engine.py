"""The engine without a gateway: `python -m bench.direct_engine MODEL PORT`, until it's killed."""

from __future__ import annotations

import signal
import sys

WARNINGS = 2


def main() -> None:
    """Serve with the parameters that the gateway's engine is given."""
    import xllamacpp

    model, port = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_parallel = 4
    params.n_ctx = 8192
    params.ui = False
    params.verbosity = WARNINGS
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
