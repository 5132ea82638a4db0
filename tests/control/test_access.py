"""Keys: who gets in."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.control.access import KeyRing, admit_first_key, first_key, read_key
from headrace.domain.access import Scope
from headrace.kernel.errors import StartupError, Unauthenticated


@pytest.mark.req("C29", "D44")
@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer sk-1")], b"sk-1"),
        ([(b"authorization", b"bearer  sk-1 ")], b"sk-1"),
        ([(b"x-api-key", b"sk-2")], b"sk-2"),
        ([(b"x-api-key", b"sk-2"), (b"authorization", b"Bearer sk-1")], b"sk-1"),
        ([(b"authorization", b"Basic sk-1")], b""),
        ([], b""),
    ],
)
def test_a_key_is_read_from_both_headers(headers: list[tuple[bytes, bytes]], key: bytes) -> None:
    assert read_key(headers) == key


@pytest.mark.req("C29")
def test_only_known_keys_open() -> None:
    ring = KeyRing()
    ring.add("sk-known")
    principal = ring.authenticate(b"sk-known")
    assert principal.may(Scope.INFERENCE)
    assert not principal.may(Scope.ADMIN)
    assert "sk-known" not in principal.id
    for key, said in ((b"sk-other", "Invalid API key"), (b"", "didn't provide")):
        with pytest.raises(Unauthenticated, match=said):
            ring.authenticate(key)


def test_the_first_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    home = tmp_path / "data"
    key, made = first_key(home)
    assert made
    assert key.startswith("sk-hr-")
    assert first_key(home) == (key, False)
    assert (home / "first-key").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    ring = KeyRing()
    admit_first_key(ring, home)
    assert ring.authenticate(key.encode()).may(Scope.ADMIN)


def test_a_data_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="can't be used"):
        first_key(tmp_path / "file")
