"""LiteLLM's `config.yaml` as ours. Source of what it means: LiteLLM's documentation of its proxy's and its router's settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from headrace.domain.routing import TAG
from headrace.settings.importing.draft import (
    Draft,
    Leftovers,
    Secret,
    UpstreamDraft,
    backend_url,
    listed,
    number,
    seconds,
    secret,
    table,
    unique,
)
from headrace.settings.importing.litellm_reasons import (
    DEPLOYMENT,
    ENTRY,
    GENERAL,
    INFO,
    MODULE,
    ROUTER,
    TOP,
)
from headrace.settings.importing.litellm_routes import Deployment, Groups
from headrace.settings.importing.providers import OTHERS, PROVIDERS, split

_ENVIRON = "os.environ/"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_NO_KEYS = frozenset(
    {"", "none", "null", "empty", "na", "n/a", "dummy", "fake", "fake-key", "not-needed", "no-key"}
)
"""What people write where a server asks for no key."""


def translate(document: Mapping[str, Any]) -> Draft:
    """Our settings for a document of LiteLLM's; what they have no place for is in its `left`."""
    return _Translation(Draft("LiteLLM"), table(document.get("router_settings"))).run(document)


@dataclass
class _Translation:
    draft: Draft
    router: dict[str, Any]
    module: dict[str, Any] = field(default_factory=dict)
    endpoints: dict[tuple[object, ...], UpstreamDraft] = field(default_factory=dict)

    @property
    def left(self) -> Leftovers:
        return self.draft.left

    def run(self, document: Mapping[str, Any]) -> Draft:
        sections = {str(name): value for name, value in document.items()}
        self.module = table(sections.pop("litellm_settings", None))
        models = listed(sections.pop("model_list", None))
        general = table(sections.pop("general_settings", None))
        sections.pop("router_settings", None)
        self.left.rest("", sections, TOP)
        self._general(general)
        self._logging()
        groups = Groups(self.left)
        for index, entry in enumerate(models):
            if (deployment := self._deployment(index, table(entry))) is not None:
                groups.add(deployment)
        self.draft.upstreams = list(self.endpoints.values())
        self.draft.routes = groups.routes(self.router, self.module)
        self.left.rest("router_settings", self.router, ROUTER)
        self.left.rest("litellm_settings", self.module, MODULE)
        return self.draft

    def _general(self, general: dict[str, Any]) -> None:
        master = general.pop("master_key", None)
        key = self._secret(master, "general_settings.master_key", "") if isinstance(master, str) else None
        if key is not None:
            self.draft.admin_keys.append(key)
        self.left.rest("general_settings", general, GENERAL)

    def _logging(self) -> None:
        if self.module.pop("json_logs", False) is True:
            self.draft.log["format"] = "json"
        if self.module.pop("set_verbose", False) is True:
            self.draft.log["level"] = "debug"

    def _deployment(self, index: int, entry: dict[str, Any]) -> Deployment | None:
        """One entry of `model_list`, with its backend among the endpoints; None where we can't reach that."""
        group, params = entry.pop("model_name", None), table(entry.pop("litellm_params", None))
        model = params.pop("model", None)
        where = "model_list[].litellm_params"
        if not isinstance(group, str) or not group or not isinstance(model, str) or not model:
            self.left.add(f"model_list[{index}]", "It has no model_name, or no model in its litellm_params.")
            return None
        provider, name = split(model, str(params.pop("custom_llm_provider", "") or ""))
        url = self._url(group, provider, params)
        if url is None:
            return None
        key = self._key(group, params)
        times = self._times(group, params)
        capacity = number(params.pop("max_parallel_requests", None))
        spread = tuple(
            number(params.pop(measure, entry.pop(measure, None))) for measure in ("weight", "rpm", "tpm")
        )
        order = number(params.pop("order", None))
        tags = tuple(self._tags(group, params))
        if any(spread[1:]):
            self.left.add(
                f"{where}.rpm, tpm",
                "Headrace limits keys and users, not backends; where simple-shuffle divides by them, they are weights.",
                group,
            )
        self.left.rest(where, params, DEPLOYMENT, group)
        self.left.rest("model_list[].model_info", table(entry.pop("model_info", None)), INFO, group)
        self.left.rest("model_list[]", entry, ENTRY, group)
        kind, several = PROVIDERS[provider].kind, "*" in name
        capacity_here = max(1, int(capacity)) if capacity else None
        # One that has a capacity of its own shares it with no other model.
        same = (kind, url, key, tuple(times.items()), tags, several, index if capacity_here else None)
        upstream = self.endpoints.get(same)
        if upstream is None:
            taken = {each.name for each in self.endpoints.values()}
            upstream = UpstreamDraft(
                unique(_label(provider, url), taken), url, kind, [], capacity_here, tags, times, key
            )
            self.endpoints[same] = upstream
        if not several and name not in upstream.models:
            upstream.models.append(name)
        return Deployment(group, upstream, "" if several else name, order, spread)

    def _url(self, group: str, provider: str, params: dict[str, Any]) -> str | None:
        given = params.pop("api_base", None) or params.pop("base_url", None)
        known = PROVIDERS.get(provider)
        if known is None:
            what = f"The provider {provider!r}" if provider else "A model without a provider before it"
            why = (
                "speaks something that Headrace doesn't"
                if provider in OTHERS or not provider
                else "isn't known here"
            )
            self.left.add(
                "model_list[]",
                f"{what} {why}; a server in front of it that speaks OpenAI's API would do.",
                group,
            )
            return None
        if isinstance(given, str) and given.startswith(_ENVIRON):
            self.left.add(
                "model_list[].litellm_params.api_base",
                "Its address stands in the environment: write it out.",
                group,
            )
            return None
        url = backend_url(given or known.url)
        if url is None:
            self.left.add(
                "model_list[].litellm_params.api_base", "There is none, or it is no plain address.", group
            )
            return None
        path = urlsplit(str(given or known.url)).path.rstrip("/")
        if known.kind == "openai" and path and not path.endswith("/v1"):
            reason = (
                "LiteLLM asks at that very path; Headrace at the /v1 below it. See whether it answers there."
            )
            self.left.add("model_list[].litellm_params.api_base", reason, group)
        return url

    def _key(self, group: str, params: dict[str, Any]) -> Secret | None:
        text = params.pop("api_key", None)
        if not isinstance(text, str) or text.strip().lower() in _NO_KEYS:
            return None
        return self._secret(text, "model_list[].litellm_params.api_key", group)

    def _secret(self, text: str, where: str, of: str) -> Secret | None:
        if text.startswith(_ENVIRON):
            name = text.removeprefix(_ENVIRON)
            if _VARIABLE.fullmatch(name):
                return Secret(variable=name)
            self.left.add(where, "That is no name of a variable.", of)
            return None
        if (found := secret(text.strip())) is None:
            self.left.add(where, "A key is one word of visible ASCII characters.", of)
        return found

    def _times(self, group: str, params: dict[str, Any]) -> Mapping[str, float]:
        """LiteLLM's one limit is how long it waits for the next byte, the first one included."""
        own = seconds(params.pop("timeout", None))
        streams = seconds(params.pop("stream_timeout", None))
        if streams is not None:
            reason = "Headrace has one limit for both ways of answering; the longer one was taken."
            self.left.add("model_list[].litellm_params.stream_timeout", reason, group)
            own = max(own or 0.0, streams)
        limit_s = own or seconds(self.router.get("timeout")) or seconds(self.module.get("request_timeout"))
        return {"first_byte": limit_s, "idle": limit_s} if limit_s else {}

    def _tags(self, group: str, params: dict[str, Any]) -> Iterator[str]:
        for tag in listed(params.pop("tags", None)):
            if isinstance(tag, str) and TAG.fullmatch(tag) and tag[0].isalnum():
                yield tag
            else:
                reason = "A tag is made of letters, digits, '_', '.' and '-'."
                self.left.add("model_list[].litellm_params.tags", reason, group)


def _label(provider: str, url: str) -> str:
    """What an endpoint is called: by its machine where that is told, else by the provider."""
    usual = backend_url(PROVIDERS[provider].url) if PROVIDERS[provider].url else None
    return provider if url == usual else urlsplit(url).netloc.strip("[]") or provider
