"""The key that a first start makes and keeps, so that the person at this machine doesn't have to copy it."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from headrace.control.access import FIRST_KEY_FILE
from headrace.kernel.errors import ConfigError


def kept_key(home: Path) -> str | None:
    """The key that the first start kept in the data folder *home*; None where there is none.

    Raises:
        ConfigError: the file is there and can't be read.
    """
    path = home / FIRST_KEY_FILE
    try:
        return path.read_text("ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The key in {path} can't be read; give one with --key or HEADRACE_API_KEY."
        ) from error


def is_loopback(url: str) -> bool:
    """Whether *url* can only be this machine."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
