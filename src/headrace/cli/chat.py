"""`headrace chat`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import stat
import sys
from collections.abc import Callable
from os import fstat
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import access
from headrace.cli.conversation import Conversation
from headrace.cli.options import ConfigOption, JsonOption, KeyOption, UrlOption
from headrace.kernel.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import Answer, HeadraceClient

_MOST_INPUT_CHARS = 8 * 1024 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FENCE = '"""'


def chat(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Answer this and end; without it: talk.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="The model [default: the gateway's].")
    ] = None,
    system: Annotated[
        str, typer.Option("--system", "-s", metavar="TEXT", help="How the model shall behave.")
    ] = "",
    url: UrlOption = None,
    key: KeyOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model.

    What is piped in is the question, or belongs to it. Ctrl-C stops an answer, and the model's work on it.

    \b
    Examples:
      headrace chat
      headrace chat "Why is the sky blue?"
      git diff | headrace chat "Write a commit message for this." --model qwen
    """
    gateway = access.find_gateway(url, key, config)
    asked = _question(question)
    if asked is None and not (sys.stdin and sys.stdin.isatty()):
        raise HeadraceError("There is no question: give one, or pipe one in.")
    conversation = Conversation(model or asyncio.run(_default_model(gateway)), system)
    if asked is None:
        _talk(conversation, gateway)
    elif as_json:
        _print_json(conversation, gateway, asked)
    else:
        asyncio.run(_say(conversation, gateway, asked, _writer()))
        typer.echo()


def _question(given: str | None) -> str | None:
    """What is asked: the argument and what is piped in. None: nothing, so it becomes a talk."""
    piped = _piped()
    return "\n\n".join(part.strip() for part in (given, piped) if part and part.strip()) or None


def _piped() -> str:
    """What comes through a pipe or from a file. A device that is no terminal (cron's, say) is not waited for."""
    mode = fstat(sys.stdin.fileno()).st_mode if sys.stdin else 0
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return ""
    try:
        text = sys.stdin.read(_MOST_INPUT_CHARS + 1)
        text.encode()  # in some locales Python lets anything in, and fails only when it is to go out
    except UnicodeError as error:
        raise HeadraceError("What was piped in is not text.") from error
    if len(text) > _MOST_INPUT_CHARS:
        raise HeadraceError(
            f"More than {_MOST_INPUT_CHARS} characters were piped in; that is too much for a model."
        )
    return text


def _talk(conversation: Conversation, gateway: access.Gateway) -> None:
    with contextlib.suppress(ImportError):  # it gives line editing and a history, where the platform has it
        import readline  # noqa: F401
    typer.echo(f"{conversation.model} at {gateway.url}. /help says what you can do; Ctrl-D leaves.")
    while True:
        try:
            line = _read().strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("\n/exit or Ctrl-D leaves.")
            continue
        if line.startswith("/"):
            reply = conversation.command(line)
            if reply.leaves:
                return
            typer.echo(reply.text)
        elif line:
            _take_turn(conversation, gateway, line)


def _read() -> str:
    line = input("> ")
    if not line.startswith(_FENCE):
        return line
    lines = [line.removeprefix(_FENCE)]
    size = 0
    while not lines[-1].endswith(_FENCE) and size < _MOST_INPUT_CHARS:
        lines.append(input("… "))
        size += len(lines[-1])
    return "\n".join(lines).removesuffix(_FENCE)


def _take_turn(conversation: Conversation, gateway: access.Gateway, question: str) -> None:
    """One question of a talk. What goes wrong is told, and the talk goes on."""
    pieces: list[str] = []
    write = _writer()

    def keep(text: str) -> None:
        pieces.append(text)
        write(text)

    try:
        answer = asyncio.run(_say(conversation, gateway, question, keep))
    except KeyboardInterrupt:
        typer.echo("\n[stopped]")
    except HeadraceError as error:
        typer.echo(("\n" if pieces else "") + error.message, err=True)
    else:
        typer.echo("\n[cut off: the model's limit of tokens]" if answer.finish_reason == "length" else "")
    conversation.remember(question, "".join(pieces))


def _print_json(conversation: Conversation, gateway: access.Gateway, question: str) -> None:
    pieces: list[str] = []
    answer = asyncio.run(_say(conversation, gateway, question, pieces.append))
    told: dict[str, object] = {
        "text": "".join(pieces),
        "model": answer.model,
        "finish_reason": answer.finish_reason,
    }
    if answer.usage:
        told["prompt_tokens"] = answer.usage.prompt_tokens
        told["completion_tokens"] = answer.usage.completion_tokens
    typer.echo(json.dumps(told))


async def _say(
    conversation: Conversation, gateway: access.Gateway, question: str, write: Callable[[str], None]
) -> Answer:
    """Ask, and write the answer as it comes. Cancelled, it has stopped the model when it returns."""
    from headrace.client import ClientError

    async with _client(gateway) as client:
        answer = client.chat(conversation.messages(question), model=conversation.model)
        try:
            async with contextlib.aclosing(aiter(answer)) as texts:
                async for text in texts:
                    write(text)
        except ClientError as error:
            raise access.advised(error) from error
        return answer


async def _default_model(gateway: access.Gateway) -> str:
    """What the gateway says is its default, or the first that it has. Another OpenAI-compatible server will do, too."""
    from headrace.client import ClientError

    async with _client(gateway) as client:
        try:
            if default := await _told_default(client):
                return default
            models = await client.models()
        except ClientError as error:
            raise access.advised(error) from error
    if not models:
        raise HeadraceError(
            f"The gateway at {gateway.url} serves no model yet; 'headrace doctor' may know why."
        )
    return models[0].id


async def _told_default(client: HeadraceClient) -> str | None:
    from headrace.client import ClientError

    try:
        return (await client.health()).default_model
    except ClientError as error:
        if error.status is None and error.code != "invalid_answer":
            raise
        return None


def _client(gateway: access.Gateway) -> HeadraceClient:
    from headrace.client import HeadraceClient

    return HeadraceClient(gateway.url, gateway.key)


def _writer() -> Callable[[str], None]:
    """Writes pieces at once. To a terminal, without what would command it: the text is the model's, not ours."""
    terminal = sys.stdout.isatty()

    def write(text: str) -> None:
        typer.echo(_CONTROL.sub("", text) if terminal else text, nl=False)

    return write
