"""One run of the service: what starts in which order, and how it goes down."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
import uvloop

from headrace.adapters.storage.backend import Backend, choose
from headrace.bootstrap.backends import local_engine, node_id, upstreams
from headrace.bootstrap.keeping import Kept, open_kept
from headrace.connectors.kinds import Kinds
from headrace.control.access import ADMIN, FIRST_KEY_FILE, KeyRing, admit_first_key
from headrace.control.accounts import AccountBook
from headrace.control.allowances import AllowancePlane
from headrace.control.discovery import Discovery
from headrace.control.plane import LocalControlPlane
from headrace.control.quota import QuotaPlane
from headrace.control.recording import Recorder
from headrace.control.registry import Registry
from headrace.control.routes import RouteBook
from headrace.core.inference import Inference
from headrace.domain.routing import Strategy, Target
from headrace.engine.catalog import Catalog
from headrace.engine.download import Progress
from headrace.gateway.addresses import Addresses
from headrace.gateway.administration import Administration
from headrace.gateway.app import build_app
from headrace.gateway.cors import OriginPolicy
from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.guard import AddressGuard
from headrace.gateway.listener import Listener, bind
from headrace.gateway.metrics import Counted, MetricsRoute
from headrace.gateway.open_files import hard_limit, needed_for, raise_open_files_limit, room_in
from headrace.gateway.problems import problem
from headrace.gateway.requests import BodyLimits
from headrace.gateway.security import SecurityEvents
from headrace.gateway.token_lane import TokenLane
from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock, SystemClock
from headrace.kernel.errors import Unavailable
from headrace.observe.logging import configure_logging
from headrace.ports.connector import Connector
from headrace.settings import Settings
from headrace.settings.routes import static_routes
from headrace.settings.schema import MetricsAccess

log = structlog.get_logger(__name__)

Waiting = Coroutine[Any, Any, object]
FLUSH_S = 2.0
"""How long the last error events may take to reach their clients at the end of a shutdown."""


def serve(settings: Settings, *, banner: Callable[[str], None], progress: Progress) -> int:
    """Run the service until SIGINT or SIGTERM; the exit status. A second signal ends it at once.

    *banner* is given what the person at the console should read; *progress* follows the demo model's download.

    Raises:
        StartupError: the port, the data folder or the demo model isn't to be had; nothing is left running.
        ConfigError: an upstream's settings can't work.
    """
    configure_logging(settings.log.level, as_json=settings.log.format == "json")
    raise_open_files_limit()
    listening = bind(settings.server.host, settings.server.port)
    catalog = Catalog.from_environment(settings.cache, os.environ)
    try:
        backend = choose(settings.storage.url.get_secret_value(), settings.home)
        if settings.serves_demo:
            catalog.resolve("demo", progress)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, listening, catalog, backend, banner))
    finally:
        listening.close()


async def _serve(
    settings: Settings,
    listening: socket.socket,
    catalog: Catalog,
    backend: Backend,
    banner: Callable[[str], None],
) -> int:
    stop, force = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (force if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    async with running(settings, listening, catalog, backend) as service:
        _look_at_open_files(settings.server.max_connections)
        banner(_welcome(settings, service))
        gc.collect()
        gc.freeze()  # what is there now stays: the collector needn't look at it again and again while requests wait
        await stop.wait()
        banner("Stopping: running answers may finish. Once more to stop at once.")
        await service.shut_down(force)
    return 0


@dataclass
class Service:
    """A running gateway, and the order in which it goes down."""

    settings: Settings
    port: int
    first_key: tuple[str, bool] | None  # and whether it was made just now
    inference: Inference
    listener: Listener
    ready: bool = True

    async def shut_down(self, force: asyncio.Event) -> None:
        """Not ready → a delay → no new connections → running answers end, until a deadline → error events to the rest.

        *force* cuts every wait short.
        """
        self.ready = False
        await _either(force.wait(), self.settings.server.shutdown_delay)
        self.listener.stop_accepting()
        await _either(force.wait(), self.settings.server.drain, self.listener.drained())
        left = len(self.inference.active)
        self.inference.abort_all(
            Unavailable("The server is shutting down.", retry_after_s=1.0, code="shutting_down")
        )
        if left:
            log.warning("answers cut off by the shutdown", action="service.cut", requests=left)
            await _either(force.wait(), FLUSH_S, self.listener.drained())


@contextlib.asynccontextmanager
async def running(
    settings: Settings, listening: socket.socket, catalog: Catalog, backend: Backend
) -> AsyncIterator[Service]:
    """Everything that the settings ask for, started; at the end closed again, in the opposite order."""
    clock = SystemClock()
    keys, registry = KeyRing(), Registry()
    connectors: dict[str, Connector] = {}
    async with contextlib.AsyncExitStack() as stack:
        kept = await open_kept(settings, backend, clock, stack)
        first_key = _let_in(keys, settings)
        book = await _accounts(settings, kept, keys, clock, stack)
        routes = await _routes(settings, kept, stack)
        control, metered = _deciding(settings, kept, registry, routes, clock)
        stack.callback(control.health.close)
        inference = Inference(metered, connectors, metered.status_of)
        _heed_affinity(routes, inference)
        discovery = await _models(settings, catalog, registry, connectors, stack)
        discovery.on_probe, control.on_unreachable = control.health.probed, discovery.unreachable
        control.lookout.on_awaited = discovery.look_soon
        origins = OriginPolicy(settings.server.cors_origin_regex)
        lane = _token_lane(settings, keys, inference, origins)
        counted = Counted(
            control,
            registry,
            lane.guard,
            refusals=lambda: metered.refusals,
            connections=lambda: service.listener.connections,
            answering=lambda: service.listener.answering,
            gauges={**kept.gauges, **_quota_gauges(metered)},
        )
        app = build_app(
            lane=lane,
            registry=registry,
            origins=origins,
            ready=lambda: service.ready,
            admin=Administration(book, kept.records, kept.ledger, routes, control.explain, control),
            metrics=MetricsRoute(keys, counted, open_to_all=settings.server.metrics is MetricsAccess.OPEN),
        )
        listener = Listener(app, listening, _connection_limits(settings), lane)
        service = Service(settings, listening.getsockname()[1], first_key, inference, listener)
        stack.push_async_callback(listener.close)
        await listener.start()
        yield service


async def _accounts(
    settings: Settings, kept: Kept, keys: KeyRing, clock: Clock, stack: contextlib.AsyncExitStack
) -> AccountBook:
    """The users and keys of the database, and whatever becomes of them."""
    tiers = {tier.name: tier.allowance for tier in settings.tiers}
    book = AccountBook(kept.accounts, keys, clock, tiers, settings.limits.allowance)
    await book.refresh()
    following = Tasks()
    stack.push_async_callback(following.close)
    following.spawn(book.follow(), name="accounts.follow")
    return book


async def _routes(settings: Settings, kept: Kept, stack: contextlib.AsyncExitStack) -> RouteBook:
    """The routes of the settings and of the database, and whatever becomes of them."""
    book = RouteBook(kept.routes, static_routes(settings.routes))
    await book.refresh()
    following = Tasks()
    stack.push_async_callback(following.close)
    following.spawn(book.follow(), name="routes.follow")
    return book


def _deciding(
    settings: Settings, kept: Kept, registry: Registry, routes: RouteBook, clock: Clock
) -> tuple[LocalControlPlane, QuotaPlane]:
    """The control plane: what places requests, and around it what holds them to limits."""
    limits = settings.limits
    recorder = Recorder(kept.records, clock, lambda error: problem(error).status)
    control = LocalControlPlane(
        registry,
        clock,
        queue_size=limits.queue_size,
        queue_wait_s=limits.queue_wait,
        recorder=recorder,
        routes=routes,
    )
    allowing = AllowancePlane(control, kept.ledger, clock)
    _heed(routes, lambda targets: allowing.limit(any(target.tokens_per_day for target in targets)))
    return control, QuotaPlane(
        allowing, kept.ledger, clock, recorder, secret_models=settings.auth.secret_models
    )


def _heed_affinity(routes: RouteBook, inference: Inference) -> None:
    by_affinity = (Strategy.SESSION, Strategy.PREFIX)

    def heed(targets: list[Target]) -> None:
        inference.affinity = any(target.strategy in by_affinity for target in targets)

    _heed(routes, heed)


def _heed(routes: RouteBook, listener: Callable[[list[Target]], object]) -> None:
    """Tell *listener* all targets of the routes, now and after each change."""

    def tell() -> None:
        listener([target for route in routes.in_force for target in route.targets])

    routes.on_change(tell)
    tell()


async def _models(
    settings: Settings,
    catalog: Catalog,
    registry: Registry,
    connectors: dict[str, Connector],
    stack: contextlib.AsyncExitStack,
) -> Discovery:
    """Start the engines, and look for the upstreams."""
    clock = SystemClock()
    engines = settings.effective_engines
    # Engines whose threads wait for each other crawl: where there are several, each gets its share of the processor.
    share = max(1, (os.cpu_count() or 1) // len(engines)) if len(engines) > 1 else 0
    for engine in engines:
        local = local_engine(engine, catalog, clock, registry, threads=share)
        connectors[node_id(engine)] = local.connector
        stack.push_async_callback(local.close)
        await local.start()
    kinds = await asyncio.to_thread(Kinds.installed)
    for trouble in await asyncio.to_thread(kinds.troubles):  # imports what other packages bring
        log.warning("a kind of backends can't be used", action="kind.broken", reason=trouble)
    watched = await asyncio.to_thread(upstreams, settings, kinds, connectors, clock)  # reads files of keys
    for one in watched:
        stack.push_async_callback(connectors[one.node.id].close)
    discovery = Discovery(registry, clock=clock)
    stack.push_async_callback(discovery.close)
    await discovery.start(watched)
    return discovery


def _look_at_open_files(max_connections: int) -> None:
    """Say in the log where there may be fewer than the clients that are let in can take."""
    granted, needed = hard_limit(), needed_for(max_connections)
    if granted is not None and granted < needed:
        log.warning(
            "the system grants fewer open files than server.max_connections can take",
            action="service.open_files",
            granted=granted,
            needed=needed,
            room_for_connections=room_in(granted),
        )


def _quota_gauges(metered: QuotaPlane) -> dict[str, Callable[[], float]]:
    tokens = metered.tokens
    return {
        "headrace_quota_reserved_tokens_total": lambda: tokens.reserved,
        "headrace_quota_settled_tokens_total": lambda: tokens.settled,
        "headrace_quota_open_tokens": lambda: tokens.open,
    }


def _let_in(keys: KeyRing, settings: Settings) -> tuple[str, bool] | None:
    """Fill the key ring; the first key, and whether it is new, where no other was given."""
    auth = settings.auth
    for key in auth.api_keys:
        keys.add(key.get_secret_value(), tier=settings.limits.allowance)
    for key in auth.admin_keys:
        keys.add(key.get_secret_value(), ADMIN)
    if auth.api_keys or auth.admin_keys:
        return None
    return admit_first_key(keys, settings.home)


def _token_lane(settings: Settings, keys: KeyRing, inference: Inference, origins: OriginPolicy) -> TokenLane:
    demo = settings.effective_engines[0].id if settings.serves_demo else ""
    pause_s = settings.server.body_timeout
    events = SecurityEvents()
    return TokenLane(
        keys,
        inference,
        origins,
        limits=BodyLimits(settings.limits.max_body, pause_s, pause_s * 10),
        default_model=settings.models.default or demo,
        default_embedding_model=settings.models.default_embed or "",
        guard=AddressGuard(settings.limits.anonymous_requests_per_minute, events),
        addresses=Addresses(settings.server.trusted_proxies, events),
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    server = settings.server
    return ConnectionLimits(
        head_bytes=server.max_header_bytes,
        head_time_s=server.header_timeout,
        connections=server.max_connections,
        keep_alive_s=server.keep_alive,
    )


async def _either(force: Waiting, limit_s: float, work: Waiting | None = None) -> None:
    """Wait for *work*, at most *limit_s*, or until *force*."""
    async with Tasks() as tasks:
        waiting = {
            tasks.spawn(coroutine, name="shutdown") for coroutine in (force, work) if coroutine is not None
        }
        await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)


def _welcome(settings: Settings, service: Service) -> str:
    """What the person at the console needs to make a first request."""
    host = settings.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{service.port}"
    lines = [f"Headrace is listening on {url}"]
    header = '"Authorization: Bearer $HEADRACE_API_KEY"'
    if service.first_key is not None:
        key, made = service.first_key
        path = settings.home / FIRST_KEY_FILE
        # Shown once: what is printed at every start ends up in somebody's log.
        lines.append(f"Your key (kept in {path}): {key}" if made else f"Your key is kept in {path}")
        header = (
            f"'Authorization: Bearer {key}'"
            if made
            else f'"Authorization: Bearer $(cat {shlex.quote(str(path))})"'
        )
    model = settings.effective_engines[0].id if settings.effective_engines else "MODEL"
    lines += [
        "Try it:",
        f"curl -sS {url}/v1/chat/completions -H {header} -H 'Content-Type: application/json' "
        f"""-d '{{"model":"{model}","messages":[{{"role":"user","content":"Say hello."}}]}}'""",
    ]
    return "\n".join(lines)
