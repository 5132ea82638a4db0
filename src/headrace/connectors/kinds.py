"""The kinds of backends that are installed: ours and other packages', found alike, by their entry points."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from headrace.domain.fleet import near_names
from headrace.kernel.errors import ConfigError
from headrace.ports.backend import GROUP, BackendKind

_OURS = "headrace"


class Kinds:
    """Kinds by name. Each is loaded when it is asked for, so that one that is broken harms nobody who doesn't use it."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self._points: dict[str, EntryPoint] = {}
        self._loaded: dict[str, BackendKind] = {}
        self._shadowed: list[str] = []
        # Ours come first: a package that takes one of our names must not get the keys that are meant for it.
        for point in sorted(points, key=lambda point: _package(point) != _OURS):
            first = self._points.setdefault(point.name, point)
            if first is not point and first.value != point.value:
                self._shadowed.append(
                    f"The kind of backends {point.name!r} of the package {_package(point)} isn't used: "
                    f"{_package(first)} has one of this name."
                )

    @classmethod
    def installed(cls) -> Kinds:
        """Those that the installed packages name. Reads files, and loads nothing."""
        return cls(entry_points(group=GROUP))

    @property
    def names(self) -> list[str]:
        """What `[[upstreams]] kind` can be."""
        return sorted(self._points)

    def get(self, name: str) -> BackendKind:
        """The kind of that name. Loading it can import modules.

        Raises:
            ConfigError: there is none, or what brings it is broken.
        """
        if (known := self._loaded.get(name)) is not None:
            return known
        point = self._points.get(name)
        if point is None:
            near = near_names(name, self._points, most=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known are {', '.join(self.names)}."
            raise ConfigError(f"There is no kind of backends {name!r}.{hint}")
        kind = self._loaded[name] = _load(point)
        return kind

    def troubles(self) -> list[str]:
        """One sentence for each kind that can't be used. Loads all of them."""
        told = list(self._shadowed)
        for name in self.names:
            try:
                self.get(name)
            except ConfigError as error:
                told.append(error.message)
        return told


def _load(point: EntryPoint) -> BackendKind:
    what = f"The kind of backends {point.name!r} of the package {_package(point)}"
    try:
        kind = point.load()
    except Exception as error:  # whatever a package of others' raises while it is imported
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise ConfigError(f"{what} can't be loaded: {type(error).__name__}: {reason}.") from error
    if isinstance(kind, type) or not callable(getattr(kind, "open", None)):
        raise ConfigError(f"{what} is not an object with the method 'open' ({point.value}).")
    loaded: BackendKind = kind
    return loaded


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"
