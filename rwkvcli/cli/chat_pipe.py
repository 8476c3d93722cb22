"""A conversation without a terminal: a line of stdin is a turn, stdout gets the answers alone."""

from __future__ import annotations

from typing import Any

from rwkvcli.cli.batch import LineReader
from rwkvcli.cli.console import Console
from rwkvcli.cli.prompt import STDIN, normalized
from rwkvcli.cli.render import TextBar
from rwkvcli.cli.signals import Interruption
from rwkvcli.services.conversation import Conversation


def answer_lines(console: Console, talk: Conversation) -> None:
    """Answer each line as it comes; empty ones are passed over. With --json an answer is an object on a line.

    A signal ends the answer, which is kept as far as it came, and the program.
    """
    with LineReader([STDIN]) as reader:
        _answer(console, talk, reader)


def _answer(console: Console, talk: Conversation, reader: LineReader) -> None:
    while line := reader(True):
        text = normalized(line).decode("utf-8", "surrogateescape").strip()
        if not text:
            continue
        before = talk.history.head
        with Interruption() as interruption:
            with TextBar(console) as bar:
                talk.on_prompt = bar.update
                parts = talk.send(text, interruption.asked)
                next(parts)
                interruption.raises = False  # from here on, the end of the bar included
            for part in parts:
                if not part.thinking and not console.settings.json:
                    console.write(part.text)
        if not console.settings.json:
            console.line("")
        elif talk.history.head is not before:
            console.json(_account(talk))
        if talk.trouble is not None:
            raise talk.trouble
        interruption.settle(ctrl_c=True)


def _account(talk: Conversation) -> dict[str, Any]:
    """The JSON form of the last turn."""
    turn = talk.history.head
    assert turn is not None
    return {
        "text": turn.reply,
        "thinking": turn.thinking,
        "finish_reason": turn.finish,
        "seed": turn.seed,
        "usage": {"prompt_tokens": talk.speed.prompt_tokens, "completion_tokens": talk.speed.tokens},
    }
