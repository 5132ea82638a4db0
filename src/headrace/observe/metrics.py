"""Metrics as text, in the format that Prometheus reads (text format 0.0.4).

Made when somebody asks for it, from numbers that others keep: no request pays for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[tuple[str, ...], float]
"""The values of a metric's labels, in their order, and the number."""


class Kind(StrEnum):
    """What a metric is: a count of what has happened since the start, or what is now."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels`: names of what tells its samples apart; what they hold is ours, never what a client wrote."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def render(metric: Metric, samples: Iterable[Sample]) -> str:
    """All lines of one metric; empty where it has no samples."""
    lines = [f"{metric.name}{_labels(metric.labels, values)} {_number(value)}\n" for values, value in samples]
    if not lines:
        return ""
    help_ = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {metric.name} {help_}\n# TYPE {metric.name} {metric.kind}\n" + "".join(lines)


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
