"""Reading YAML of others: plain values only, and bounded however it was made. Needs the extra `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from headrace.kernel.errors import HeadraceError

MOST_BYTES = 1024 * 1024
_MOST_ALIASES = 1000
_MOST_MEMBERS = 2000


class BoundedLoader(yaml.SafeLoader):
    """Plain values only. Few aliases, and few members of a table: a short text with both can mean millions of them."""

    _aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One more value, of which some stand for others."""
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MOST_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"it has more than {_MOST_ALIASES} aliases")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` means."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MEMBERS:
            raise yaml.MarkedYAMLError(problem=f"a table has more than {_MOST_MEMBERS} members")


def read_yaml(path: Path) -> dict[str, Any]:
    """The table in a file of YAML.

    Raises:
        HeadraceError: it can't be read, is too large, or isn't YAML that holds a table. The message quotes nothing of it: it may
            hold keys.
    """
    text = _text(path)
    try:
        found = yaml.load(text, Loader=BoundedLoader)  # noqa: S506 - it is a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise HeadraceError(f"{path} is not YAML that can be read{where}: {_problem(error)}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise HeadraceError(f"{path} is not YAML that can be read: {type(error).__name__}.") from None
    if not isinstance(found, dict):
        raise HeadraceError(f"{path} holds no table of settings.")
    return found


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What the parser says, without the words of the text that it quotes."""
    return (error.problem or "no reason given").split("'")[0].strip(" ,:") or "no reason given"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise HeadraceError(f"{path} can't be read: {error.strerror}.") from error
    if len(raw) > MOST_BYTES:
        raise HeadraceError(f"{path} is larger than a configuration: {MOST_BYTES} bytes are the most.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise HeadraceError(f"{path} is not UTF-8 text.") from None
