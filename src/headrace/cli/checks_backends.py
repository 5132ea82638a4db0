"""Configured upstreams: each is asked as the service asks it, and a trouble is traced to its cause."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping, Sequence

import msgspec

from headrace.cli.checks_arrivals import pace, watch
from headrace.cli.checks_finding import Finding, Level
from headrace.cli.checks_reach import unreachable
from headrace.cli.checks_through import proxy_name, skew_of
from headrace.client.errors import read_error
from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.connectors.kinds import Kinds
from headrace.core.fetch import FetchFailed, Response, fetch
from headrace.domain.inference import Operation, Timeouts
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.backend import BackendSpec, Opened, Report, Unwell
from headrace.ports.connector import UpstreamRequest
from headrace.settings import Upstream

_TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=5.0, idle_s=5.0)
_STREAM_TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=60.0, idle_s=30.0)
_STREAM_S = 90.0
_STREAM_TOKENS = 48
_MOST_NAMED = 5
_LIKELY = ("ollama", "openai")
"""Tried before the others, whose lists of models may look like OpenAI's."""
_OLLAMAS_OWNER = "library"


def ollama(url: str) -> Finding:
    """An Ollama on this machine is used when it is there; it needn't be."""
    kind = Kinds.installed().get("ollama")
    there = asyncio.run(_answers(kind.open(BackendSpec("ollama", url, timeouts=_TIMEOUTS), SystemClock())))
    what = "is running" if there else "is not running; it needn't be"
    return Finding("ollama", Level.OK, f"at {url} {what}")


class Backends:
    """Looks at upstreams. stream_model: what to ask each that has it for a few words; None: nothing is asked for.

    How far their clocks are ahead of ours goes into *skews*.
    """

    def __init__(self, skews: MutableMapping[str, float], stream_model: str | None = None) -> None:
        self._kinds = Kinds.installed()
        self._clock = SystemClock()
        self._skews = skews
        self._stream_model = stream_model

    def examine(self, upstreams: Sequence[Upstream]) -> list[Finding]:
        """All of them, at once; told in their order. Blocks."""
        return asyncio.run(self._examine(upstreams))

    async def _examine(self, upstreams: Sequence[Upstream]) -> list[Finding]:
        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(self._look(upstream)) for upstream in upstreams]
        found = [finding for look in looks for finding in look.result()]
        if self._stream_model and not any(finding.check.startswith("stream ") for finding in found):
            advice = "headrace models lists what there is."
            told = f"No upstream has {self._stream_model!r}."
            found.append(Finding("stream test", Level.FAILED, told, advice))
        return found

    async def _look(self, upstream: Upstream) -> list[Finding]:
        name = f"upstream {upstream.name}"
        try:
            opened = await asyncio.to_thread(self._open, upstream, upstream.kind)  # reads files
        except ConfigError as error:
            return [Finding(name, Level.FAILED, error.message, "Correct the upstream's settings.")]
        try:
            report = await opened.prober.look()
        except Unwell as error:
            return [await self._traced(upstream, error)]
        else:
            found = [await self._judged(upstream, report)]
            found += await self._surroundings(upstream)
            if self._stream_model and _has(self._stream_model, upstream, report):
                found.append(await _streams(upstream, opened, self._stream_model))
            return found
        finally:
            await opened.connector.close()

    def _open(self, upstream: Upstream, kind: str) -> Opened:
        spec = BackendSpec(
            upstream.name,
            upstream.url,
            models=upstream.models,
            api_key=upstream.read_api_key() or "",
            ca_file=upstream.ca_file,
            timeouts=_TIMEOUTS,
        )
        return self._kinds.get(kind).open(spec, self._clock)

    async def _traced(self, upstream: Upstream, error: Unwell) -> Finding:
        """Why it doesn't answer as it should."""
        name = f"upstream {upstream.name}"
        if error.refused_key:
            given = upstream.api_key is not None or upstream.api_key_file is not None
            advice = (
                "Correct api_key or api_key_file." if given else "It wants one: set api_key_file or api_key."
            )
            return Finding(name, Level.FAILED, f"{upstream.url}: {error.message}", advice)
        if trouble := await unreachable(upstream.url, Tls(ca_file=upstream.ca_file)):
            return Finding(name, Level.FAILED, *trouble)
        if other := await self._other_kind(upstream):
            return Finding(
                name,
                Level.FAILED,
                f"{upstream.url} is not of the kind {upstream.kind!r}: {error.message}",
                f'It answers as one of the kind {other!r}: set kind = "{other}".',
            )
        advice = "Look at that server's log; is url its root, and kind what it speaks?"
        return Finding(name, Level.FAILED, f"{upstream.url}: {error.message}", advice)

    async def _other_kind(self, upstream: Upstream) -> str | None:
        """The kind that it answers as, where it isn't its own."""
        for kind in sorted(self._kinds.names, key=lambda kind: kind not in _LIKELY):
            if kind == upstream.kind:
                continue
            try:
                if await _answers(await asyncio.to_thread(self._open, upstream, kind)):
                    return kind
            except ConfigError:
                continue  # a broken package of others' is no answer
        return None

    async def _judged(self, upstream: Upstream, report: Report) -> Finding:
        """What one that answers says of itself."""
        name, url = f"upstream {upstream.name}", upstream.url
        listed = None if report.models is None else [model.id for model in report.models]
        if report.ready_in_s is not None:
            return Finding(name, Level.WARNING, f"{url} is still loading its model.", "Wait, and look again.")
        if not upstream.models and listed is None:
            advice = "Name them: models = [...] in its table."
            return Finding(name, Level.WARNING, f"{url} answers, but doesn't list its models.", advice)
        if not upstream.models and not listed:
            advice = "Load or pull one there, or name them: models = [...]."
            return Finding(name, Level.WARNING, f"{url} answers, but lists no models.", advice)
        if listed is not None and (missing := [model for model in upstream.models if model not in listed]):
            has = ", ".join(listed[:_MOST_NAMED]) or "none"
            told = f"{url} doesn't list {', '.join(missing[:_MOST_NAMED])}; it lists {has}."
            return Finding(name, Level.WARNING, told, "Correct models, or load them there.")
        if upstream.kind == "openai" and not report.product and await self._is_ollama(upstream, report):
            advice = 'Set kind = "ollama": so it is known which models are in its memory.'
            return Finding(name, Level.WARNING, f"{url} answers, and is an Ollama.", advice)
        what = f" ({report.product})" if report.product else ""
        return Finding(name, Level.OK, f"{url} answers{what}; models: {len(upstream.models or listed or ())}")

    async def _is_ollama(self, upstream: Upstream, report: Report) -> bool:
        owners = {model.owned_by for model in report.models or ()}
        if _OLLAMAS_OWNER not in owners:
            return False
        return await _answers(await asyncio.to_thread(self._open, upstream, "ollama"))

    async def _surroundings(self, upstream: Upstream) -> Iterator[Finding]:
        """What the head of a plain answer tells: the time there, and whether a proxy stands before it."""
        answer = await _plain_answer(upstream)
        if answer is None:
            return iter(())
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        skew_of(headers, upstream.name, self._skews)
        return _proxied(upstream.name, proxy_name(headers))


