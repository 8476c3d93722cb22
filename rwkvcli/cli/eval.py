"""`rwkv eval`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv eval lambada -m model-int8.safetensors
  rwkv eval lambada lambada_test.jsonl -m demo --limit 100
  rwkv eval lambada -m model-int4.safetensors --json | jq .accuracy
"""


class Task(StrEnum):
    """What a model can be tested on."""

    lambada = "lambada"


@with_settings
def eval(
    settings: Settings,
    *,
    task: Annotated[
        Task | None, typer.Argument(metavar="TASK", help="lambada: guess last words.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="JSON lines with a text each; default: the test set.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="The first N documents only.")
    ] = None,
) -> None:
    """Test a model on a task.

    lambada: the last word of 5153 passages is to be guessed, as the figures published for RWKV models were
    measured; accuracy, and perplexity per document. The test set (1.8 MB) comes from the Hugging Face Hub
    (EleutherAI/lambada_openai) and is kept there where all downloads are; FILE is another one, a path or
    owner/repo:file of a dataset.
    """
    if task is None:
        raise Misuse("no task: there is `lambada`")
    from rwkvcli.cli.download import default_model, loaded, model_to_run
    from rwkvcli.cli.quality import task_lines
    from rwkvcli.cli.render import EvaluationBar
    from rwkvcli.cli.watching import Bars
    from rwkvcli.services import lambada
    from rwkvcli.services.loading import check_device

    check_device(settings.device)
    console = Console(settings)
    name = settings.model or default_model(console)
    found = model_to_run(console, name)
    model = loaded(console, found)
    with Bars(console, file or lambada.REPOSITORY) as bars:
        path = lambada.find_file(file, offline=settings.offline, watcher=bars)
    documents = lambada.read_documents(path, limit)
    with EvaluationBar(console) as bar:
        result = lambada.evaluate(
            model,
            documents,
            on_progress=lambda done, total, right: bar.update(done, total, f"accuracy {100 * right:.2f} %"),
        )
    answer = {"task": task.value, "model": name, "file": path.name, **result.to_json()}
    console.line(json.dumps(answer) if settings.json else "\n".join(task_lines(answer)))
