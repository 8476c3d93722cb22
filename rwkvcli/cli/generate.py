"""`rwkv generate`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvcli.cli.batch import LineReader, run_lines, sources, throughput
from rwkvcli.cli.console import Console
from rwkvcli.cli.constraint import asked_constraint
from rwkvcli.cli.options import (
    FileOption,
    KeepNewlineOption,
    Misuse,
    StateOption,
    SystemOption,
    TemplateOption,
    TimeoutOption,
    check_target,
    check_timeout,
    with_settings,
)
from rwkvcli.cli.prompt import STDIN, argument_bytes, argument_text, gather_prompt, why_no_text
from rwkvcli.cli.sampling import with_sampling
from rwkvcli.cli.settings import Settings
from rwkvcli.cli.signals import stopping_between, time_limit
from rwkvcli.errors import Cancelled, TimedOut

if TYPE_CHECKING:
    from rwkvcli.services import generation
    from rwkvcli.services.answering import Part
    from rwkvcli.services.generation import Generation

EXAMPLES = """
  rwkv generate -m g1-1.5b "Once upon a time"
  echo "It was a fine morning, and" | rwkv generate -m model-int4.safetensors
  cat report.txt | rwkv generate -m model.safetensors --chat "Summarise this:" > summary.txt
  rwkv generate -m model.safetensors -s "Answer in one word." "The capital of France?"
  rwkv generate -m g1.safetensors --think show "How many days are there in seven weeks?"
  rwkv generate -m demo --json --seed 1 "Once upon a time" | jq .usage
  rwkv generate -m g1.safetensors --chat --schema person.schema.json "Ada Lovelace, 36, mathematician" | jq .name
  rwkv generate -m g1.safetensors --chat --choices yes --choices no "Is the sea salty?"
  rwkv generate -m demo --temperature 0.8 --top-p 0.5 --ban "the end" --timeout 30 "It was"
  rwkv generate -m model.safetensors --jsonl -b 16 < prompts.jsonl > answers.jsonl
  rwkv generate -m demo --save-state tale.state "Once upon a time" && rwkv generate -m demo --state tale.state --update
