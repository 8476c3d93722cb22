"""`rwkv show`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv show demo
  rwkv show model.pth --tensors
  rwkv show owner/repo:model.safetensors           # its header only, from the Hub
  rwkv show model-int4.safetensors --json | jq .bits_per_weight
"""


@with_settings
def show(
    settings: Settings,
    file: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model file or a checkpoint.", show_default=False)
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Show what is inside a model file or a checkpoint.

    Version, sizes, formats, bits per weight, tokenizer, where it came from, and what quantization cost. The
    file's header is read, not its weights: of a safetensors file on the Hub that is not here, nothing else comes.
    """
    from rwkvcli.cli.download import best_here, model_file
    from rwkvcli.cli.render import inspection_lines
    from rwkvcli.services import store
    from rwkvcli.services.inspection import inspect, inspect_remote

    console = Console(settings)
    name = file if file is not None else settings.model or best_here(console)
    if name is None:
        raise Misuse("no MODEL: name a file, for example `demo`")
    remote = store.remote_safetensors(name, offline=settings.offline)
    if remote is not None:
        found = inspect_remote(remote, tensors=tensors)
    else:
        found = inspect(model_file(console, name).path, tensors=tensors)
    if settings.json:
        console.line(json.dumps(found))
    else:
        console.line("\n".join(inspection_lines(found)))
