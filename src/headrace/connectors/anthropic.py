"""Backends that speak Anthropic's Messages API: chats are translated, there and back.

Source of what they speak: Anthropic's API reference and the types of its official Python library.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from urllib.parse import quote

import msgspec

from headrace.connectors.anthropic_exchange import RefusedExchange, StreamExchange, WholeExchange
from headrace.connectors.anthropic_outlet import Outlet
from headrace.connectors.asking import MAX_MODELS, NOT_THERE, Asker, unwell
from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Operation
from headrace.kernel.clock import Clock
from headrace.kernel.errors import InvalidRequest
from headrace.ports.backend import BackendKind, BackendSpec, Opened, Prober, Report, Unwell
from headrace.ports.connector import Connector, Exchange, Lost, Sink, Traits, UpstreamRequest
from headrace.wire.anthropic_request import PATH, translate

API_VERSION = b"2023-06-01"
"""What `anthropic-version` says: the version that every server of this kind knows. Its inputs and outputs are kept as they
are, says its maker."""

SURE_MAX_TOKENS = 4096
"""Each request there needs a limit. This is the one where nobody set it and the model's own isn't known; every model takes it."""
LARGEST_DEFAULT_MAX_TOKENS = 32_768
"""The most that is asked for where the request says nothing: some models refuse a prompt that leaves no room for the limit."""

_LISTING = "/v1/models"
_PAGE = 1000
_ALIVE = NOT_THERE | {429, 529}


class OutputLimits:
    """How many tokens each model can produce, as the backend says. Written by its prober alone."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def learn(self, limits: dict[str, int]) -> None:
        """Take these for true, and forget all others."""
        self._known = limits

    def default(self, model: str) -> int:
        """The limit for a request that sets none. A model's short name stands for the one with a date behind it."""
        known = self._known.get(model)
        if known is None:
            dated = [limit for name, limit in self._known.items() if name.startswith(f"{model}-20")]
            known = min(dated, default=SURE_MAX_TOKENS)
        return min(known, LARGEST_DEFAULT_MAX_TOKENS)


class AnthropicConnector(Connector):
    """A `Connector` over one to the backend's HTTP, which it owns: OpenAI's chats in, strict OpenAI answers out.

    What can't be translated is refused with a 400 whose `param` names the member; completions and embeddings with a 501. The
    backend doesn't hear of it. Requests that aren't POST are passed through.
    """

    def __init__(self, direct: DirectConnector, clock: Clock, limits: OutputLimits) -> None:
        self.traits: Traits = direct.traits
        self._direct = direct
        self._clock = clock
        self._limits = limits
        self._holding: set[Outlet] = set()

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        """See the port."""
        if request.method != "POST":
            return self._direct.start(request, sink)
        outlet = Outlet(sink, self._holding)
        if request.path != Operation.CHAT.path:
            return RefusedExchange(outlet, 501, InvalidRequest("This model only chats.", code="unsupported"))
        try:
            asked = translate(request.body, self._limits.default)
        except InvalidRequest as error:
            return RefusedExchange(outlet, 400, error)
        form = StreamExchange if asked.stream else WholeExchange
        exchange = form(outlet, asked, int(self._clock.now()))
        upstream = msgspec.structs.replace(request, path=PATH, body=asked.body)
        exchange.below = self._direct.start(upstream, exchange)
        return exchange

    async def close(self) -> None:
        """See the port."""
        for outlet in tuple(self._holding):
            outlet.fail(Lost("the connector was closed"))
        await self._direct.close()


class _Listed(msgspec.Struct):
    id: str
    created_at: str = ""
    max_tokens: int | None = None
    lifecycle: str = ""


class _Listing(msgspec.Struct):
    data: list[_Listed]
    has_more: bool = False
    last_id: str | None = None


class AnthropicProber(Prober):
    """Asks for the list of models. Where that isn't served, or was asked for too often, the backend lives nevertheless: it is
    what it was."""

    def __init__(self, connector: Connector, spec: BackendSpec, limits: OutputLimits) -> None:
        self._asker = Asker(connector, spec)
        self._limits = limits
        self._report = Report(product=AnthropicKind.title)

    async def look(self) -> Report:
        """See the port."""
        listed: list[_Listed] = []
        after: str | None = ""
        while after is not None and len(listed) < MAX_MODELS:
            page = await self._page(after)
            if page is None:
                return self._report
            listed += [model for model in page.data if model.lifecycle != "retired"]
            after = page.last_id if page.has_more and page.data and page.last_id != after else None
        del listed[MAX_MODELS:]
        self._limits.learn({model.id: model.max_tokens for model in listed if model.max_tokens})
        models = tuple(ModelInfo(model.id, _epoch(model.created_at), "anthropic") for model in listed)
        self._report = Report(models=models, product=AnthropicKind.title)
        return self._report

    async def _page(self, after: str) -> _Listing | None:
        """One page of the list; None where there is none to be had, though the backend lives."""
        cursor = f"&after_id={quote(after, safe='')}" if after else ""
        response = await self._asker.get(f"{_LISTING}?limit={_PAGE}{cursor}")
        if response.status in _ALIVE:
            return None
        if response.status != 200:
            raise unwell(response, _LISTING)
        try:
            return _decode_listing(response.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise Unwell(
                f"It answers {_LISTING} with something else than Anthropic's list of models."
            ) from None


_decode_listing = msgspec.json.Decoder(_Listing).decode


def _epoch(created_at: str) -> int:
    try:
        return max(0, int(datetime.fromisoformat(created_at).timestamp()))
    except (ValueError, OverflowError):
        return 0


class AnthropicKind(BackendKind):
    """Anthropic's own service, and servers that speak as it does."""

    name = "anthropic"
    title = "Anthropic's Messages API"

    def open(self, spec: BackendSpec, clock: Clock) -> Opened:
        """See the port. Whether a client's leaving stops an answer that isn't streamed isn't known of such backends, so they
        are asked for streams, unless the settings know better."""
        endpoint = Endpoint.parse(spec.url, tls=Tls(ca_file=spec.ca_file))
        headers = [(b"anthropic-version", API_VERSION)]
        if spec.api_key:
            headers.append((b"x-api-key", spec.api_key.encode()))
        direct = DirectConnector(
            replace(endpoint, prefix=endpoint.prefix.removesuffix("/v1")),
            clock=clock,
            headers=headers,
            limits=Limits(connections=spec.capacity + 16, idle=spec.capacity),
            timeouts=spec.timeouts,
            traits=Traits(
                cancels_unstreamed=spec.cancels_unstreamed is True,
                streamed=frozenset({Operation.CHAT}),
                slots=spec.capacity,
            ),
        )
        limits = OutputLimits()
        return Opened(AnthropicConnector(direct, clock, limits), AnthropicProber(direct, spec, limits))


KIND = AnthropicKind()
