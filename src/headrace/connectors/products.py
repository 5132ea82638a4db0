"""Products behind OpenAI's API: by what each is recognised, and what else it tells of itself for the price of a short request.

What each answers is taken from its documentation and source; which of them were tried for real stands in
docs/compatibility.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from headrace.connectors.asking import Asker, Listed, members, objects, unwell, whole, word
from headrace.core.fetch import Response
from headrace.ports.backend import Report


class Product(Protocol):
    """What is known of a product beyond its list of models."""

    async def complete(self, asker: Asker, report: Report, listed: Sequence[Listed]) -> Report:
        """*report* and what else it tells; *listed* is its list of models.

        Raises:
            Unwell: it says that it can't work.
        """


async def identify(asker: Asker, response: Response, listed: Sequence[Listed]) -> Product:
    """What answered to `/v1/models`. Asks no more than two questions.

    Raises:
        Unwell: it doesn't answer them.
    """
    server = dict(response.headers).get(b"server", b"").lower()
    owners = {item.info.owned_by for item in listed}
    if "llamacpp" in owners or server.startswith(b"llama.cpp"):
        return LlamaServer()
    if "vllm" in owners:
        return Vllm(word((await asker.json("/version") or {}).get("version")))
    if "sglang" in owners:
        # Not its /health: that generates a token, unless it was started otherwise.
        return Plain("SGLang")
    if "organization_owner" in owners and await _lm_studio(asker) is not None:
        return LmStudio()
    about = await asker.json("/info") or {}
    if "model_id" in about and (slots := whole(about.get("max_concurrent_requests"))):
        return Plain(f"TGI {word(about.get('version'))}".strip(), slots)
    return Plain()


class Plain(Product):
    """One that tells nothing more than when it was recognised."""

    def __init__(self, name: str = "", slots: int | None = None) -> None:
        self._name = name
        self._slots = slots

    async def complete(self, asker: Asker, report: Report, listed: Sequence[Listed]) -> Report:
        """See the protocol."""
        return replace(report, product=self._name, slots=self._slots)


class LlamaServer(Product):
    """llama.cpp's server. Some versions list their model while they still load it, or to those without a key; so `/health`,
    which tells whether it is loaded, and `/props`, which asks for the key, are asked, too."""

    _RENEWED_AFTER = 30

    def __init__(self) -> None:
        self._looks = 0
        self._slots: int | None = None
        self._build = ""

    async def complete(self, asker: Asker, report: Report, listed: Sequence[Listed]) -> Report:
        """See the protocol."""
        health = await asker.get("/health")
        if health.status == 503:
            self._looks = 0
            return replace(report, ready_in_s=0.0, product=self._product)
        if self._looks % self._RENEWED_AFTER == 0:
            props = await asker.get("/props")
            about = members(props) or {} if props.status == 200 else {}
            self._slots, self._build = whole(about.get("total_slots")), word(about.get("build_info"))
        self._looks += 1
        return replace(report, slots=self._slots, loaded=_loaded(listed), product=self._product)

    @property
    def _product(self) -> str:
        return f"llama.cpp {self._build}".strip()


def _loaded(listed: Sequence[Listed]) -> frozenset[str] | None:
    """Of a server with several models, those that are loaded; None where it has one and says nothing of it."""
    states = {
        item.info.id: status.get("value")
        for item in listed
        if isinstance(status := item.said.get("status"), dict)
    }
    return frozenset(name for name, state in states.items() if state == "loaded") if states else None


class Vllm(Product):
    """vLLM answers lists while its engine is dead; `/health` asks the engine, without generating anything."""

    def __init__(self, version: str) -> None:
        self._product = f"vLLM {version}".strip()

    async def complete(self, asker: Asker, report: Report, listed: Sequence[Listed]) -> Report:
        """See the protocol."""
        health = await asker.get("/health")
        if health.status >= 500:
            raise unwell(health, "/health")
        return replace(report, product=self._product)


class LmStudio(Product):
    """LM Studio lists what is on its disk, and loads what is asked for."""

    async def complete(self, asker: Asker, report: Report, listed: Sequence[Listed]) -> Report:
        """See the protocol."""
        return replace(report, loaded=await _lm_studio(asker), product="LM Studio")


async def _lm_studio(asker: Asker) -> frozenset[str] | None:
    """The models that are loaded; None where it isn't LM Studio."""
    found = objects((await asker.json("/api/v0/models") or {}).get("data"))
    if not found or not all("state" in item for item in found):
        return None
    return frozenset(word(item.get("id")) for item in found if item["state"] == "loaded")
