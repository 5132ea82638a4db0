"""A real nginx for tests: on a free port, in front of one server, with its files in a folder of the test's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.live import missing

START_WITHIN_S = 20.0
_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {target};
            {location}
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, target: str, *, http: str = "", location: str = "") -> Iterator[str]:
    """Its URL, in front of *target*; gone at the end. *http* and *location*: further directives there. It speaks HTTP/1.0 to
    *target* unless *location* says otherwise, as it does by itself: so its buffering holds streams back. What comes in chunks,
    as HTTP/1.1 has them, it passes on at once, buffering or not.

    Where there is no `nginx`, the test is skipped, or fails (`support.live`).
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        missing("nginx", "there is no nginx; scripts/require-apt nginx installs it")
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        folder.chmod(0o711)  # its worker is nobody, and reaches its folders through here
    port = _free_port()
    config = folder / "nginx.conf"
    config.write_text(
        _CONFIG.format(folder=folder, port=port, target=target, http=http, location=location), "utf-8"
    )
    with (folder / "nginx.log").open("ab") as out:
        process = subprocess.Popen(
            [program, "-c", str(config), "-p", str(folder), "-e", "stderr"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        _wait_for(port, process, folder / "nginx.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(START_WITHIN_S)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"nginx didn't start: {log.read_text()}")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
