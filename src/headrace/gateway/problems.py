"""The one map from errors to HTTP: status, envelope, headers."""

from __future__ import annotations

import http
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headrace.kernel import errors
from headrace.kernel.budget import Budget
from headrace.kernel.errors import RequestError
from headrace.wire.openai import error_envelope

_KINDS: list[tuple[type[RequestError], int, str]] = [
    (errors.BodyTooLarge, 413, "invalid_request_error"),
    (errors.UnsupportedMedia, 415, "invalid_request_error"),
    (errors.HeadersTooLarge, 431, "invalid_request_error"),
    (errors.InvalidRequest, 400, "invalid_request_error"),
    (errors.Unauthenticated, 401, "invalid_request_error"),
    (errors.Forbidden, 403, "permission_error"),
    (errors.NotFound, 404, "invalid_request_error"),
    (errors.MethodNotAllowed, 405, "invalid_request_error"),
    (errors.RequestTimeout, 408, "invalid_request_error"),
    (errors.LimitExceeded, 429, "rate_limit_error"),
    (errors.UpstreamFailed, 502, "api_error"),
    (errors.UpstreamTimeout, 504, "api_error"),
    (errors.Unavailable, 503, "api_error"),
    (errors.Internal, 500, "api_error"),
]


_LONGEST_WAIT_S = 120.0
"""Clients don't wait longer than that before they try again by themselves: they are told not to try."""
_PERMANENT = {b"x-should-retry": b"false"}
"""OpenAI's clients try again after 409 and 5xx by themselves, unless they are told that it is no use."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as HTTP says it. `closes`: the connection can't be used afterwards."""

    status: int
    body: bytes
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    closes: bool = False

    @property
    def status_line(self) -> bytes:
        """The status as it stands in a status line."""
        return b"%d %b" % (self.status, _reason(self.status))


def problem(error: RequestError) -> Problem:
    """What the client gets for *error*."""
    if isinstance(error, errors.UpstreamRefused):
        type_ = "invalid_request_error"
        body = error_envelope(error.message, type_=type_, param=error.param, code=error.code)
        return Problem(error.status, body, _PERMANENT if error.status == 409 else {})
    status, type_ = _kind(error)
    param = getattr(error, "param", None) or ("model" if isinstance(error, errors.ModelNotFound) else None)
    return Problem(
        status,
        error_envelope(error.message, type_=type_, param=param, code=error.code),
        _headers(error),
        closes=isinstance(error, errors.BodyTooLarge | errors.HeadersTooLarge | errors.RequestTimeout),
    )


def _reason(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Refused"


def _kind(error: RequestError) -> tuple[int, str]:
    for kind, status, type_ in _KINDS:
        if isinstance(error, kind):
            return status, type_
    raise AssertionError(f"no status for {type(error).__name__}")


def budget_lines(budgets: Iterable[Budget]) -> dict[bytes, bytes]:
    """OpenAI's `x-ratelimit-*` fields: of requests and of tokens that limit which is the nearest to its end."""
    nearest: dict[str, Budget] = {}
    for budget in budgets:
        known = nearest.get(budget.measure)
        if known is None or budget.remaining * known.limit < known.remaining * budget.limit:
            nearest[budget.measure] = budget
    lines = {}
    for measure in ("requests", "tokens"):
        if (named := nearest.get(measure)) is not None:
            lines[f"x-ratelimit-limit-{measure}".encode()] = b"%d" % named.limit
            lines[f"x-ratelimit-remaining-{measure}".encode()] = b"%d" % named.remaining
            lines[f"x-ratelimit-reset-{measure}".encode()] = _duration(named.resets_in_s)
    return lines


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: `1s`, `6m0s`, `2h5m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, rest)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest


def _limit_headers(error: errors.LimitExceeded) -> dict[bytes, bytes]:
    headers = budget_lines(error.budgets)
    if error.retry_after_s is not None:
        headers[b"retry-after"] = b"%d" % math.ceil(error.retry_after_s)
    if error.retry_after_s is None or error.retry_after_s > _LONGEST_WAIT_S:
        headers |= _PERMANENT
    return headers


def _headers(error: RequestError) -> dict[bytes, bytes]:
    if isinstance(error, errors.LimitExceeded):
        return _limit_headers(error)
    if isinstance(error, errors.Unavailable) and error.retry_after_s is not None:
        return {b"retry-after": str(math.ceil(error.retry_after_s)).encode()}
    if isinstance(error, errors.MethodNotAllowed):
        return {b"allow": ", ".join(error.allowed).encode()}
    if isinstance(error, errors.Internal):
        return _PERMANENT
    if isinstance(error, errors.Unauthenticated):
        return {b"www-authenticate": b"Bearer"}
    return {}
