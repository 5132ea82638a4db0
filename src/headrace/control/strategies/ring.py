"""Which backends a key belongs to: consistent hashing by several probes.

Each backend has points on a circle. A key has probes on it, and belongs to the backend whose point follows one of them most closely;
the second closest is its next choice, and so on. So shares differ by a few per cent, where a ring with one probe needs hundreds of
points for each backend. And each key has an order of its own: what one backend can't take is spread over all others, instead of
burdening its neighbour.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from headrace.domain.fleet import Node

POINTS_PER_SLOT: Final = 2
MOST_POINTS: Final = 32
_FACTORS: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xA0761D6478BD642F)
"""A probe each: large odd numbers, whose multiples are spread as if at random."""
_ROUND: Final = 1 << 32
_LOW: Final = _ROUND - 1
_WORDS: Final = struct.Struct("<16I")


class Ring:
    """Some backends, by their ids.

    A key stays with its backend, whatever becomes of others: when one comes, it takes its share from all; when one goes, its share goes
    to all. It is the same in every process, for only ids and capacities decide.
    """

    __slots__ = ("_owners", "_points", "of")

    def __init__(self, of: tuple[tuple[str, int], ...]) -> None:
        """*of*: id and number of points of each, as `shape` names them."""
        self.of = of
        placed = sorted(
            point << 32 | position
            for position, (name, size) in enumerate(of)
            for point in _points(name, size)
        )
        if placed:
            placed.append(
                placed[0] + (_ROUND << 32)
            )  # whoever comes round behind the last one finds the first
        self._points = [one >> 32 for one in placed]
        self._owners = [of[one & _LOW][0] for one in placed]

    def near(self, key: int) -> list[str]:
        """Ids of backends: the one that *key*, 32 bits, belongs to first, and then its next choices. Some may be named more than once,
        and of many most are not. Empty where there are none."""
        points, owners = self._points, self._owners
        if not points:
            return []
        found = []
        for factor in _FACTORS:
            probe = key * factor >> 24 & _LOW
            index = bisect_left(points, probe)
            found.append(points[index] - probe << 32 | index)
        found.sort()
        return [owners[one & _LOW] for one in found]


def shape(nodes: Iterable[Node]) -> tuple[tuple[str, int], ...]:
    """What a ring is made of. A backend has points by the slots that it is configured with: what it may run at the moment moves no key."""
    return tuple(
        sorted((node.id, min(max(POINTS_PER_SLOT * node.capacity, 1), MOST_POINTS)) for node in nodes)
    )


def _points(name: str, size: int) -> Iterator[int]:
    """The first *size* of a backend's points, 32 bits each; of a larger number these are the first, too."""
    for batch in range(0, size, _WORDS.size // 4):
        words = _WORDS.unpack(hashlib.blake2b(f"{batch}:{name}".encode()).digest())
        yield from words[: size - batch]
