"""What the start needs and doesn't find is told in one sentence, and nothing is left running."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import openai
import pytest

from support.live import missing
from support.service import COMMAND, Service, environment

pytestmark = pytest.mark.slow


def told(
    home: Path, *arguments: str, prefix: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> str:
    """What `headrace up` says when it can't start: one sentence, and exit status 1."""
    done = subprocess.run(
        [*prefix, *COMMAND, "up", *(arguments or ("--port", "0"))],
        env=environment(home, environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    line, rest = done.stderr.split("\n", 1)
    assert rest == "", "one sentence is enough"
    assert line.startswith("headrace: ")
    assert line.endswith((".", "?"))
    return line


def test_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = told(tmp_path, "--port", str(port))
    assert str(port) in said
    assert "taken" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[server\nport = 1", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[server]\nporl = 1", "porl"),
        (b"[[engines]]\nid = 'x'", "model"),
    ],
)
def test_the_configuration_is_wrong(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    said = told(tmp_path, "--config", str(file))
    assert expected in said
    assert str(file) in said


def test_an_unknown_key_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("[server]\nporl = 1")
    assert "port" in told(tmp_path).replace("porl", "")


def test_the_configuration_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in told(tmp_path, "--config", str(tmp_path / "none.toml"))


def test_the_configuration_can_not_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "mine.toml"  # even root can't read a folder as a file
    folder.mkdir()
    assert f"{folder} is not a file" in told(tmp_path, "--config", str(folder))


def test_the_data_folder_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = told(tmp_path / "file" / "home")
    assert "can't be used" in said
    assert str(tmp_path / "file" / "home") in said


def test_no_network_for_the_demo_model(tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    nowhere |= {"PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
    said = told(tmp_path, environ={"HEADRACE_CACHE": str(tmp_path / "empty"), **nowhere})
    assert "demo model" in said
    assert "network" in said


def test_no_room_for_the_demo_model(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        missing("tmpfs", "no unshare")
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {tiny} && "
    alone = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    if subprocess.run([*alone, f"{mount} true"], capture_output=True, check=False).returncode:
        missing("tmpfs", "this system doesn't let us mount one")
    said = told(tmp_path, prefix=(*alone, f'{mount} exec "$0" "$@"'), environ={"HEADRACE_CACHE": str(tiny)})
    assert "free" in said
    assert str(tiny) in said


@pytest.mark.req("D29", "E69")
def test_a_broken_model_is_named_and_the_others_go_on(service: Service, client: openai.OpenAI) -> None:
    service.log.until(r"an engine failed.*broken\.gguf is not a GGUF file")
    with pytest.raises(openai.InternalServerError, match=r"broken\.gguf is not a GGUF file") as failed:
        client.chat.completions.create(model="broken", messages=[{"role": "user", "content": "hi"}])
    assert failed.value.status_code == 500
    answer = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )
    assert answer.choices[0].message.content
