"""Sizes and durations as people write them: `10MiB`, `15m`."""

from __future__ import annotations

import re

_SIZES = {"": 1, "B": 1, "K": 1000, "KB": 1000, "KIB": 1024, "M": 1000**2, "MB": 1000**2, "MIB": 1024**2}
_SIZES |= {"G": 1000**3, "GB": 1000**3, "GIB": 1024**3, "T": 1000**4, "TB": 1000**4, "TIB": 1024**4}
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """`"10MiB"` → 10485760. Units B, kB, MB, GB, TB (powers of 1000) and KiB … TiB (of 1024), any case.

    Raises:
        ValueError: not a size; the message says what one looks like.
    """
    number, unit = _split(text)
    factor = _SIZES.get(unit.upper())
    if factor is None:
        raise ValueError(f"{text!r} is not a size; write it like 512KiB, 10MiB or 2GB")
    return int(number * factor)


def parse_seconds(text: str | float) -> float:
    """`"15m"` → 900.0. Units ms, s, m, h, d; a bare number is seconds.

    Raises:
        ValueError: not a duration; the message says what one looks like.
    """
    number, unit = _split(text)
    factor = _SECONDS.get(unit)
    if factor is None:
        raise ValueError(f"{text!r} is not a duration; write it like 500ms, 30s, 15m or 2h")
    return number * factor


def format_bytes(size_bytes: float) -> str:
    """`10485760` → `"10.0 MiB"`: for people, three or four significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _split(text: str | float) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(str(text))
    return (float(match[1]), match[2]) if match else (0.0, "?")
