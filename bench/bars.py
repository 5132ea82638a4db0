"""What we hold ourselves to, and whether this measurement kept it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import cancel, held, simulation_report, startup
from bench.admission import shared
from bench.admission.tables import LEAST_PER_S, bar_row
from bench.columns import HALF_LOAD_P50, LIGHT_PER_REQUEST, PER_EVENT, PER_REQUEST
from bench.figures import Spread, ratios
from bench.measurement import Measurement
from bench.rounds import OURS, Row, rows
from bench.tables import spread, table, verdict

MOST_OF_ENVOY = 1.0
"""Times what Envoy needs as a bare proxy, of CPU for a request and for an event."""
MOST_ADDED_US = 400.0
"""At half load, median of the added latency."""
LEAST_BELOW_LITELLM = 100.0
"""So many times less CPU for a plain request."""


def checked(found: Measurement) -> str:
    """A table of the bars that this measurement can judge, by the medians; empty where it can judge none."""
    judged = [*_ratios(found), *_fixed(found), *simulation_report.judged(found.simulated), *_inside(found)]
    return table(["bar", "found", ""], judged) if judged else ""


def _ratios(found: Measurement) -> Iterator[list[str]]:
    known = {(row.part, row.title): row for row in rows(found)}
    for figure in (PER_REQUEST, PER_EVENT):
        if (row := known.get(("gateway", figure.title))) and (ratio := row.ratio(OURS, "envoy")):
            kept = verdict(ratio.median, highest=MOST_OF_ENVOY)
            yield [f"{figure.title}, {OURS} ÷ envoy: at most {MOST_OF_ENVOY:g}", spread(ratio, None), kept]
    light, steady = known.get(("light", LIGHT_PER_REQUEST.title)), known.get(("gateway", PER_REQUEST.title))
    if light:
        yield from _litellm("the same light load", light.ratio("litellm", OURS))
    if light and steady:
        theirs, ours = light.values.get("litellm", {}), steady.values.get(OURS, {})
        yield from _litellm("each at its steady load", Spread.over(list(ratios(theirs, ours).values())))


def _litellm(loads: str, ratio: Spread | None) -> Iterator[list[str]]:
    if ratio is not None:
        bar = f"CPU µs / request, litellm ÷ {OURS}, {loads}: at least {LEAST_BELOW_LITELLM:g}"
        yield [bar, spread(ratio, None), verdict(ratio.median, lowest=LEAST_BELOW_LITELLM)]


def _fixed(found: Measurement) -> Iterator[list[str]]:
    measured = rows(found)
    yield from _highest(
        f"added µs p50 at half load: at most {MOST_ADDED_US:g}",
        _ours(measured, "latency", HALF_LOAD_P50.title),
        MOST_ADDED_US,
    )
    yield from _highest(
        f"resident kB for each held stream: at most {held.BAR_KB:g}",
        _ours(measured, "held", held.FIGURES[0][0]),
        held.BAR_KB,
    )
    for one in found.cancels:
        if one.stack == OURS:
            title = f"ms until the backend sees a client leave, {one.mode}: at most {cancel.BAR_MS:g}"
            # One that wasn't seen at all has no time, and must not look like a fast one.
            yield from _highest(title, None if one.unseen else one.ms, cancel.BAR_MS)
            if one.unseen:
                yield [title, f"{one.unseen} not seen", "NOT kept"]
    if found.startup:
        yield from _highest(f"s to start: at most {startup.BAR_S:g}", found.startup.seconds, startup.BAR_S)
        resident = found.startup.resident_mb
        yield from _highest(f"MB after the start: at most {startup.BAR_MB:g}", resident, startup.BAR_MB)


def _ours(measured: Sequence[Row], part: str, title: str) -> Spread | None:
    return next((row.spread(OURS) for row in measured if (row.part, row.title) == (part, title)), None)


def _inside(found: Measurement) -> Iterator[list[str]]:
    for row in found.admission.rows if found.admission else []:
        if (title := bar_row(row)) is not None:
            bar = f"admissions each second, {title}: at least {LEAST_PER_S:,.0f}"
            yield [bar, f"{row.per_s:,.0f}", verdict(row.per_s, lowest=LEAST_PER_S)]
    for one in found.redis:
        bar = f"pairs of a reservation and its settlement in Redis each second, {one.mode}: at least {shared.BAR_PER_S:,.0f}"
        yield [bar, spread(one.per_s, 0), verdict(one.per_s.median, lowest=shared.BAR_PER_S)]


def _highest(bar: str, seen: Spread | None, limit: float) -> Iterator[list[str]]:
    if seen is not None:
        yield [bar, spread(seen, None), verdict(seen.median, highest=limit)]
