"""llama-swap's `config.yaml` as ours. Source of what it means: llama-swap's documentation and the schema that it publishes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
from headrace.settings.importing.llama_server import Command, parse
from headrace.settings.importing.llama_swap_reasons import ENGINE_ONLY, MODEL, PEER, TOP
from headrace.settings.routes import Pattern, TargetModel
from headrace.settings.values import ModelName

_FIRST_PORT = 5800
_MOST_CHARS = 64 * 1024
_VARIABLE = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]{0,199})\}")
_MACRO = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}")
_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "error": "error"}
_MODEL_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
_PATTERN: TypeAdapter[str] = TypeAdapter(Pattern)
_TARGET: TypeAdapter[str] = TypeAdapter(TargetModel)


def translate(document: Mapping[str, Any], environ: Mapping[str, str]) -> Draft:
    """Our settings for a document of llama-swap's; what they have no place for is in its `left`. *environ*: for `${env.NAME}`
    in commands and addresses. Keys are never taken from it."""
    return _Translation(Draft("llama-swap"), environ).run(document)


@dataclass
class _Translation:
    draft: Draft
    environ: Mapping[str, str]
    macros: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> Leftovers:
        return self.draft.left

    def run(self, document: Mapping[str, Any]) -> Draft:
        sections = {str(name): value for name, value in document.items()}
        self.macros = _texts(sections.pop("macros", None))
        models = {name: table(model) for name, model in table(sections.pop("models", None)).items()}
        peers = table(sections.pop("peers", None))
        self._ports(models, number(sections.pop("startPort", None)))
        if (level := _LEVELS.get(str(sections.pop("logLevel", "")))) is not None:
            self.draft.log["level"] = level
        for key in listed(sections.pop("apiKeys", None)):
            self._key_of_ours(key)
        sections.pop("hooks", None)  # every engine is loaded at the start
        for name, model in models.items():
            self._model(name, model)
        for name, peer in peers.items():
            self._peer(name, table(peer))
        self.left.rest("", sections, TOP)
        if len(self.draft.engines) > 1:
            reason = (
                "All engines are loaded at once and stay: leave out what doesn't fit into memory together."
            )
            self.left.add("models", reason)
        return self.draft

    def _ports(self, models: Mapping[str, Mapping[str, Any]], first: float | None) -> None:
        """The ports that `${PORT}` stands for: given out by name, to those whose command has one."""
        following = int(first or _FIRST_PORT)
        for name in sorted(models):
            if "${PORT}" in self._filled(name, models[name], models[name].get("cmd"), final=False):
                self.ports[name] = following
                following += 1

    def _filled(self, name: str, model: Mapping[str, Any], text: object, *, final: bool = True) -> str:
        """*text* with its macros replaced: the last one first, for each may hold those before it."""
        macros = {"MODEL_ID": name, **self.macros, **_texts(model.get("macros"))}
        if name in self.ports:
            macros = {"PORT": str(self.ports[name]), **macros}
        found = text[:_MOST_CHARS] if isinstance(text, str) else ""
        for macro, value in reversed(macros.items()):
            found = found.replace(f"${{{macro}}}", value)[:_MOST_CHARS]
        found = _VARIABLE.sub(lambda match: self.environ.get(match[1], match[0]), found)
        if final and (unknown := _VARIABLE.search(found) or _MACRO.search(found)):
            self.left.add(f"models.*: {unknown[0]}", "Nothing says what it stands for.", name)
        return found

    def _model(self, name: str, model: dict[str, Any]) -> None:
        text = self._filled(name, model, model.pop("cmd", None))
        command = parse(text)
        source = command.model if command is not None else None
        for option, reason in command.left if command is not None and source is None else ():
            self.left.add(f"models.*.cmd {option}", reason, name)
        if command is not None and source is not None:
            target, selector = self._engine(name, command, source)
            model.pop("proxy", None)
            model.pop("useModelName", None)  # an engine of ours goes by its own
        elif command is not None:
            self.left.add("models.*", "Its model isn't known, so there is no engine for it.", name)
            return
        elif (found := self._upstream(name, model)) is not None:
            target, selector = found
        else:
            return
        for alias in self._names(name, model, target):
            self._alias(alias, target, selector)
        known = MODEL | (ENGINE_ONLY if command is not None else {})
        model.pop("macros", None)
        self.left.rest("models.*", model, known, name)

    def _engine(self, name: str, command: Command, source: str) -> tuple[str, str]:
        taken = {engine["id"] for engine in self.draft.engines}
        ident = name if _fits(_MODEL_NAME, name) and name not in taken else unique(name, taken)
        self.draft.engines.append({"id": ident, "model": source, **command.settings})
        for option, reason in command.left:
            self.left.add(f"models.*.cmd {option}", reason, name)
        if not source.startswith(("/", "hf:", "~")):
            self.left.add("models.*.cmd -m", "A relative path counts from the folder of headrace.toml.", name)
        return ident, f"node:local/{ident}"

    def _upstream(self, name: str, model: dict[str, Any]) -> tuple[str, str] | None:
        """Another server than llama.cpp's: Headrace doesn't start it, and uses it where it listens."""
        proxy = self._filled(name, model, model.pop("proxy", None) or "http://localhost:${PORT}")
        url = backend_url(proxy)
        if url is None:
            self.left.add(
                "models.*.proxy",
                "Headrace doesn't start this server, and it isn't known where it listens.",
                name,
            )
            return None
        asked = model.pop("useModelName", None)
        at = asked if isinstance(asked, str) and asked else name
        upstream = self._new(name, url, [at], model)
        # Not the command itself: it may hold keys.
        upstream.about.append(
            f"Headrace doesn't start this server: start it yourself, as models.{name}.cmd of the original says."
        )
        self.left.add(
            "models.*.cmd", "Headrace starts llama.cpp's server only: start this one yourself.", name
        )
        return at, f"node:{upstream.name}"

    def _new(self, name: str, url: str, models: list[str], said: dict[str, Any]) -> UpstreamDraft:
        """An upstream, with its time limits, and its capacity where that is said."""
        times = table(said.pop("timeouts", None))
        limits = {
            ours: seconds(times.pop(theirs, None))
            for ours, theirs in (("connect", "connect"), ("first_byte", "responseHeader"))
        }
        for other in times:
            self.left.add(
                f"timeouts.{other}", "Connections to backends are looked after by themselves.", name
            )
        capacity = number(said.pop("concurrencyLimit", None))
        upstream = UpstreamDraft(
            unique(name, {each.name for each in self.draft.upstreams}),
            url,
            models=models,
            capacity=max(1, int(capacity)) if capacity else None,
            timeouts={key: limit for key, limit in limits.items() if limit},
        )
        self.draft.upstreams.append(upstream)
        return upstream

    def _names(self, name: str, model: dict[str, Any], target: str) -> Iterator[str]:
        """What else it is called, and the name itself where it is called otherwise here."""
        if name != target:
            yield name
        for alias in listed(model.pop("aliases", None)):
            text = alias.get("id") if isinstance(alias, dict) else alias
            yield self._filled(name, model, text)
        filters = table(model.get("filters"))
        for variant in table(filters.get("setParamsByID")):
            if (filled := self._filled(name, model, variant)) != name:
                yield filled

    def _alias(self, alias: str, target: str, selector: str) -> None:
        if any(route["model"] == alias for route in self.draft.routes) or alias == target:
            return
        if not (_fits(_PATTERN, alias) and _fits(_TARGET, target)) or "*" in alias or "?" in alias:
            self.left.add(
                "models.*.aliases",
                "A model is called without spaces, quotes, brackets and wildcards here.",
                alias,
            )
            return
        self.draft.routes.append({"model": alias, "selector": selector, "target": target})

    def _peer(self, name: str, peer: dict[str, Any]) -> None:
        url = backend_url(self._filled(name, {}, peer.pop("proxy", None)))
        models = [model for model in listed(peer.pop("models", None)) if isinstance(model, str) and model]
        key = peer.pop("apiKey", None)
        if url is None:
            self.left.add("peers.*.proxy", "It is no plain address.", name)
            return
        upstream = self._new(name, url, models, peer)
        if isinstance(key, str) and key:
            upstream.key = self._secret(key, "peers.*.apiKey", name)
        self.left.rest("peers.*", peer, PEER, name)

    def _key_of_ours(self, key: object) -> None:
        found = self._secret(key, "apiKeys", "") if isinstance(key, str) and key else None
        if found is not None:
            self.draft.api_keys.append(found)

    def _secret(self, text: str, where: str, of: str) -> Secret | None:
        for macro, value in reversed(self.macros.items()):
            text = text.replace(f"${{{macro}}}", value)[:_MOST_CHARS]
        if (match := _VARIABLE.fullmatch(text.strip())) is not None:
            return Secret(variable=match[1])
        found = None if "${" in text else secret(text.strip())
        if found is None:
            self.left.add(
                where,
                "A key is one word of visible ASCII characters, or one variable of the environment.",
                of,
            )
        return found


def _texts(macros: object) -> dict[str, str]:
    """Macros as text, as they stand in a command."""
    return {
        name: (str(value).lower() if isinstance(value, bool) else str(value))[:_MOST_CHARS]
        for name, value in table(macros).items()
        if isinstance(value, (str, int, float))
    }


def _fits(adapter: TypeAdapter[str], name: str) -> bool:
    try:
        adapter.validate_python(name)
    except ValidationError:
        return False
    return True
