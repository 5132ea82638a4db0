"""How many files a process may have open, which connections are, too."""

from __future__ import annotations

import contextlib
import resource

FILES_A_CLIENT = 2
"""A client's connection, and that to its backend."""
FILES_OF_OUR_OWN = 128


def needed_for(max_connections: int) -> int:
    """As many files as so many clients can take at once."""
    return max_connections * FILES_A_CLIENT + FILES_OF_OUR_OWN


def room_in(limit: int) -> int:
    """As many clients as find room where so many files may be open."""
    return max(1, (limit - FILES_OF_OUR_OWN) // FILES_A_CLIENT)


def hard_limit() -> int | None:
    """What the system grants this process; None: there is no limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if most == resource.RLIM_INFINITY else most


def raise_open_files_limit() -> None:
    """Let this process open as many files as the system allows it: a client takes one, and its backend another.

    A shell's usual 1,024 would be gone at 500 streams: clients would wait unaccepted, and backends look unreachable.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems name a limit that they don't grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
