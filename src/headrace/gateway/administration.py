"""What the administration's routes share: their parts, who may use them, and how their requests are read."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.control.access import KeyRing, read_key
from headrace.control.accounts import AccountBook
from headrace.control.plane import LocalControlPlane
from headrace.control.routes import Explain, RouteBook
from headrace.domain.access import Principal, Scope
from headrace.domain.quota import Limits
from headrace.gateway.requests import BodyLimits, ClientGone, read_json_body
from headrace.kernel.errors import Forbidden, InvalidRequest
from headrace.ports.ledger import QuotaLedger
from headrace.ports.records import Records

T = TypeVar("T")
Handler = Callable[[Request, Principal], Awaitable[Response]]
Line = Annotated[str, Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
"""Text for people, without what would break a line, a terminal or a database."""
UserId = Annotated[str, Meta(pattern=r"\A[\w@+][\w.@+-]{0,49}\Z")]
"""A name that stands in a path as it is."""
Limit = Annotated[int, Meta(ge=0, le=2**53)]
_BODY = BodyLimits(max_bytes=256 * 1024)
_PRIVATE = {"cache-control": "no-store"}
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_MEMBER = re.compile(r"field `([^`]+)`")
_LATEST = 253_402_300_799.0  # the end of the year 9999: beyond it there are no dates


@dataclass(frozen=True, slots=True)
class Administration:
    """What there is to administer. routes: without, there is no `/admin/routes`. explain: where a request would go; without,
    what the registry says. plane: who knows how the nodes are; without, there is no `/admin/runtimes`.
    """

    accounts: AccountBook
    records: Records
    ledger: QuotaLedger
    routes: RouteBook | None = None
    explain: Explain | None = None
    plane: LocalControlPlane | None = None


class LimitChanges(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits as a request gives them: those that it doesn't name stay as they are; 0 is no limit, and null what stands above it."""

    requests_per_minute: Limit | UnsetType | None = UNSET
    requests_per_day: Limit | UnsetType | None = UNSET
    requests_per_month: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_day: Limit | UnsetType | None = UNSET
    tokens_per_month: Limit | UnsetType | None = UNSET
    concurrency: Limit | UnsetType | None = UNSET

    def limits(self) -> Limits:
        """What they are where nothing was before."""
        return Limits(**given(self))


NO_LIMITS = LimitChanges()


class Door:
    """Lets in who has the scope `admin`, and nobody else, whatever the path."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def route(self, path: str, **handlers: Handler) -> Route:
        """A route with a handler for each method."""

        async def endpoint(request: Request) -> Response:
            principal = self._keys.authenticate(read_key(request.scope["headers"]))
            if not principal.may(Scope.ADMIN):
                raise Forbidden("This needs a key with the scope 'admin'.")
            handler = handlers["GET" if request.method == "HEAD" else request.method]
            try:
                return await handler(request, principal)
            except ClientGone:
                return Response()  # nobody is there to read it

        return Route(path, endpoint, methods=list(handlers))


async def read(request: Request, kind: type[T]) -> T:
    """The body of a request.

    Raises:
        InvalidRequest: it isn't a *kind*; `param` names the member.
        BodyTooLarge, UnsupportedMedia, RequestTimeout, ClientGone: as `read_json_body` says.
    """
    body = await read_json_body(request, _BODY)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _mistake(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidRequest("The body is not valid JSON.", code="invalid_json") from None


def given(changes: Struct) -> dict[str, Any]:
    """The members of *changes* that were given; of structs among them, the same."""
    return {
        name: given(value) if isinstance(value, LimitChanges) else value
        for name in changes.__struct_fields__
        if (value := getattr(changes, name)) is not UNSET
    }


def answer(value: object, status: int = 200) -> Response:
    """*value* as JSON, for the asker's eyes only."""
    return Response(
        msgspec.json.encode(value), status_code=status, media_type="application/json", headers=_PRIVATE
    )


def answer_csv(text: str, name: str) -> Response:
    """A table, to be kept as a file of that *name*."""
    headers = {**_PRIVATE, "content-disposition": f'attachment; filename="{name}"'}
    return Response(text.encode(), media_type="text/csv; charset=utf-8", headers=headers)


def query(request: Request, *names: str) -> Mapping[str, str]:
    """The parameters of a request's query, of which each may stand there once; those that are empty are left out.

    Raises:
        InvalidRequest: there is one that isn't among *names*, or twice, or with control characters.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidRequest(
                f"There is no parameter {name[:50]!r} here; known: {known}.", param=name[:50]
            )
        if name in found or not value.isprintable():
            raise InvalidRequest(f"The parameter {name!r} stands there once, as plain text.", param=name)
        found[name] = value
    return {name: value for name, value in found.items() if value}


USUAL = 200
MOST = 1000


class Page(NamedTuple):
    """Which part of a list is asked for: *limit* entries, from behind the one whose id is *after*."""

    after: str
    limit: int

    @classmethod
    def of(cls, asked: Mapping[str, str]) -> Page:
        """As `after` and `limit` in a query say.

        Raises:
            InvalidRequest: `limit` isn't a number from 1 to `MOST`.
        """
        return cls(asked.get("after", ""), _how_many(asked.get("limit")))

    def answer(self, entries: Sequence[T], shown: Callable[[T], object]) -> Response:
        """A page of *entries*, of which there may be one more than fit: then there are more to come."""
        data = [shown(entry) for entry in entries[: self.limit]]
        return answer({"object": "list", "data": data, "has_more": len(entries) > self.limit})


def _how_many(text: str | None) -> int:
    if text is None:
        return USUAL
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 4 and 1 <= int(text) <= MOST):
        raise InvalidRequest(f"limit is a number from 1 to {MOST}.", param="limit")
    return int(text)


def moment(name: str, text: str | None) -> float | None:
    """A time: seconds since the epoch, or a date as ISO 8601 writes it, of UTC where it doesn't say.

    Raises:
        InvalidRequest: it is neither.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = datetime.fromisoformat(text)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            seconds = -1.0
    if not 0 <= seconds <= _LATEST:
        raise InvalidRequest(
            f"{name} is a number of seconds since 1970, or a date such as 2026-01-31 or 2026-01-31T12:00:00Z.",
            param=name,
        )
    return seconds


def _mistake(message: str) -> InvalidRequest:
    """msgspec's sentence, and the member that it is about."""
    place = _PLACE.search(message)
    path = place[1] if place else ""
    member = _MEMBER.search(message)
    parts = [part for part in (path, member[1] if member else "") if part]
    text = _PLACE.sub("", message)
    where = f" in {path!r}" if path else ""
    return InvalidRequest(f"{text}{where}.", param=".".join(parts) or None)
