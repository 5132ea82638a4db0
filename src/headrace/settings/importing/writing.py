"""A draft as the text of a `headrace.toml`, which the settings then read: what they refuse is never given out."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from headrace.settings import problems
from headrace.settings.environment import variable
from headrace.settings.importing.draft import Draft, Secret, UpstreamDraft, shown
from headrace.settings.schema import ConfigFile


def write(draft: Draft, *, with_secrets: bool) -> str:
    """The file's text. Without *with_secrets*, a comment says where each key of the original belongs; the key isn't in it.

    Raises:
        ConfigError: the settings don't take it, which is a fault of the translation.
    """
    lines = [
        f"# Made from a configuration of {draft.origin}. What had no place here was told when it was made."
    ]
    lines += [f"# {shown(note)}" for note in draft.notes]
    lines += _auth(draft, with_secrets)
    lines += _table("[log]", draft.log) if draft.log else []
    for engine in draft.engines:
        lines += _table("[[engines]]", engine)
    for index, upstream in enumerate(draft.upstreams):
        lines += _upstream(index, upstream, with_secrets)
    for route in draft.routes:
        fallbacks = route.get("fallbacks", ())
        lines += _table("[[routes]]", {name: value for name, value in route.items() if name != "fallbacks"})
        for fallback in fallbacks:
            lines += _table("[[routes.fallbacks]]", fallback)
    text = "\n".join(lines) + "\n"
    check(text)
    return text


def check(text: str) -> ConfigFile:
    """What the settings make of *text*.

    Raises:
        ConfigError: something in it is wrong; all of it is told.
    """
    document = tomllib.loads(text)
    places = problems.Places("what was made", {})
    told = [*problems.duplicates(document, places), *problems.unknown_kinds(document, places)]
    read = ConfigFile()
    try:
        read = ConfigFile.model_validate(document)
    except ValidationError as error:
        told += problems.sentences(error, places)
    if told:
        raise problems.gathered(told)
    return read


def _auth(draft: Draft, with_secrets: bool) -> Iterator[str]:
    kept: dict[str, list[str]] = {}
    comments = []
    for name, keys in (("admin_keys", draft.admin_keys), ("api_keys", draft.api_keys)):
        texts = [key.text for key in keys if key.text]
        if texts and with_secrets:
            kept[name] = texts
        elif texts:
            how = f"{len(texts)} key{'s' if len(texts) > 1 else ''} of the original belong{'' if len(texts) > 1 else 's'}"
            comments.append(
                f"# {how} into {variable(('auth', name))} (with commas between), or here as {name}."
            )
        comments += [_exported(("auth", name), key) for key in keys if key.variable]
    if kept or comments:
        yield ""
        yield "[auth]"
        yield from comments
        yield from _pairs(kept)


def _upstream(index: int, upstream: UpstreamDraft, with_secrets: bool) -> Iterator[str]:
    yield ""
    yield from (f"# {shown(line)}" for line in upstream.about)
    yield "[[upstreams]]"
    members: dict[str, Any] = {"name": upstream.name, "url": upstream.url, "kind": upstream.kind}
    members |= {"models": upstream.models} if upstream.models else {}
    members |= {"capacity": upstream.capacity} if upstream.capacity else {}
    members |= {"tags": list(upstream.tags)} if upstream.tags else {}
    members |= {"timeouts": dict(upstream.timeouts)} if upstream.timeouts else {}
    key, comment = upstream.key, ""
    if key is not None and key.text and with_secrets:
        members["api_key"] = key.text
    elif key is not None and key.text:
        here = variable(("upstreams", index, "api_key"))
        comment = f"# Its key stands in the original: put it into {here}, or into a file that api_key_file names here."
    elif key is not None:
        comment = _exported(("upstreams", index, "api_key"), key)
    yield from _pairs(members)
    if comment:
        yield comment


def _exported(location: tuple[str | int, ...], key: Secret) -> str:
    return shown(f'# Its key: start Headrace with {variable(location)}="${key.variable}" in its environment.')


def _table(heading: str, members: Mapping[str, Any]) -> list[str]:
    return ["", heading, *_pairs(members)]


def _pairs(members: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in members.items()]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_text(str(name))} = {_value(each)}" for name, each in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_value(each) for each in value)}]"
    return _text(str(value))


def _text(text: str) -> str:
    """A basic string: TOML's escapes are JSON's, but for the one character that JSON leaves as it is. Half a surrogate, which a
    file can't hold, becomes a question mark."""
    whole = text.encode("utf-8", "replace").decode()
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007F")