def _proxied(name: str, proxy: str) -> Iterator[Finding]:
    if proxy:
        yield Finding(
            f"proxy of {name}",
            Level.OK,
            f"{proxy} stands before it",
            "Should streams arrive in one piece, switch its buffering off; --stream-test MODEL looks.",
        )


async def _plain_answer(upstream: Upstream) -> Response | None:
    """Whatever it says to a question without a key: only the head counts."""
    endpoint = await asyncio.to_thread(Endpoint.parse, upstream.url, tls=Tls(ca_file=upstream.ca_file))
    connector = DirectConnector(endpoint, clock=SystemClock())
    try:
        return await fetch(connector, UpstreamRequest("GET", "/v1/models", timeouts=_TIMEOUTS))
    except FetchFailed:
        return None
    finally:
        await connector.close()


async def _answers(opened: Opened) -> bool:
    """Whether it answers as one of that kind, with models."""
    try:
        return (await opened.prober.look()).models is not None
    except Unwell as error:
        return error.refused_key
    finally:
        await opened.connector.close()


def _has(model: str, upstream: Upstream, report: Report) -> bool:
    if upstream.models:
        return model in upstream.models
    return report.models is None or any(model == listed.id for listed in report.models)


async def _streams(upstream: Upstream, opened: Opened, model: str) -> Finding:
    """Have a few words generated, and see whether they come one after the other."""
    name = f"stream {upstream.name}"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Count from one to twenty."}],
        "max_tokens": _STREAM_TOKENS,
        "stream": True,
    }
    request = UpstreamRequest(
        "POST",
        Operation.CHAT.path,
        [(b"content-type", b"application/json"), (b"accept", b"text/event-stream")],
        msgspec.json.encode(body),
        _STREAM_TIMEOUTS,
    )
    arrivals = await watch(opened.connector, request, _STREAM_S)
    if arrivals.failure is not None or arrivals.status != 200:
        told = read_error(arrivals.body)[0] if arrivals.failure is None else arrivals.failure.reason
        reason = (told or f"status {arrivals.status}").rstrip(".")
        return Finding(name, Level.FAILED, f"No stream comes: {reason}.", "That server's log tells more.")
    seen = pace(arrivals.blocks)
    times = f"{seen.events} events in {seen.bursts} bursts, the first after {seen.first_s:.2f} s of {seen.whole_s:.2f} s"
    if seen.held is None:
        return Finding(name, Level.OK, f"too few events to tell whether something holds them back ({times})")
    if not seen.held:
        return Finding(name, Level.OK, f"events come one by one ({times})")
    proxy = proxy_name(arrivals.headers) or "Something before it, or that server itself,"
    unheard = (
        "" if "x-accel-buffering" in arrivals.headers else " (that server doesn't send x-accel-buffering: no)"
    )
    return Finding(
        name,
        Level.WARNING,
        f"{proxy} holds the stream back: {times}.",
        f"Switch off response buffering and compression there; nginx: proxy_buffering off{unheard}.",
    )
