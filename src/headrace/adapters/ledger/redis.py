"""The quota ledger that several gateways share: the counts are in Redis, and each verb is one script there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

import msgspec
import structlog

from headrace.adapters.ledger.allowances import AWAY, Allowance, Allowances
from headrace.adapters.ledger.blocks import BlockSize
from headrace.adapters.ledger.breaker import OnUnavailable
from headrace.adapters.ledger.closed import CLOSED, Closed
from headrace.adapters.ledger.redis_calls import Calls, Given, Spans
from headrace.adapters.ledger.redis_keys import Keys
from headrace.adapters.ledger.redis_listeners import Asking, Drawing, Peeking, Renewing
from headrace.adapters.ledger.redis_pipe import Call, RedisPipe
from headrace.adapters.ledger.redis_scripts import PEEK, RELEASE, RENEW, RESERVE, SETTLE, Script
from headrace.domain.quota import Measure, Window
from headrace.kernel.clock import Clock, Timer
from headrace.kernel.ids import RandomIds
from headrace.ports.ledger import Charge, QuotaLedger, Told, Verdict

log = structlog.get_logger(__name__)

NOT_OPEN = "the quota ledger isn't open"
FULL = "too many reservations are open or unsettled"
LEASES_IN_A_CALL = 50
CONCURRENCY = Measure.CONCURRENCY


class RedisOptions(msgspec.Struct, frozen=True):
    """How a ledger in Redis behaves.

    prefix: in front of every key; with a hash tag, `{headrace}:`, all lie in one slot of a cluster (whose redirections are not
    followed: the URL names the node that has it). block: what is drawn beforehand, where
    *on_unavailable* is "allow". timeout_s: the longest that an answer may take. lease_s: how long what runs is counted after
    its gateway was last heard of. remember_s: how long what is closed or refused is known as such. after_s: how long a window
    stays in Redis after its end. most_waiting: calls that weren't sent yet; further ones hear `unavailable`. most_open: reservations of this process that are open, or wait to be settled there; beyond,
    further ones are refused; open_s: after that long, others are thought to have settled them. close_s: the longest that
    `close` takes.
    """

    prefix: str = ""
    on_unavailable: OnUnavailable = OnUnavailable.REFUSE
    block: BlockSize = BlockSize()
    timeout_s: float = 0.5
    lease_s: float = 60.0
    remember_s: float = 120.0
    after_s: float = 60.0
    most_waiting: int = 10_000
    most_open: int = 50_000
    open_s: float = 3600.0
    close_s: float = 5.0


class RedisLedger(QuotaLedger):
    """Counts in Redis 7 or newer, under the names of `redis_keys`. `open` it, in the event loop, before use.

    Exact for any number of gateways, also when their clocks differ a little: the window that began last is the one that runs.
    How much a crash of Redis loses is Redis's own affair (`appendonly yes` loses a second); eviction must be off. What a
    gateway that died had reserved stays charged until the window ends, what it had running until the leases lapse.

    Calls that Redis doesn't answer in time hear `unavailable`, and what they may have reserved is given back. While Redis is
    away or full nothing is reserved; or (`OnUnavailable.ALLOW`) what was drawn from it beforehand may be used: for each window
    in use a small reservation of our own, which counts there as used. Settlements and releases are repeated until Redis has
    taken them: while the process lives none is lost, and none counts twice.
    """

    def __init__(self, url: str, clock: Clock, options: RedisOptions | None = None) -> None:
        """Connects to nothing yet.

        Raises:
            ConfigError: *url* isn't one of Redis. (Without the extra `redis`, importing this module raises it already.)
        """
        self._options = options = options or RedisOptions()
        self._clock = clock
        spans = Spans(*(int(s * 1000) for s in (options.lease_s, options.remember_s, options.after_s)))
        self._calls = Calls(Keys(options.prefix), spans)
        self._pipe = RedisPipe(url, clock, options.timeout_s, self._availability_changed)
        self._allowing = options.on_unavailable is OnUnavailable.ALLOW
        self._allowances = Allowances(options.block)
        self._drawing: set[Window] = set()
        self._closed_here = Closed(10_000)
        self._open: dict[str, float] = {}
        self._running: dict[str, Allowance | None] = {}  # what holds leases, and which allowance it is
        name = RandomIds("")()
        self._attempts = (f"{name}.{number}" for number in count())
        self._new_allowance = RandomIds("allowance_")
        self._hindrance = NOT_OPEN
        self._timer: Timer | None = None

    @property
    def open_reservations(self) -> int:
        """Reservations of this process that are open."""
        return len(self._open) + len(self._allowances.holds)

    @property
    def waiting(self) -> int:
        """Calls that weren't sent yet."""
        return self._pipe.waiting

    @property
    def unsettled(self) -> int:
        """Settlements and releases that Redis hasn't taken yet."""
        return self._pipe.lasting

    @property
    def windows(self) -> int:
        """Windows of which something was drawn beforehand."""
        return len(self._allowances.held)

    @property
    def remembered(self) -> int:
        """Closed reservations that this process knows as such; Redis knows its own."""
        return len(self._closed_here)

    @property
    def available(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return not self._pipe.broken

    async def open(self) -> None:
        """Begin. Redis need not be there: then that is how it is until it comes."""
        self._hindrance = ""
        self._pipe.start()
        self._watch()

    def reserve(self, reservation: str, charges: Sequence[Charge], told: Told) -> None:
        """Told in a later turn of the event loop, unless Redis is known to be away."""
        held = self._allowances.holds.get(reservation)
        if held is not None:
            told(held.verdict)
        elif self._closed_here.get(reservation) is not None:
            told(CLOSED)
        elif self._hindrance:
            told(Verdict(unavailable=self._hindrance))
        elif self._pipe.broken:
            told(self.without_redis(reservation, charges))
        elif self._pipe.waiting >= self._options.most_waiting or self._is_full():
            told(Verdict(unavailable=FULL))
        else:
            self.ask(Asking(self, reservation, tuple(charges), told))

    def settle(self, reservation: str, actual: dict[Measure, int]) -> None:
        """Sent with the next batch; repeated until Redis has it."""
        if not self._end_here(reservation, actual):
            self._forget(reservation)
            self._send_lasting(SETTLE, self._calls.settle(reservation, actual))

    def release(self, reservation: str) -> None:
        """Sent with the next batch; repeated until Redis has it."""
        if not self._end_here(reservation, dict.fromkeys(Measure, 0)):
            self._forget(reservation)
            self._send_lasting(RELEASE, self._calls.release(reservation))

    def peek(self, windows: Sequence[Window], told: Told) -> None:
        """Told in a later turn of the event loop, unless Redis is known to be away."""
        if self._hindrance:
            told(Verdict(unavailable=self._hindrance))
        elif self._pipe.broken:
            told(self.look_without_redis(windows))
        elif self._pipe.waiting >= self._options.most_waiting:
            told(Verdict(unavailable=FULL))
        else:
            keys, arguments = self._calls.peek(windows, self._clock.now())
            self._pipe.call(Call(PEEK, keys, arguments, Peeking(self, windows, told).answered))

    async def close(self) -> None:
        """Give allowances back, send what must be sent; after `close_s` it gives up, and the log says what was left."""
        if self._hindrance == NOT_OPEN:
            return
        for allowance in [*self._allowances.take_idle(math.inf), *self._allowances.take_spent()]:
            self._settle_allowance(allowance)
        self._hindrance = NOT_OPEN
        if self._timer is not None:
            self._timer.cancel()
        await self._pipe.close(self._options.close_s)
        if left := self._pipe.lasting:
            log.error("settlements did not reach Redis", action="ledger.lost", settlements=left)

    # What the answers of Redis lead to.

    def ask(self, asking: Asking) -> None:
        """Have Redis reserve."""
        asking.attempt = next(self._attempts)
        given = self._calls.reserve(
            asking.reservation, asking.attempt, asking.charges, self._clock.now(), again=asking.again
        )
        asking.call = Call(RESERVE, *given, asking.answered)
        self._pipe.call(asking.call)

    def answer(self, windows: Sequence[Window], answer: bytes) -> Verdict:
        """What Redis said."""
        return self._calls.verdict(answer, windows)

    def granted(self, asking: Asking, verdict: Verdict) -> None:
        """Remember what is open here, and draw something for a rainy day."""
        now = self._clock.now()
        self._open[asking.reservation] = now
        if any(charge.window.measure is CONCURRENCY for charge in asking.charges):
            self._running[asking.reservation] = None
        if self._allowing:
            for standing in verdict.standings:
                self._draw(standing.window, standing.used, now)

    def make_room(self, refused: Sequence[Window]) -> bool:
        """Give back what was drawn of windows that have no room; says whether that was anything."""
        taken = self._allowances.take(refused)
        for allowance in taken:
            self._settle_allowance(allowance)
        return bool(taken)

    def undo(self, reservation: str, attempt: str) -> None:
        """Nobody will hear of what that attempt reserved, or will reserve when it arrives late."""
        self._send_lasting(RELEASE, self._calls.release(reservation, attempt))

    def without_redis(self, reservation: str, charges: Sequence[Charge]) -> Verdict:
        """Reserve out of what was drawn beforehand, if that is wanted."""
        if not self._allowing or self._hindrance:
            return Verdict(unavailable=AWAY)
        return self._allowances.draw(reservation, charges, self._clock.now())

    def look_without_redis(self, windows: Sequence[Window]) -> Verdict:
        """How they stand as far as can be said here, if that is wanted."""
        if not self._allowing:
            return Verdict(unavailable=AWAY)
        return self._allowances.look(windows, self._clock.now())

    def drawn(self, allowance: Allowance, verdict: Verdict) -> None:
        """Redis has said whether there is an allowance for that window."""
        window = allowance.window
        self._drawing.discard(window)
        if not verdict.granted:
            return
        if window.measure is CONCURRENCY:
            self._running[allowance.reservation] = allowance
        else:
            allowance.resets_at = verdict.standings[0].resets_at
            allowance.lasts_until = allowance.resets_at
        self._allowances.add(allowance)

    def renewed(self, reservations: Sequence[str], answer: bytes, sent_at: float) -> None:
        """Which of them are still open in Redis."""
        for reservation, still in zip(reservations, answer.decode(), strict=True):
            if still == "0":
                self._running.pop(reservation, None)  # closed by another process, or long ago
            elif (allowance := self._running.get(reservation)) is not None:
                allowance.lasts_until = sent_at + self._options.lease_s

    # What is rare.

    def _is_full(self) -> bool:
        options = self._options
        if len(self._open) + self._pipe.lasting < options.most_open:
            return False
        oldest = self._clock.now() - options.open_s
        for reservation, since in list(self._open.items()):
            if since > oldest:  # the dict is in the order of time
                break
            del self._open[reservation]
        return len(self._open) + self._pipe.lasting >= options.most_open

    def _send_lasting(self, script: Script, given: Given) -> None:
        if self._hindrance == NOT_OPEN or self._pipe.lasting >= 2 * self._options.most_open:
            log.error("a settlement was dropped", action="ledger.lost", settlements=1)
        else:
            self._pipe.call(Call(script, *given, _ignore, lasting=True))

    def _forget(self, reservation: str) -> None:
        self._open.pop(reservation, None)
        self._running.pop(reservation, None)

    def _end_here(self, reservation: str, actual: dict[Measure, int]) -> bool:
        """Whether it was made out of allowances, and is closed now."""
        ended = self._allowances.end(reservation, actual)
        if ended is None:
            return False
        self._closed_here.add(reservation)
        for allowance in ended:
            if not self._must_do_without:
                self._allowances.drop(allowance)
                self._settle_allowance(allowance)
        return True

    def _settle_allowance(self, allowance: Allowance) -> None:
        self._running.pop(allowance.reservation, None)
        self._send_lasting(SETTLE, self._calls.settle(allowance.reservation, allowance.actual))

    def _draw(self, window: Window, used: int, now: float) -> None:
        amount = self._allowances.wanted(window, used, now)
        if amount and window not in self._drawing:
            self._drawing.add(window)
            lapses = now + self._options.lease_s
            allowance = Allowance(self._new_allowance(), window, amount, 0, lapses, now)
            self.ask(Drawing(self, allowance))

    @property
    def _must_do_without(self) -> bool:
        """Whether what was drawn beforehand is all that there is."""
        return self._pipe.broken or self._pipe.full

    def _availability_changed(self) -> None:
        if not self._must_do_without:
            for allowance in self._allowances.take_spent():
                self._settle_allowance(allowance)
        if not self._pipe.broken:
            self._renew()

    def _watch(self) -> None:
        self._timer = self._clock.call_later(self._options.lease_s / 3, self._look_after)

    def _look_after(self) -> None:
        self._watch()
        if not self._pipe.broken:
            for allowance in self._allowances.take_idle(self._clock.now()):
                self._settle_allowance(allowance)
            self._renew()

    def _renew(self) -> None:
        now = self._clock.now()
        running = list(self._running)
        for start in range(0, len(running), LEASES_IN_A_CALL):
            some = running[start : start + LEASES_IN_A_CALL]
            renewing = Renewing(self, some, now)
            self._pipe.call(Call(RENEW, *self._calls.renew(some, now), renewing.answered))


def _ignore(_answer: bytes | None) -> None:
    """Of what is repeated until it is done, nobody waits to hear."""