"""

_OPEN, _CLOSE = "<think>\n", "\n</think>\n\n"
_TAG = "<think"


class Think(StrEnum):
    """What `--think` takes."""

    show = "show"
    hide = "hide"
    only = "only"
    fast = "fast"
    off = "off"


@with_settings
@with_sampling
def generate(
    settings: Settings,
    *,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to continue; - is stdin.", show_default=False)
    ] = None,
    file: FileOption = None,
    keep_newline: KeepNewlineOption = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="The text is a message; write the model's answer to it.")
    ] = False,
    system: SystemOption = None,
    template: TemplateOption = None,
    think: Annotated[
        Think | None,
        typer.Option(
            "--think",
            metavar="WAY",
            help="Reasoning models: show or hide their thoughts, or only think; fast: no thoughts; off: as they like. Implies --chat.",
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", metavar="N", min=-1, help="Stop after N tokens; -1: when the model does."
        ),
    ] = 512,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before TEXT. Repeatable.")
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            metavar="FILE|JSON",
            help="The text is JSON that conforms to this JSON Schema.",
            show_default=False,
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex", metavar="PATTERN", help="The text matches PATTERN as a whole.", show_default=False
        ),
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option("--choices", metavar="TEXT", help="The text is exactly TEXT. Repeatable: one of them."),
    ] = None,
    grammar: Annotated[
        str | None,
        typer.Option(
            "--grammar", metavar="FILE", help="The text is one of this Lark grammar.", show_default=False
        ),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Write the prompt before its continuation.")] = False,
    timeout: TimeoutOption = None,
    stream_json: Annotated[
        bool, typer.Option("--stream-json", help="A line of JSON per piece of text, and one at the end.")
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="K",
            min=0,
            max=100,
            help="JSON: the log-probability of every token, and the K likeliest in its place.",
            show_default=False,
        ),
    ] = None,
    state: StateOption = None,
    save_state: Annotated[
        str | None,
        typer.Option("--save-state", metavar="FILE", help="Write the state after the text, also on Ctrl-C."),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write the state back to the FILE of --state.")
    ] = False,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="Many prompts: a line of JSON for each in, a line of JSON for each out."
        ),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(
            "-b",
            "--batch",
            metavar="N",
            min=1,
            max=1024,
            help="--jsonl: decode N texts together.",
        ),
    ] = 8,
    count: Annotated[
        int | None,
        typer.Option(
            "-N",
            metavar="K",
            min=1,
            max=1024,
            help="K texts from one prompt; --json writes a list.",
            show_default=False,
        ),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell tokens and speed on stderr.")] = False,
    sampling: dict[str, Any],
) -> None:
    """Continue a text with a model.

    The text is what comes on stdin, then the files, then PROMPT, joined by blank lines. It is not repeated:
    stdout gets the continuation alone, as it is made. One newline at the end of stdin and files is dropped.
    With --chat the text is a message, written in the form that the model was trained on, and the answer is
    what comes. What the sampler is not told is as usual for the model's family.

    With --think show the thoughts come first, between <think> and </think>; with --json they are "thinking", beside
    "text". With --think only the text ends where they do.

    --schema, --regex, --choices and --grammar let nothing come that does not conform, and end the text where it is
    complete; --max-tokens may cut it before. A text that is continued conforms from its first byte; an answer of --chat may
    have a space before it that is not shown, and after --think show or hide the thoughts are free.

    With --logprobs the JSON has "logprobs", of every token: id, text, logprob (natural, by the model alone, before
    temperature, penalties and the rest), and "top", the likeliest.

    --save-state writes what the model remembers then to FILE. With --state the text continues what that file
    has seen; without any text it goes on where it was left, with the same options exactly as if it had not
    been interrupted. --update is both with one file.

    With --jsonl every line of stdin (or of -f) is a prompt: a JSON string, or an object of "prompt", "id" and what
    differs from the options: "max_tokens", "stop", "system", "schema" (an object), "regex", "choices" (a list), "grammar",
    "seed", "temperature" and other settings of the sampler ("banned_strings" for --ban, "order" for --sampler-order).
    The answers come in the same order, each as it would be alone; line i (from 0) has the seed --seed + i. A
    line that fails has an "error", and the exit code is 7 then.
    """
    console = Console(settings)
    check_timeout(timeout)
    if logprobs is not None and not (settings.json or stream_json or jsonl):
        raise Misuse("--logprobs stands in JSON: ask for that by --json, --stream-json or --jsonl")
    constraint = asked_constraint(schema, regex, choices, grammar)
    if constraint is not None and think is Think.only:
        raise Misuse(f"--think only ends before there is anything to be held to --{constraint.kind}")
    target = _target(state, save_state, update)
    if jsonl or count is not None:
        _check_many(settings, jsonl, count, echo=echo, stream_json=stream_json, saves=target is not None)
    begin = time.monotonic()
    with contextlib.ExitStack() as held, time_limit(timeout):
        reader = LineReader(sources(prompt, file or [])) if jsonl else None
        text = b"" if jsonl else gather_prompt(prompt, file or [], keep_newline=keep_newline)
        if text is None and state is None:
            raise Misuse(f"no text to continue: give PROMPT, or pipe text in ({why_no_text()})")
        from rwkvcli.cli.download import default_model, drafting_for, loaded, model_to_run
        from rwkvcli.services import generation, loading

        wanted = generation.Settings(
            max_tokens,
            sampling,
            tuple(map(argument_text, stop or [])),
            chat or system is not None or think is not None,
            argument_bytes(system).decode("utf-8", "surrogateescape") if system is not None else None,
            template,
            think.value if think is not None else None,
            logprobs,
            constraint,
        )
        loading.check_device(settings.device)
        if target is not None:
            loading.check_state_target(target)
        if target is not None and state is not None and _is_same(target, state):
            held.enter_context(loading.updating(target))
        name = settings.model or default_model(console)
        console = Console(replace(settings, model=name))
        found = model_to_run(console, name)
        opening = time.perf_counter()
        model = loaded(console, found)
        start = loading.load_state(Path(state), model) if state is not None else None
        run = generation.Generation(model, text, wanted, None if jsonl else start, keep=target is not None)
        if not jsonl and count is None:
            run.drafting = drafting_for(console, model)
        run.timings.load = time.perf_counter() - opening
        console.detail(f"{found.path}: {model.backend.description}, template {run.template.name}")
        if count is not None:
            _write_alternatives(console, model, text, wanted, count, start, stats=stats)
            return
        whole = target is not None or stream_json or settings.json  # stopped between tokens only
        if not whole and reader is None:
            _write(console, run, stream_json=stream_json, echo=echo)
        lock = held.pop_all()
    if reader is not None:
        _answer_lines(console, reader, model, wanted, batch, start, (timeout, begin), stats=stats)
        return
    if whole:
        with lock, stopping_between(timeout, begin) as run.check:
            try:
                _write(console, run, stream_json=stream_json, echo=echo)
            except (Cancelled, TimedOut):
                if target is not None:
                    _save(console, run, target)
                raise
            if target is not None:
                _save(console, run, target)
    if stats:
        console.note(_stats(run))


def _target(state: str | None, save_state: str | None, update: bool) -> Path | None:
    """The file that the state is to be written to, if any."""
    if STDIN in (state, save_state):
        raise Misuse("a state is a file, and stdin and stdout are none (`./-` is a file of that name)")
    check_target(save_state, "--save-state")
    if not update:
        return Path(save_state) if save_state is not None else None
    if state is None:
        raise Misuse("--update writes back to the file of --state: name it")
    if save_state is not None:
        raise Misuse("--update writes to the file of --state, and --save-state to another: use one of them")
    return Path(state)


def _is_same(target: Path, state: str) -> bool:
    """Whether the state that is read is the one to be written. One that is not there has no place that could be told in a
    working folder that was deleted."""
    return os.path.lexists(state) and os.path.realpath(target) == os.path.realpath(state)


def _check_many(
    settings: Settings, jsonl: bool, count: int | None, *, echo: bool, stream_json: bool, saves: bool
) -> None:
    """Refuse what makes no sense with many texts."""
    name = "--jsonl" if jsonl else "-N"
    if jsonl and count is not None:
        raise Misuse("--jsonl and -N do not go together: repeat the line instead")
    for given, flag in (
        (echo, "--echo"),
        (stream_json, "--stream-json"),
        (saves, "--save-state (or --update)"),
    ):
        if given:
            raise Misuse(f"{name} and {flag} do not go together")
    if "draft" in settings.typed and settings.draft != "off":  # a default is for one text
        raise Misuse(f"{name} and --draft do not go together: tokens of one text alone are guessed")
    if count is not None and not settings.json:
        raise Misuse("-N writes a list: ask for it by --json")


def _answer_lines(
    console: Console,
    reader: LineReader,
    model: Any,
    wanted: generation.Settings,
    size: int,
    start: Any,
    limit: tuple[float | None, float],
    *,
    stats: bool,
) -> None:
    """Answer lines of JSON."""
    from rwkvcli.services.batching import Batch

    begin = time.perf_counter()

    def tell(made: Batch) -> None:
        if stats:
            told = throughput(made.prompt_tokens, made.completion_tokens, time.perf_counter() - begin)
            console.note(f"{made.given} lines, {made.failed} failed; {told}")

    run_lines(console, reader, lambda check: Batch(model, reader, wanted, size, start, check), limit, tell)


def _write_alternatives(
    console: Console,
    model: Any,
    text: bytes | None,
    wanted: generation.Settings,
    count: int,
    start: Any,
    *,
    stats: bool,
) -> None:
    """Several texts from one prompt, as a list."""
    from rwkvcli.services.batching import alternatives

    begin = time.perf_counter()
    made = alternatives(model, text, wanted, count, start)
    reports = [{**one.report(), "model": console.settings.model} for one in made]
    console.json(reports)
    if stats:
        tokens = sum(one.completion_tokens for one in made)
        told = throughput(made[0].prompt_tokens, tokens, time.perf_counter() - begin)
        console.note(f"{count} texts; {told}")


def _save(console: Console, run: Generation, target: Path) -> None:
    """Write the state after the text, or after as much of the prompt as was read."""
    saved = run.save(target)
    if saved is None:
        console.note(f"note: nothing was read, and {target} was not written")
    elif run.prompt_left:
        done = len(run.prompt) - run.prompt_left
        console.note(f"note: {target} holds {done} of {len(run.prompt)} bytes of the text, and no answer")
    else:
        console.detail(f"{target}: {saved.tokens_seen} tokens seen")


def _write(console: Console, run: Generation, *, stream_json: bool, echo: bool) -> None:
    """Write the answer as it is wanted; an interruption leaves what there is of it, in whole JSON."""
    from rwkvcli.cli.render import TextBar

    with TextBar(console) as bar:
        run.on_prompt = bar.update
        _answer(console, run, stream_json=stream_json, echo=echo)


def _answer(console: Console, run: Generation, *, stream_json: bool, echo: bool) -> None:
    """The same, below a bar that shows how much of a long prompt was read."""
    begin = run.prompt.decode("utf-8", "surrogateescape") if echo else ""
    if not stream_json and not console.settings.json:
        _stream(console, run, begin)
        return
    begin = run.prompt.decode("utf-8", "replace") if echo else ""

    def event(kind: str, content: dict[str, Any]) -> None:
        if stream_json:
            console.json({"type": kind, **content})

    if begin:
        event("text", {"text": begin})
    shows = run.settings.think in ("show", "only")
    try:
        for part in run.parts():
            if shows or not part.thinking:
                event("thinking" if part.thinking else "text", {"text": part.text})
    except (TimedOut, KeyboardInterrupt, Cancelled) as error:
        run.finish_reason = "timeout" if isinstance(error, TimedOut) else "interrupted"
        raise
    finally:
        if run.begun:
            report = {**run.report(), "model": console.settings.model}
            report["text"] = begin + report["text"]
            event("end", report)
            if not stream_json:
                console.json(report)


def _stream(console: Console, run: Generation, begin: str) -> None:
    """Write the pieces as they come; a terminal's prompt begins on a line of its own, whatever happens."""
    last = "\n"
    try:
        for piece in _pieces(run, begin):
            console.write(piece)
            last = piece[-1]
    finally:
        if console.out_is_terminal and last != "\n":
            console.write("\n")


