"""Backends that speak OpenAI's API: servers of one's own, and hosted services."""

from __future__ import annotations

from headrace.connectors.asking import Asker, Listed, read_listing, unwell
from headrace.connectors.opening import bearer, open_http
from headrace.connectors.products import Product, identify
from headrace.connectors.refusals import KnownRefusals
from headrace.core.fetch import Response
from headrace.kernel.clock import Clock
from headrace.ports.backend import BackendKind, BackendSpec, Opened, Prober, Report, Unwell
from headrace.ports.connector import Connector, Loading

_LISTING = "/v1/models"


class OpenAIKind(BackendKind):
    """What a server that calls itself OpenAI-compatible speaks."""

    name = "openai"
    title = "vLLM, llama.cpp's server, TGI, SGLang, LM Studio, LocalAI, hosted services"

    def open(self, spec: BackendSpec, clock: Clock) -> Opened:
        """See the port."""
        connector = open_http(spec, clock, headers=bearer(spec), cancels_unstreamed=False)
        return Opened(connector, OpenAIProber(connector.plain, spec))


class OpenAIProber(Prober):
    """Asks for the list of models, and what else the product tells cheaply. Which product it is is found out once, and again
    after it was unwell, for another may have come in its place."""

    def __init__(self, connector: Connector, spec: BackendSpec) -> None:
        self._asker = Asker(connector, spec)
        self._named = bool(spec.models)
        self._product: Product | None = None

    async def look(self) -> Report:
        """See the port."""
        try:
            return await self._look()
        except Unwell:
            self._product = None
            raise

    async def _look(self) -> Report:
        response = await self._asker.get(_LISTING)
        if response.status == 503:
            refusal = KnownRefusals().refusal(response.status, response.headers, response.body)
            if isinstance(refusal, Loading):
                return Report(ready_in_s=refusal.retry_after_s or 0.0)
        listed = self._listed(response)
        if self._product is None:
            self._product = await identify(self._asker, response, listed or [])
        report = Report(models=None if listed is None else tuple(item.info for item in listed))
        return await self._product.complete(self._asker, report, listed or [])

    def _listed(self, response: Response) -> list[Listed] | None:
        """What it lists; None where it doesn't.

        Raises:
            Unwell: it is in trouble, or answers with something else though it has to name its models.
        """
        if response.status >= 500 and response.status != 501:
            raise unwell(response, _LISTING)
        if response.status != 200:
            return None
        listed = read_listing(response)
        if listed is None and not self._named:
            raise Unwell(f"It answers {_LISTING} with something else than a list of models.")
        return listed


KIND = OpenAIKind()
