"""What a request hears that gets no place: which error, and in what words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from headrace.control.destinations import Demand
from headrace.domain.fleet import Node, NodeState, near_names
from headrace.domain.inference import Api, Operation
from headrace.kernel.errors import (
    Internal,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from headrace.ports.connector import Failure, Lost

RETRY_UNREACHABLE_S = 5.0
"""What a client is told to wait for a backend that is down: about the time of the next check."""


def unknown(model: str, tags: tuple[str, ...], nodes: Sequence[Node], names: Iterable[str]) -> RequestError:
    """Nobody has the model (with those tags); or nobody can say, as long as a backend was never asked successfully.

    names: those that the client may be told as near ones.
    """
    if tags and any(node.has(model) for node in nodes):
        return ModelNotFound(f"{model}@{'+'.join(tags)}", [model])
    unasked = [node.id for node in nodes if not node.models and node.state is not NodeState.READY]
    if unasked:
        return Unavailable(
            f"The model {model!r} is not known, and {', '.join(unasked)} can't be asked for its models.",
            retry_after_s=RETRY_UNREACHABLE_S,
            code="no_healthy_backend",
        )
    return ModelNotFound(model, near_names(model, names))


def unsupported(model: str, operation: Operation) -> RequestError:
    """Who has the model speaks another API than that of *operation*."""
    if operation.api is Api.OPENAI:
        why = (
            f"can't be asked for {operation.path}: it predicts. Ask it with POST /v1/models/{model}:predict."
        )
    else:
        why = "doesn't predict: it is asked by OpenAI's paths, such as /v1/chat/completions."
    return InvalidRequest(f"The model {model!r} {why}", param="model", code="unsupported_operation")


def hopeless(demand: Demand, model: str, now: float) -> RequestError | None:
    """Why waiting is pointless; None while a backend of *demand* works or is about to. *now*: seconds since the epoch."""
    if demand.waits_for:
        return None
    down = [node for node in demand.nodes if node.state is NodeState.DOWN]
    if not down:
        failed = demand.nodes[0]
        return Internal(f"The model {model!r} can't be served: {failed.detail or 'its engine failed.'}")
    which = ", ".join(f"{node.id} can't be reached{_since(node, now)}" for node in down)
    return Unavailable(
        f"No healthy backend for the model {model!r}: {which}.",
        retry_after_s=RETRY_UNREACHABLE_S,
        code="no_healthy_backend",
    )


def _since(node: Node, now: float) -> str:
    if not node.since:
        return ""
    moment = time.strftime("%H:%M:%S", time.gmtime(node.since))
    return f" since {moment} UTC ({max(0.0, now - node.since):.0f} s)"


def queue_full(retry_after_s: float, *, pushed_out: bool) -> Unavailable:
    """There was no room to wait. *pushed_out*: it waited, and gave way to another key's."""
    why = " Your key had the most requests in it, and one gave way to another key's." if pushed_out else ""
    return Unavailable(f"The queue is full.{why}", retry_after_s=retry_after_s, code="queue_full")


def waited_too_long(
    demand: Demand, model: str, waited_s: float, retry_after_s: float, *, own_deadline: bool
) -> Unavailable:
    """It has waited for as long as it may."""
    wait = expected_wait(demand.nodes)
    reason = "is still loading" if wait is not None else "has no free slot"
    until = ", until its own deadline." if own_deadline else "."
    return Unavailable(
        f"The model {model!r} {reason}; the request waited {waited_s:.0f} s{until}",
        retry_after_s=max(retry_after_s, wait or 1.0),
        code="deadline_passed" if own_deadline else "no_free_slot",
    )


def expected_wait(nodes: Iterable[Node]) -> float | None:
    """Seconds until one of *nodes* is expected to be loaded; None when nobody knows."""
    waits = [
        node.ready_in_s for node in nodes if node.state is NodeState.LOADING and node.ready_in_s is not None
    ]
    return min(waits, default=None)


def given_up(node_id: str, failure: Failure) -> RequestError:
    """Its execution came to nothing, and there is no other."""
    if isinstance(failure, Lost):
        if failure.timed_out:
            return UpstreamTimeout(f"The backend {node_id!r} was too slow. {failure.reason}")
        return UpstreamFailed(f"The backend {node_id!r} failed. {failure.reason}")
    return UpstreamFailed(f"The backend {node_id!r} could not be used. {failure.reason}")
