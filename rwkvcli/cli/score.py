"""`rwkv score`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvcli.cli.batch import LineReader, run_lines, sources
from rwkvcli.cli.console import Console
from rwkvcli.cli.options import (
    FileOption,
    KeepNewlineOption,
    Misuse,
    StateOption,
    SystemOption,
    TemplateOption,
    TimeoutOption,
    check_timeout,
    with_settings,
)
from rwkvcli.cli.prompt import STDIN, argument_bytes, gather_prompt, read_lines, why_no_text
from rwkvcli.cli.settings import Settings
from rwkvcli.cli.signals import time_limit

if TYPE_CHECKING:
    from rwkvcli.services import choosing
    from rwkvcli.services.choosing import Choosing

EXAMPLES = """
  rwkv score -m g1-1.5b "The capital of France is" --choices " Paris" --choices " London"
  label=$(rwkv score -m g1-1.5b -f mail.txt --chat "Is this spam?" --choices Yes --choices No --best)
  rwkv score -m g1-1.5b -f article.txt -s "Name the topic." --choices-from topics.txt --by token
  rwkv state build -m g1-1.5b -f examples.txt -o examples.state
  rwkv score -m g1-1.5b --state examples.state "Review: great fun. Label:" --choices " good" --choices " bad"
  rwkv score -m g1-1.5b --jsonl --choices " yes" --choices " no" < questions.jsonl | jq -r .best
