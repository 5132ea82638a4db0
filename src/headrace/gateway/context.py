"""What surrounds every ASGI request: its id, and errors turned into answers."""

from __future__ import annotations

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.gateway.problems import problem
from headrace.gateway.requests import echoed_id
from headrace.gateway.responses import send_problem
from headrace.kernel.errors import Internal, MethodNotAllowed, NotFound, RequestError
from headrace.kernel.ids import request_id

log = structlog.get_logger(__name__)


class RequestIds:
    """Gives each request an id (`scope["state"]["request_id"]`) and each response the header `x-request-id`.

    An id that the client gave is echoed beside it, as `x-client-request-id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        ident = request_id()
        scope.setdefault("state", {})["request_id"] = ident
        headers = [(b"x-request-id", ident.encode())]
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        if given and (echoed := echoed_id(given)):
            headers.append((b"x-client-request-id", echoed))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Errors:
    """Turns what the routes raise into responses in OpenAI's envelope; an unexpected error says nothing but the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False
        scope["app"] = (
            self  # Starlette's router raises its 404 and 405 only inside of an app, else it sends plain text
        )

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except RequestError as error:
            refusal = error
        except HTTPException as error:
            refusal = _routing_error(error, scope)
        except (
            Exception
        ):  # the last resort: whatever a bug raises, the client gets a clean 500 and the log the rest
            ident = scope["state"]["request_id"]
            log.exception("a request failed unexpectedly", action="request.crashed", request_id=ident)
            if started:
                raise
            refusal = Internal(
                f"Internal server error. Please name the request id {ident} when you report it."
            )
        else:
            return
        await send_problem(send, problem(refusal))


def _routing_error(error: HTTPException, scope: Scope) -> RequestError:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "").split(", ")
        return MethodNotAllowed(f"{scope['path']} doesn't take {scope['method']}.", allowed=allowed)
    return NotFound(f"There is nothing at {scope['path']!r}.")
