"""What is written in one turn of the event loop goes out together, in order, and to the right transport."""

from __future__ import annotations

import asyncio

import pytest

from headrace.kernel.outbox import MAX_HELD_BYTES, Outbox


class Transport:
    """Remembers each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes | bytearray) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing


async def test_a_turn_of_writes_to_one_transport_is_one_write() -> None:
    outbox, transport = Outbox(), Transport()
    for piece in (b"a", b"b", b"c"):
        outbox.send(transport, piece)
    assert transport.writes == []
    await asyncio.sleep(0)
    assert transport.writes == [b"abc"]
    outbox.send(transport, b"d")
    await asyncio.sleep(0)
    assert transport.writes == [b"abc", b"d"]


async def test_each_transport_gets_its_own() -> None:
    outbox, first, second = Outbox(), Transport(), Transport()
    outbox.send(first, b"1")
    outbox.send(second, b"2")
    outbox.send(first, b"1")
    await asyncio.sleep(0)
    assert (first.writes, second.writes) == ([b"11"], [b"2"])


async def test_a_flush_writes_at_once_and_only_once() -> None:
    outbox, transport = Outbox(), Transport()
    outbox.flush(transport)
    outbox.send(transport, b"a")
    outbox.flush(transport)
    assert transport.writes == [b"a"]
    await asyncio.sleep(0)
    assert transport.writes == [b"a"]


async def test_a_transport_that_closed_meanwhile_is_left_alone() -> None:
    outbox, closed, other = Outbox(), Transport(), Transport()
    outbox.send(closed, b"a")
    outbox.send(other, b"b")
    closed.closing = True
    await asyncio.sleep(0)
    assert (closed.writes, other.writes) == ([], [b"b"])


async def test_what_is_sent_while_flushing_goes_out_in_the_next_turn() -> None:
    outbox = Outbox()

    class Answering(Transport):
        def write(self, data: bytes | bytearray) -> None:
            super().write(data)
            if len(self.writes) == 1:
                outbox.send(self, b"again")

    transport = Answering()
    outbox.send(transport, b"first")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.writes == [b"first", b"again"]


async def test_much_is_written_before_the_turn_ends_so_that_the_transport_can_say_that_it_is_full() -> None:
    outbox, transport = Outbox(), Transport()
    outbox.send(transport, b"a")
    outbox.send(transport, b"b" * MAX_HELD_BYTES)
    assert transport.writes == [b"a" + b"b" * MAX_HELD_BYTES]
    outbox.send(transport, b"c" * (MAX_HELD_BYTES + 1))
    assert len(transport.writes) == 2
    outbox.send(transport, b"d")
    await asyncio.sleep(0)
    assert transport.writes[2:] == [b"d"]


@pytest.mark.may_block("the log goes to the console here")
async def test_a_transport_that_raises_costs_the_others_nothing() -> None:
    class Broken(Transport):
        def write(self, data: bytes | bytearray) -> None:
            raise RuntimeError("no more")

    outbox, other = Outbox(), Transport()
    outbox.send(Broken(), b"a")
    outbox.send(other, b"b")
    await asyncio.sleep(0)
    assert other.writes == [b"b"]