"""
_SHOWN = 60
"""Characters of a choice in the table."""


class By(StrEnum):
    """What `--by` takes."""

    sum = "sum"
    token = "token"
    byte = "byte"


@with_settings
def score(
    settings: Settings,
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="Text that the choices follow; - is stdin.", show_default=False
        ),
    ] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choices", metavar="TEXT", help="A text to score. Repeatable.")
    ] = None,
    choices_from: Annotated[
        str | None,
        typer.Option("--choices-from", metavar="FILE", help="Score every line of FILE too; - is stdin."),
    ] = None,
    end: Annotated[
        bool, typer.Option("--end", help="Score also that the text, or the answer, ends after the choice.")
    ] = False,
    by: Annotated[
        By,
        typer.Option(
            "--by",
            metavar="WHAT",
            help="sum (default), token or byte: rank by that log-probability.",
            show_default=False,
        ),
    ] = By.sum,
    best: Annotated[
        bool, typer.Option("--best", help="Write the best choice alone, as it was given.")
    ] = False,
    file: FileOption = None,
    keep_newline: KeepNewlineOption = False,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="The text is a message, and a choice is the model's answer to it."),
    ] = False,
    system: SystemOption = None,
    template: TemplateOption = None,
    state: StateOption = None,
    timeout: TimeoutOption = None,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="Many prompts: a line of JSON for each in, a line of JSON for each out."
        ),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(
            "-b", "--batch", metavar="N", min=1, max=1024, help="Evaluate up to N choices together."
        ),
    ] = 8,
) -> None:
    """Tell which of several texts is the likeliest to come next.

    The text is what comes on stdin, then the files, then PROMPT, as for `rwkv generate`. It is evaluated once, and every choice
    is scored from a copy of the state. A choice follows the text directly and is encoded by itself: the text ends without a
    space, and the choice begins with the one between them (" Paris"). With --choices-from a line is a choice without its end;
    spaces stay, blank lines are passed over.

    logprob is the natural logarithm of the probability that the text goes on with the choice; per token and per byte it
    is the mean; share is what a choice has of the probability of all choices together, whatever ranks them. --by sum, the
    default, finds the likeliest text, which short ones are more easily; token and byte make up for that. " New" is always
    as likely as " New York" or more, unless --end asks for the end after it too.

    With --chat the text is a message, and a choice is an answer, both in the form that the model was trained on; white space
    around a choice does not matter then.

    With --jsonl every line of stdin (or of -f) is a prompt: a JSON string, or an object of "prompt", "choices" (in place of
    --choices), "id" and "system". A line that fails has an "error", and the exit code is 7 then.
    """
    console = Console(settings)
    check_timeout(timeout)
    if best and (settings.json or jsonl):
        raise Misuse(
            f"--best and {'--jsonl' if jsonl else '--json'} do not go together: JSON has it as `best`"
        )
    chats = chat or system is not None
    if template is not None and not (chats or jsonl):
        raise Misuse("--template is the form of a conversation: give --chat or -s too")
    if state == STDIN:
        raise Misuse("a state is a file, and stdin is none (`./-` is a file of that name)")
    names = sources(prompt, file or []) if jsonl else []
    if choices_from == STDIN and STDIN in (prompt, *(file or []), *names):
        raise Misuse("stdin holds the choices, and nothing beside them: give the rest with -f FILE")
    begin = time.monotonic()
    with time_limit(timeout):
        listed = _listed(choices or [], choices_from, needed=not jsonl)
        reader = LineReader(names) if jsonl else None
        text = None
        if reader is None:
            text = gather_prompt(prompt, file or [], keep_newline=keep_newline, piped=choices_from != STDIN)
            if text is None and state is None:
                raise Misuse(
                    "no text to score after: give PROMPT, or -f FILE (stdin holds the choices)"
                    if choices_from == STDIN
                    else f"no text to score after: give PROMPT, or pipe text in ({why_no_text()})"
                )
        from rwkvcli.cli.download import default_model, loaded, model_to_run
        from rwkvcli.services import choosing, loading

        wanted = choosing.Settings(
            listed,
            end,
            by.value,
            chats,
            argument_bytes(system).decode("utf-8", "surrogateescape") if system is not None else None,
            template,
            batch,
        )
        choosing.check_choices(wanted.choices, wanted.chat)
        loading.check_device(settings.device)
        name = settings.model or default_model(console)
        console = Console(replace(settings, model=name))
        found = model_to_run(console, name)
        opening = time.perf_counter()
        model = loaded(console, found)
        start = loading.load_state(Path(state), model) if state is not None else None
        seconds = time.perf_counter() - opening
        if reader is None:
            made = _scored(console, model, text, wanted, start, seconds)
            if settings.json:
                console.json({**made.report(), "model": name})
            else:
                console.line(made.best if best else "\n".join(_lines(made, by.value)))
            return
    run_lines(
        console,
        reader,
        lambda check: choosing.ChoosingLines(model, reader, wanted, start, check),
        (timeout, begin),
    )


def _listed(choices: list[str], choices_from: str | None, *, needed: bool) -> tuple[bytes, ...]:
    """The choices that the command line gives."""
    listed = [argument_bytes(choice) for choice in choices]
    if choices_from is not None:
        listed += read_lines(choices_from, "--choices-from takes a file with a choice in each line")
        if not listed:
            raise Misuse(f"no choices: {choices_from} holds none")
    elif not listed and needed:
        raise Misuse("no choices: give some with --choices TEXT, or --choices-from FILE")
    return tuple(listed)


def _scored(
    console: Console, model: Any, text: bytes | None, wanted: choosing.Settings, start: Any, seconds: float
) -> Choosing:
    """The choices, scored after a text; the model took some `seconds` to load."""
    from rwkvcli.cli.render import ScoringBar, TextBar
    from rwkvcli.services.choosing import Choosing

    with TextBar(console) as reading, ScoringBar(console) as scoring:
        made = Choosing(model, text, wanted, start, on_prompt=reading.update, on_choices=scoring.update)
        made.timings.load = seconds
        console.detail(f"{model.file.path}: {model.backend.description}, template {made.template.name}")
        made.run()
    return made


def _lines(made: Choosing, by: str) -> Iterator[str]:
    """The table for people, the best first."""
    from rwkvcli.cli.render import table

    per = "byte" if by == "byte" else "token"
    rows = [("choice", "logprob", "tokens", f"per {per}", "share")]
    shares = dict(zip((choice.text for choice in made.scored), made.shares(), strict=True))
    for choice in made.ranked:
        rows.append(
            (
                _quoted(choice.text),
                f"{choice.logprob:.4f}",
                str(choice.tokens),
                f"{choice.value(per):.4f}",
                f"{100 * shares[choice.text]:.2f} %",
            )
        )
    return table(rows, right=(1, 2, 3, 4))


def _quoted(text: bytes) -> str:
    """A choice as JSON has it, so that spaces are seen; those that a table would join, or take for others, are escaped."""
    shown = text.decode("utf-8", "surrogateescape")
    quoted = json.dumps(shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…", ensure_ascii=False)
    return re.sub(r"(?<= ) |[^\S ]", lambda white: f"\\u{ord(white[0]):04x}", quoted)
