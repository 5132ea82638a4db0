"""What was said so far, and the commands that change it. No terminal, no network."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_TURNS = 500
"""Questions that are remembered, each with its answer; older ones are forgotten first."""

HELP = """\
/model NAME   go on with another model; without a name: which one it is
/system TEXT  tell the model how to behave; without a text: no more
/clear        forget what was said
/help         this
/exit         leave (so does Ctrl-D)
Ctrl-C stops an answer. Three double quotes begin a text of several lines, and end it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command says, and whether it was the last."""

    text: str
    leaves: bool = False


@dataclass(slots=True)
class Conversation:
    """One talk with one model at a time."""

    model: str
    system: str = ""
    _turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """What to send, so that the model sees *question* and all before it."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self._turns:
            told += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*told, {"role": "user", "content": question}]

    def remember(self, question: str, answer: str) -> None:
        """Keep a turn, also one that was stopped. One without an answer is as if it hadn't been."""
        if answer:
            self._turns = [*self._turns, (question, answer)][-MOST_TURNS:]

    def command(self, line: str) -> Reply:
        """Carry out a line that begins with a slash."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match name:
            case "/help" | "/?":
                return Reply(HELP)
            case "/exit" | "/quit" | "/bye":
                return Reply("", leaves=True)
            case "/clear":
                self._turns = []
                return Reply("What was said is forgotten.")
            case "/model":
                self.model = rest or self.model
                return Reply(f"The model is {self.model}.")
            case "/system":
                self.system = rest
                return Reply("The model is told so." if rest else "The model is told nothing.")
            case _:
                return Reply(f"There is no command {name}; /help lists them.")
