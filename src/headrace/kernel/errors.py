"""Every error Headrace raises on purpose, drawn once.

    HeadraceError
    ├── ConfigError                 the settings are wrong; nothing was started
    ├── StartupError                something the start needs is not to be had (port, model, disk)
    └── RequestError                one request can't be answered; the service goes on
        ├── InvalidRequest          400  the request is wrong, `param` says where
        │   ├── BodyTooLarge        413
        │   ├── UnsupportedMedia    415
        │   └── HeadersTooLarge     431
        ├── Unauthenticated         401
        ├── Forbidden               403
        ├── NotFound                404
        │   └── ModelNotFound       404
        │       └── ModelHidden     404  it may be there, but not for this key
        ├── MethodNotAllowed        405
        ├── RequestTimeout          408  the client was too slow to send
        ├── LimitExceeded           429  a limit of the key, its user or the address is reached
        ├── UpstreamRefused         4xx  the backend refused this very request
        ├── Unavailable             503  try again later, `retry_after_s` says when
        ├── UpstreamFailed          502  the backend broke
        ├── UpstreamTimeout         504  the backend was too slow
        └── Internal                500  our own fault; the client is told nothing more

Each error has its code here, the one that the client is told; so what is recorded and counted is what the client was told.
The status beside a name is what `gateway/problems.py` makes of it; nothing below the gateway knows about HTTP statuses,
except `UpstreamRefused`, which carries the backend's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands know errors, and need not wait until that is loaded
    from headrace.kernel.budget import Budget


class HeadraceError(Exception):
    """Base of all. The message is one sentence for a person, and says what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(HeadraceError):
    """The settings are wrong; nothing was started."""


class StartupError(HeadraceError):
    """Something that the start needs isn't to be had: a port, a model, disk space, the network."""


class RequestError(HeadraceError):
    """One request can't be answered; others are not affected.

    code: what programs know it by, the class's own where none is given. The client is told it, and the same is recorded and
    counted. None: it has none, and the message is all there is.
    """

    code: str | None = None

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code:
            self.code = code


def code_of(error: RequestError) -> str:
    """What an error is kept and counted as: the code that the client is told, empty where it is told none."""
    return error.code or ""


class InvalidRequest(RequestError):
    """The request is wrong; sending it again unchanged will fail again."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.param = param


class BodyTooLarge(InvalidRequest):
    """The body is over the limit; the rest of it was not read."""

    code = "request_too_large"


class UnsupportedMedia(InvalidRequest):
    """The body's type or encoding is not one that we read."""

    code = "unsupported_media_type"


class HeadersTooLarge(InvalidRequest):
    """The request's line and headers are over the limit."""

    code = "headers_too_large"


class Unauthenticated(RequestError):
    """No key, or not a valid one."""

    code = "invalid_api_key"


class Forbidden(RequestError):
    """The key is valid and may not do this."""

    code = "forbidden"


class NotFound(RequestError):
    """There is nothing at this path."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No backend has ever offered this model; `near` lists names that look like it."""

    code = "model_not_found"

    def __init__(self, model: str, near: Sequence[str] = ()) -> None:
        hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        super().__init__(f"The model {model!r} does not exist or you do not have access to it.{hint}")
        self.model = model
        self.near = tuple(near)


class ModelHidden(ModelNotFound):
    """The key may not use this model, and is told the same as if there were none. Whoever watches over keys sees it."""


class MethodNotAllowed(RequestError):
    """The path exists and doesn't take this method; `allowed` lists those it takes."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class RequestTimeout(RequestError):
    """The client took too long to send its request."""

    code = "request_timeout"


class LimitExceeded(RequestError):
    """A limit is reached; nothing was executed, nothing charged.

    code: `rate_limit_exceeded` where it is renewed soon, `insufficient_quota` where it isn't. budgets: how the limits stand.
    retry_after_s: None where waiting is pointless, since this request is over the whole limit.
    """

    code: str

    def __init__(
        self, message: str, *, code: str, retry_after_s: float | None, budgets: Sequence[Budget] = ()
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
        self.budgets = tuple(budgets)


class UpstreamRefused(RequestError):
    """The backend refused this very request (a 4xx of its own about the request, not about our access to it)."""

    def __init__(
        self, message: str, *, status: int, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.param = param


class Unavailable(RequestError):
    """Nothing can take the request now; nothing was executed. `retry_after_s`: seconds, when known."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class UpstreamFailed(RequestError):
    """The backend broke, perhaps after it began; what it produced is charged."""

    code = "upstream_failed"


class UpstreamTimeout(RequestError):
    """The backend was too slow; it was told to stop."""

    code = "upstream_timeout"


class Internal(RequestError):
    """Our own fault. The client is told nothing but the request id; the log has the rest."""

    code = "internal_error"
