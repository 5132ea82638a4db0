"""Why a server can't be reached: each step to it is tried alone, and what failed is told with what mends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl

from headrace.connectors.endpoint import Endpoint, Tls
from headrace.kernel.errors import ConfigError

Trouble = tuple[str, str]
"""What is wrong, and what to do."""

_STEP_S = 3.0
_MOST_ADDRESSES = 4
_EXPIRED, _NOT_YET, _SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER = 10, 9, 18, 19, 20
_OTHER_NAME, _OTHER_ADDRESS = 62, 64
_OWN_AUTHORITY = "Put the certificate of the authority that signed it into ca_file."
_CERTIFICATES = {
    _EXPIRED: "Renew that server's certificate; if it isn't old, this machine's clock is wrong.",
    _NOT_YET: "This machine's clock, or the one that made it, is wrong.",
    _SELF_SIGNED: _OWN_AUTHORITY,
    _SELF_SIGNED_CHAIN: _OWN_AUTHORITY,
    _NO_ISSUER: f"{_OWN_AUTHORITY} Or that server leaves the certificates in between out.",
    _OTHER_NAME: "Write the name that stands in its certificate into url.",
    _OTHER_ADDRESS: "Write the name that stands in its certificate into url, instead of the address.",
}


async def unreachable(url: str, tls: Tls) -> Trouble | None:
    """Why no connection to *url* comes about; None where one does. Sends no request."""
    try:
        endpoint = await asyncio.to_thread(Endpoint.parse, url, tls=tls)  # reads the CA file
    except ConfigError as error:
        return error.message, "Correct url or ca_file."
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_STEP_S):
            found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        advice = "Correct the name in url; or this machine's DNS doesn't know it."
        return f"There is no machine called {endpoint.host!r}.", advice
    addresses = list(dict.fromkeys(str(address[4][0]) for address in found))[:_MOST_ADDRESSES]
    trouble: Trouble | None = None
    for address in addresses:
        trouble = await _connected(endpoint, address)
        if trouble is None:
            return await _secured(endpoint)
    return trouble


async def _connected(endpoint: Endpoint, address: str) -> Trouble | None:
    where = f"{endpoint.host}:{endpoint.port}"
    try:
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(address, endpoint.port)
    except TimeoutError:
        return (
            f"{where} doesn't answer: no connection within {_STEP_S:g} s.",
            "Is that machine on, and does no firewall drop what goes there?",
        )
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            return (
                f"Nothing listens on {where}: the connection is refused.",
                "Start that server; if it runs on another machine, let it listen on more than 127.0.0.1.",
            )
        return (
            f"{where} can't be reached: {error.strerror or error}.",
            "Is the network there, and the address right?",
        )
    await _closed(writer)
    return None


async def _secured(endpoint: Endpoint) -> Trouble | None:
    """Whether TLS is spoken where it should be, and only there."""
    where = f"{endpoint.host}:{endpoint.port}"
    if endpoint.tls is None:
        if await _speaks_tls(endpoint):
            return f"{where} speaks TLS, and is asked without.", "Write https:// in url."
        return None
    try:
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(
                endpoint.host, endpoint.port, ssl=endpoint.tls, server_hostname=endpoint.server_name
            )
    except ssl.SSLCertVerificationError as error:
        advice = _CERTIFICATES.get(error.verify_code, "Mend that server's certificate.")
        return f"The certificate of {where} isn't accepted: {error.verify_message}.", advice
    except ssl.SSLError as error:
        if await _speaks_tls(endpoint):
            return f"TLS with {where} fails: {error.reason or error}.", "That server's log tells more."
        return f"{where} doesn't speak TLS.", "Write http:// in url, or switch TLS on there."
    except (OSError, TimeoutError):
        return (
            f"{where} doesn't speak TLS: it doesn't answer.",
            "Write http:// in url, or switch TLS on there.",
        )
    await _closed(writer)
    return None


async def _speaks_tls(endpoint: Endpoint) -> bool:
    """Whether a TLS server is there. Nothing is sent over the connection, so its certificate needn't be checked."""
    context = await asyncio.to_thread(ssl.create_default_context)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(
                endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.host
            )
    except (OSError, TimeoutError):
        return False
    await _closed(writer)
    return True


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_STEP_S):
            await writer.wait_closed()
