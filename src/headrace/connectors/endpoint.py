"""Where a backend is reached over HTTP: its address, its base path and how TLS is checked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from headrace.kernel.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Tls:
    """How a backend's certificate is checked; it always is.

    ca_file: PEM file of the authorities to trust instead of the system's. server_name: the name that the certificate must
    have (and that SNI asks for) where it isn't the URL's host.
    """

    ca_file: Path | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """A client's context: TLS 1.2 or later, certificate and name required, HTTP/1.1 offered.

        Raises:
            ConfigError: the file can't be read or holds no certificate.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError(
                f"The CA file {self.ca_file} can't be used: {error.strerror or error}."
            ) from error
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One backend's address.

    prefix: base path, without a slash at its end. name: how messages call it; free of secrets. authority: value of the
    Host field. Make one with `parse` or `unix`.
    """

    name: str
    authority: str
    prefix: str = ""
    host: str = ""
    port: int = 0
    unix_path: str | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_name: str | None = None

    @classmethod
    def parse(cls, url: str, *, tls: Tls | None = None) -> Endpoint:
        """From a base URL: `http://host:port/prefix`, `https://…` or `unix:///path/to/socket`. *tls* counts for https.

        Raises:
            ConfigError: it isn't such a URL; the message doesn't repeat it, since it may hold a password.
        """
        if not url.isascii() or any(ord(char) <= 32 or char == "\x7f" for char in url):
            raise ConfigError(
                "A backend's URL must be plain ASCII without spaces (write an international name in punycode)."
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError("A backend's URL has a host or port that can't be one.") from error
        if parts.username is not None or parts.password is not None:
            raise ConfigError("A backend's URL must not hold a user or password; set its api_key instead.")
        if parts.query or parts.fragment:
            raise ConfigError("A backend's base URL ends with its path: no '?' and no '#'.")
        if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
            return cls.unix(parts.path)
        if parts.scheme not in _PORTS or not parts.hostname or port == 0:
            raise ConfigError(
                "A backend's URL looks like http://host:port, https://host or unix:///path/to/socket."
            )
        return cls._at(parts, parts.hostname, port or _PORTS[parts.scheme], tls)

    @classmethod
    def unix(cls, path: str | Path, *, prefix: str = "") -> Endpoint:
        """From the path of a Unix socket."""
        return cls(name=f"unix:{path}", authority="localhost", prefix=prefix.rstrip("/"), unix_path=str(path))

    @classmethod
    def _at(cls, parts: SplitResult, host: str, port: int, tls: Tls | None) -> Endpoint:
        shown = f"[{host.partition('%')[0]}]" if ":" in host else host
        authority = shown if port == _PORTS[parts.scheme] else f"{shown}:{port}"
        secure = parts.scheme == "https"
        tls = tls or Tls()
        return cls(
            name=f"{parts.scheme}://{authority}",
            authority=authority,
            prefix=parts.path.rstrip("/"),
            host=host,
            port=port,
            tls=tls.context() if secure else None,
            server_name=(tls.server_name or host) if secure else None,
        )

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Open one connection (TLS included) and tie a *protocol* to it.

        Raises:
            OSError: no connection: no such name, refused, unreachable, certificate not accepted.
        """
        loop = asyncio.get_running_loop()
        if self.unix_path is not None:
            await loop.create_unix_connection(protocol, self.unix_path)
        else:
            await loop.create_connection(
                protocol, self.host, self.port, ssl=self.tls, server_hostname=self.server_name
            )
