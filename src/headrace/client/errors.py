"""The one error of the client."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.kernel.errors import HeadraceError
from headrace.ports.connector import Busy, Failure, Headers, Lost, NotSent

_LONGEST_MESSAGE = 500


class ClientError(HeadraceError):
    """A request came to no good end.

    status: of the gateway's answer; None where there was none, or where the answer broke off after it began.
    code: the gateway's word for it, or `unreachable`, `busy`, `connection_lost`, `timeout`, `incomplete`, `invalid_answer`.
    request_id: what the gateway's log calls the request, if it told.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id


def from_failure(failure: Failure, url: str, *, began: bool = False) -> ClientError:
    """What a failed exchange with the gateway at *url* means to its client."""
    match failure:
        case Lost(timed_out=True):
            code = "timeout"
        case _ if began:
            code = "incomplete"
        case NotSent():
            code = "unreachable"
        case Busy():
            code = "busy"
        case _:
            code = "connection_lost"
    if code == "unreachable":
        return ClientError(failure.reason[:1].upper() + failure.reason[1:].rstrip(".") + ".", code=code)
    what = "The answer broke off" if began else f"No answer from {url}"
    return ClientError(f"{what}: {failure.reason.rstrip('.')}.", code=code)


def from_response(status: int, headers: Headers, body: bytes) -> ClientError:
    """What an answer of *status* says, whether or not it is an OpenAI error object."""
    message, code = read_error(body)
    if message is None:
        message = f"The server answered {status} without saying why; is this a Headrace gateway?"
    return ClientError(message, code=code, status=status, request_id=request_id(headers))


def read_error(body: bytes) -> tuple[str | None, str | None]:
    """Message and code of an OpenAI error object; None for what isn't there."""
    try:
        told: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None, None
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, str):
        return error[:_LONGEST_MESSAGE], None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None, None
    code = error.get("code")
    return error["message"][:_LONGEST_MESSAGE], code if isinstance(code, str) else None


def request_id(headers: Headers) -> str | None:
    """The request id that the gateway gave."""
    return next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), None)
