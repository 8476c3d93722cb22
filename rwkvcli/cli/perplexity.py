"""`rwkv perplexity`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from rwkvcli.cli.console import Console, is_terminal
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv perplexity book.txt -m demo
  rwkv perplexity book.txt -m model-int4.safetensors --base model-bf16.safetensors
  head -c 100000 book.txt | rwkv perplexity -m demo --ctx 1024 --json
  rwkv perplexity book.txt -m q.safetensors --base demo --fail-over kl=0.05
"""


@with_settings
def perplexity(
    settings: Settings,
    *,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Text; - is stdin.", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Compare with this model, token by token.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--ctx", metavar="N", min=1, help="Predict windows of N tokens independently."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Stop after N tokens.")
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-over",
            metavar="NAME=X",
            help="Exit with 6 if NAME (kl, ratio, perplexity, ...) is above X.",
        ),
    ] = None,
) -> None:
    """Measure how well a model predicts a text.

    The text may be of any length and is read once, as prompts are. Every token is predicted from all those
    before it, or from those in its window of --ctx tokens; bits per byte compares models with any
    vocabulary. The errors are standard errors by batch means, which allow for neighbouring tokens being
    alike. With --base: the divergence (KL, in nats) from that model, how often both put the same token first, and
    how both change with the position.
    """
    if file is None and is_terminal(sys.stdin):
        raise Misuse("no text: name a FILE, or pipe text in (stdin is a terminal)")
    from rwkvcli.cli.download import default_model, loaded, model_to_run
    from rwkvcli.cli.quality import opened_text, quality_lines
    from rwkvcli.cli.render import EvaluationBar
    from rwkvcli.services import evaluation
    from rwkvcli.services.loading import check_device

    limits = evaluation.parse_limits(fail_over or (), compared=base is not None)
    check_device(settings.device)
    console = Console(settings)
    with opened_text(file or "-") as (text, total):
        name = settings.model or default_model(console)
        found = model_to_run(console, name)
        base_found = model_to_run(console, base) if base is not None else None
        model = loaded(console, found)
        base_model = loaded(console, base_found) if base_found is not None else None
        with EvaluationBar(console) as bar:
            result = evaluation.measure(
                model,
                text,
                base=base_model,
                ctx=context,
                limit=limit,
                on_progress=lambda done, so_far: bar.update(done, total, f"perplexity {so_far:.4g}"),
            )
    answer = {"model": name, **result.to_json(base)}
    console.line(json.dumps(answer) if settings.json else "\n".join(quality_lines(answer)))
    evaluation.check_limits(answer, limits)