def _pieces(run: Generation, begin: str) -> Iterator[str]:
    """What stdout gets: `begin`, and the text, with its thoughts where they are wanted."""
    if begin:
        yield begin
    think, before = run.settings.think, run.told_before
    for part in run.parts():
        if think == "show":
            yield from _between(before, part, begin)
        before = part.thinking
        if not part.thinking or think in ("show", "only"):
            yield part.text


def _between(before: bool | None, part: Part, begin: str) -> Iterator[str]:
    """The tags around thoughts. The end of an echoed prompt has opened them already."""
    if part.thinking and before is None:
        yield _OPEN.removeprefix(_TAG) if begin.endswith(_TAG) else _OPEN
    elif before and not part.thinking:
        yield _CLOSE


def _stats(run: Generation) -> str:
    """One line: tokens, seconds and tokens per second of the prompt and of what was generated."""

    def part(name: str, tokens: int, seconds: float) -> str:
        speed = f"{tokens / seconds:.1f} tokens/s" if seconds else "- tokens/s"
        return f"{name} {tokens} tokens in {seconds:.2f} s ({speed})"

    times = run.timings
    return "; ".join(
        (
            f"load {times.load:.2f} s",
            part("prompt", run.prompt_tokens, times.prompt),
            part("generation", run.completion_tokens, times.decode),
            *(
                [f"{run.draft['came']} of {run.draft['guessed']} guesses came"]
                if run.draft["guessed"]
                else []
            ),
            f"ended by {run.finish_reason}",
            f"seed {run.seed}",
        )
    )
