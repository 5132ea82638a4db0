"""A talk in a terminal: a real process on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.cli.conversation import MOST_TURNS, Conversation
from headrace.testing import Script
from headrace.testing.fake_engine import Cut
from support.command_line import COMMAND, Engine

Serve = Callable[[Script], Engine]


class Terminal:
    """A process, and what it has shown so far."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode() + b"\n")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_at_prompt(self, text: str) -> None:
        """Press Ctrl-C until *text* is shown. Between showing its prompt and waiting for a key, readline doesn't hear it, and a
        person presses again."""
        for _ in range(30):
            self.interrupt()
            ready, _, _ = select.select([self._descriptor], [], [], 1.0)
            if ready:
                self.see(text)
                return
        raise AssertionError("Ctrl-C was never heard")

    def see(self, text: str, *, timeout_s: float = 30.0) -> str:
        """Read until *text* was shown; what was shown up to its end. The next call looks behind it."""
        deadline = time.monotonic() + timeout_s
        while text not in self._shown:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} didn't appear in {self._shown!r}"
            try:
                self._shown += os.read(self._descriptor, 65536).decode()
            except OSError as error:  # Linux's way to say that the other end is closed
                raise AssertionError(f"it ended with {self._shown!r} before {text!r}") from error
        before, _, self._shown = self._shown.partition(text)
        return before + text

    def end(self) -> int:
        return self.process.wait(30)


@contextmanager
def talk(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", "--key", "k", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def contents(engine: Engine) -> list[tuple[str, str]]:
    """Role and text of the last request's messages."""
    last = engine.fake.stats.last
    assert last is not None
    return [(message["role"], message["content"]) for message in last.json()["messages"]]


def test_a_talk_remembers_what_was_said(serve: Serve) -> None:
    engine = serve(Script(tokens=3))
    with talk("--url", engine.url, "--model", "fake") as terminal:
        terminal.see("Ctrl-D leaves.")
        terminal.see("> ")
        terminal.type("one")
        terminal.see("tok0 tok1 tok2")
        terminal.see("> ")
        terminal.type("two")
        terminal.see("tok0 tok1 tok2")
        terminal.see("> ")
        assert contents(engine) == [("user", "one"), ("assistant", "tok0 tok1 tok2"), ("user", "two")]
        terminal.type("/clear")
        terminal.see("forgotten")
        terminal.type("/system be brief")
        terminal.see("told so")
        terminal.type("/model other")
        terminal.see("The model is other.")
        terminal.type('"""three\nfour"""')
        terminal.see("tok2")
        assert contents(engine) == [("system", "be brief"), ("user", "three\nfour")]
        last = engine.fake.stats.last
        assert last is not None
        assert last.json()["model"] == "other"
        terminal.type("/exit")
        assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(serve: Serve) -> None:
    engine = serve(Script(tokens=100_000, interval_s=0.01))
    with talk("--url", engine.url, "--model", "fake") as terminal:
        terminal.see("> ")
        terminal.type("one")
        terminal.see("tok3")
        terminal.interrupt()
        terminal.see("[stopped]")
        engine.until(lambda stats: stats.aborted == 1)
        terminal.see("> ")
        engine.fake.script = Script(tokens=2)
        terminal.type("two")
        terminal.see("tok0 tok1")
        terminal.see("> ")
        assert contents(engine)[1][1].startswith("tok0 tok1 tok2 tok3")
        terminal.interrupt_at_prompt("/exit or Ctrl-D leaves.")
        terminal.type("/exit")
        assert terminal.end() == 0


def test_an_error_is_told_and_the_talk_goes_on(serve: Serve) -> None:
    engine = serve(Script(fault=Cut(1)))
    with talk("--url", engine.url, "--model", "fake") as terminal:
        terminal.see("> ")
        terminal.type("one")
        terminal.see("The answer broke off")
        terminal.see("> ")
        engine.fake.script = Script(tokens=1)
        terminal.type("two")
        terminal.see("tok0")
        terminal.see("> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_what_commands_a_terminal_is_not_passed_on(serve: Serve) -> None:
    engine = serve(Script(text="safe \x1b]0;title\x07 \x1b[31mtext end"))
    with talk("--url", engine.url, "--model", "fake", "hello") as terminal:
        shown = terminal.see("end")
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert terminal.end() == 0


def test_ctrl_c_ends_a_single_answer_and_the_engines_work(serve: Serve, tmp_path: Path) -> None:
    engine = serve(Script(tokens=100_000, interval_s=0.01))
    with talk("--url", engine.url, "--model", "fake", "hello") as terminal:
        terminal.see("tok3")
        terminal.interrupt()
        assert terminal.end() == 130
    engine.until(lambda stats: stats.aborted == 1)


class TestConversation:
    def test_it_forgets_the_oldest_first(self) -> None:
        conversation = Conversation("m", "s")
        for number in range(MOST_TURNS + 5):
            conversation.remember(f"q{number}", "a")
        messages = conversation.messages("now")
        assert len(messages) == 2 * MOST_TURNS + 2
        assert [messages[index]["content"] for index in (0, 1, -1)] == ["s", "q5", "now"]

    def test_a_turn_without_an_answer_is_as_if_it_had_not_been(self) -> None:
        conversation = Conversation("m")
        conversation.remember("q", "")
        assert conversation.messages("now") == [{"role": "user", "content": "now"}]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("/help", "/model NAME"),
            ("/model", "The model is m."),
            ("/model  n ", "The model is n."),
            ("/system", "told nothing"),
            ("/nonsense", "There is no command /nonsense; /help lists them."),
        ],
    )
    def test_commands(self, line: str, says: str) -> None:
        reply = Conversation("m").command(line)
        assert says in reply.text
        assert not reply.leaves

    @pytest.mark.parametrize("line", ["/exit", "/quit", "/bye"])
    def test_leaving(self, line: str) -> None:
        assert Conversation("m").command(line).leaves
