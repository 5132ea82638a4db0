"""Large files over HTTP: resumed where they broke off, checked, and in place only when complete."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import structlog

from headrace.kernel.errors import StartupError
from headrace.kernel.units import format_bytes

log = structlog.get_logger(__name__)

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPARE_BYTES = 64 << 20
_LOOK_S = 0.5


class Progress(Protocol):
    """Told how far a download is, in bytes; `total` is None where that isn't known. What it raises ends the download,
    and what came so far stays for the next time."""

    def __call__(self, done: int, total: int | None) -> None:
        """So many bytes are here."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download puts up with trouble: so many attempts in a row that brought nothing, with growing pauses."""

    attempts: int = 5
    first_pause_s: float = 1.0
    most_pause_s: float = 30.0
    timeout_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int, look: Callable[[], object]) -> None:
        """Wait before the attempt that follows so many failures in a row. *look* is called twice a second, and ends
        the wait by what it raises."""
        left_s = min(self.most_pause_s, self.first_pause_s * 2 ** (failures - 1))
        while left_s > 0:
            look()
            self.sleep(min(left_s, _LOOK_S))
            left_s -= _LOOK_S
        look()


class _Transient(Exception):
    """The attempt failed, and another may not."""


class Download:
    """One file of the network. What is half done lies beside the target, as `.part`."""

    def __init__(
        self,
        url: str,
        target: Path,
        *,
        headers: Mapping[str, str],
        patience: Patience,
    ) -> None:
        self._url = url
        self._target = target
        self._part = target.with_name(target.name + ".part")
        self._identity = target.with_name(target.name + ".part.id")
        self._headers = dict(headers)
        self._patience = patience

    def run(self, progress: Progress) -> None:
        """Bring the whole file to its target. Blocks.

        Its size is checked, and its SHA-256 where the server tells one (`x-linked-etag`).

        Raises:
            StartupError: it isn't there, isn't allowed, doesn't fit on the disk, came damaged, or the network failed
                too often. The target is untouched; what came so far is used the next time.
        """
        self._target.parent.mkdir(parents=True, exist_ok=True)
        failures = 0
        while True:
            before = self._have()
            try:
                self._attempt(progress)
                return
            except _Transient as trouble:
                failures = 1 if self._have() > before else failures + 1
                log.info("download broke off", action="model.retry", file=self._target.name, why=str(trouble))
                if failures >= self._patience.attempts:
                    raise StartupError(
                        f"The download of {self._target.name} from {urlsplit(self._url).netloc} failed: {trouble}. "
                        "Check the network and try again; it goes on where it stopped."
                    ) from None
                self._patience.pause(failures, lambda: progress(self._have(), None))
            except OSError as error:
                raise self._disk_trouble(error) from error

    def _attempt(self, progress: Progress) -> None:
        have = self._have()
        hook = _Redirects()
        try:
            response = self._open(have, hook)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error.code)
            return
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise _Transient(_why(error)) from None
        with response:
            identity = (hook.linked_etag or response.headers.get("ETag", "")).removeprefix("W/").strip('"')
            have = self._resume_at(response, have, identity)
            total = _total(response, have)
            self._check_room(total, have)
            self._receive(response, have, total, progress)
        self._finish(identity, total)

    def _open(self, have: int, hook: _Redirects) -> Any:
        headers = (
            self._headers | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        )
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - our own URL, http or https
        return urllib.request.build_opener(hook).open(request, timeout=self._patience.timeout_s)

    def _refused(self, status: int) -> None:
        """Raises what an HTTP error means."""
        name, place = self._target.name, urlsplit(self._url).netloc
        if status == 416:  # the part is as long as the file, or longer: not the file that is there now
            self._drop_part()
            raise _Transient("the file has changed")
        if status in (401, 403):
            raise StartupError(
                f"{place} refuses {name} (HTTP {status}): it needs access; set HF_TOKEN, or check it."
            )
        if status == 404:
            raise StartupError(
                f"{place} has no {name} there (HTTP 404): check owner, repository and file name."
            )
        if status in (408, 425, 429) or status >= 500:
            raise _Transient(f"HTTP {status}")
        raise StartupError(f"{place} refuses {name} (HTTP {status}).")

    def _resume_at(self, response: Any, have: int, identity: str) -> int:
        """Where the body belongs in the part. A part of another version of the file is dropped."""
        known = self._identity.read_text() if have and self._identity.exists() else identity
        if have and (response.status != 206 or known != identity or _range_start(response) != have):
            self._drop_part()
            if response.status == 206:
                raise _Transient("the file has changed")
            have = 0
        self._identity.write_text(identity)
        return have

    def _check_room(self, total: int | None, have: int) -> None:
        free = shutil.disk_usage(self._target.parent).free
        if total is not None and total - have + _SPARE_BYTES > free:
            raise StartupError(
                f"{self._target.name} needs {format_bytes(total - have)} more, and {format_bytes(free)} are free in "
                f"{self._target.parent}; free some space, or set HEADRACE_CACHE to a folder that has more."
            )

    def _receive(self, response: Any, have: int, total: int | None, progress: Progress) -> None:
        with self._part.open("ab" if have else "wb") as file:
            progress(have, total)
            while True:
                try:
                    chunk = response.read1(_CHUNK)
                except (http.client.HTTPException, OSError) as error:
                    raise _Transient(_why(error)) from None
                if not chunk:
                    break
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
        if total is not None and have < total:
            raise _Transient(f"the connection broke off at {format_bytes(have)} of {format_bytes(total)}")

    def _finish(self, identity: str, total: int | None) -> None:
        if total is not None and self._have() != total:
            self._drop_part()
            raise _Transient("more bytes came than announced")
        if _SHA256.fullmatch(identity) and file_sha256(self._part) != identity:
            self._drop_part()
            raise StartupError(
                f"{self._target.name} came damaged (its SHA-256 is wrong) and was dropped; try again."
            )
        self._part.replace(self._target)
        self._identity.unlink(missing_ok=True)

    def _have(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def _drop_part(self) -> None:
        self._part.unlink(missing_ok=True)
        self._identity.unlink(missing_ok=True)

    def _disk_trouble(self, error: OSError) -> StartupError:
        return disk_error(error, self._target.parent)


def disk_error(error: OSError, folder: Path) -> StartupError:
    """The one sentence for a file system that doesn't take our bytes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StartupError(f"The disk is full: {folder} takes no more; free some space and try again.")
    return StartupError(f"{folder} can't be written: {error.strerror or error}.")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeps the token from other hosts, and notes what the hub says of the file on the way."""

    def __init__(self) -> None:
        self.linked_etag = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.linked_etag = str(headers.get("X-Linked-Etag", self.linked_etag))
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is not None:
            old_place, new_place = urlsplit(req.full_url), urlsplit(newurl)
            if old_place.scheme == "https" and new_place.scheme != "https":
                raise StartupError(
                    f"{old_place.netloc} leads to an address without TLS; nothing was downloaded."
                )
            if old_place.netloc != new_place.netloc:
                new.remove_header("Authorization")
        return new


def _range_start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _total(response: Any, have: int) -> int | None:
    if match := re.search(r"/(\d+)$", response.headers.get("Content-Range", "")):
        return int(match[1])
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _why(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "the server was silent for too long"
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
