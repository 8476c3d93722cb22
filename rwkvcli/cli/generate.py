"""`rwkv generate`."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvcli.cli.console import Console, is_terminal
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.prompt import argument_bytes, gather_prompt
from rwkvcli.cli.settings import Settings

if TYPE_CHECKING:
    from rwkvcli.services.generation import Generation

EXAMPLES = """
  rwkv generate -m demo "Once upon a time"
  echo "It was a fine morning, and" | rwkv generate -m model-int4.safetensors
  cat report.txt | rwkv generate -m model.safetensors --temperature 0 "Summary:" > summary.txt
  rwkv generate -m demo --json --seed 1 "Once upon a time" | jq .usage
"""


@with_settings
def generate(
    settings: Settings,
    *,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to continue; - is stdin.", show_default=False)
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read text from FILE; - is stdin."),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", metavar="N", min=-1, help="Stop after N tokens; -1: when the model does."
        ),
    ] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="0 always takes the likeliest token.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", help="Choose among the K likeliest tokens; 0: off.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="P", help="Choose among the likeliest that make up P; 1: off.")
    ] = 0.85,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="S", help="The same seed gives the same text.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before TEXT; may be given again.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell tokens and speed on stderr.")] = False,
) -> None:
    """Continue a text with a model.

    The text is what comes on stdin, then the files, then PROMPT, joined by blank lines. It is not repeated:
    stdout gets the continuation alone, as it is made. One newline at the end of stdin and files is dropped.
    """
    console = Console(settings)
    text = gather_prompt(prompt, file or [])
    if text is None:
        why = "stdin is a terminal" if is_terminal(sys.stdin) else "stdin is empty"
        raise Misuse(f"no text to continue: give PROMPT, or pipe text in ({why})")
    if settings.model is None:
        raise Misuse("no model: give one with -m, for example `-m demo`")

    from rwkvcli.cli.download import model_file
    from rwkvcli.services import generation

    stops = tuple(argument_bytes(each).decode("utf-8", "replace") for each in stop or [])
    sampling = generation.Settings(max_tokens, temperature, top_k, top_p, seed, stops)
    generation.check_device(settings.device)
    found = model_file(console, settings.model)
    begin = time.perf_counter()
    model = generation.load_model(found, settings.device, settings.threads)
    run = generation.Generation(model, text, sampling)
    run.timings.load = time.perf_counter() - begin
    console.detail(f"{found.path}: {model.backend.description}")
    if settings.json:
        for _ in run:
            pass
        console.line(json.dumps({**run.report(), "model": settings.model}, ensure_ascii=False))
    else:
        _stream(console, run)
    if stats:
        console.note(_stats(run))


def _stream(console: Console, run: Generation) -> None:
    """Write the pieces as they come; a terminal's prompt begins on a line of its own, whatever happens."""
    last = "\n"
    try:
        for piece in run:
            console.write(piece)
            last = piece[-1]
    finally:
        if console.out_is_terminal and last != "\n":
            console.write("\n")


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
            f"ended by {run.finish_reason}",
            f"seed {run.seed}",
        )
    )
