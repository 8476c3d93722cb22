"""`rwkv export`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, check_target, with_settings
from rwkvcli.cli.settings import Settings
from rwkvcli.cli.signals import held_signals

EXAMPLES = """
  rwkv export model.pth --to gguf -o model.gguf
  rwkv export model.gguf --to pth --dtype bf16
  rwkv export model-folder --to safetensors
  rwkv export owner/repo:model.pth --to hf -o model-hf
  rwkv export model-nf4.safetensors --to bnb --dtype bf16
"""


class To(StrEnum):
    """What `--to` takes."""

    pth = "pth"
    safetensors = "safetensors"
    gguf = "gguf"
    hf = "hf"
    bnb = "bnb"


class Dtype(StrEnum):
    """What `--dtype` takes."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


@with_settings
def export(
    settings: Settings,
    *,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SRC",
            help="Checkpoint or unquantized model; for bnb also one of nf4.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        To | None,
        typer.Option("--to", metavar="FORMAT", help="pth, safetensors, gguf, hf or bnb.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="Default: ./<name> with the format's ending; for hf ./<name>-hf, for bnb ./<name>-bnb.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="f32, f16 or bf16; default: what each tensor has.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a model in the format of another tool.

    `pth` and `safetensors` have the original names and are read by the PyPI package `rwkv` and most others; `gguf` is
    for llama.cpp (RWKV-6 and 7); `hf` is a folder for the transformers, in the layout of flash-linear-attention for
    RWKV-7; `bnb` is the same folder with attention and FFN in NF4, as bitsandbytes has it. Nothing else is lost on the way
    unless --dtype asks for it; a quantized model is refused. But `bnb` takes a model file of nf4, writes the codes that it has, and
    their scales as they are stored; any other source is quantized by bitsandbytes (with the torch extra). Stdout is the
    path of what was written.
    """
    source = source if source is not None else settings.model
    if source is None:
        raise Misuse("no SRC: name a checkpoint, for example `model.pth`")
    if to is None:
        raise Misuse("no format: give one, for example `--to gguf`")
    check_target(out, folder=to in (To.hf, To.bnb))
    from rwkvcli.cli.download import model_file
    from rwkvcli.cli.render import QuantizationBar, size
    from rwkvcli.services import exporting
    from rwkvcli.services.quantization import open_source

    console = Console(settings)
    path = model_file(console, source).path
    target = Path(out) if out is not None else exporting.default_output(path, to.value)
    exporting.check_output(path, target, to.value, force=force)
    with open_source(path) as opened:
        bar = QuantizationBar(console, "exporting")
        with held_signals() as should_stop, bar:
            result = exporting.export(
                opened,
                target,
                to.value,
                dtype=dtype.value if dtype is not None else None,
                force=force,
                on_progress=bar.update,
                should_stop=should_stop,
            )
        console.line(json.dumps(exporting.report(result)) if settings.json else str(result.path))
        if result.untold_eps is not None:
            eps = f"{result.untold_eps:g}"
            console.note(
                f"note: {eps}, the epsilon of its group norm, has no place in the file: `rwkv quantize --gn-eps {eps}`"
            )
        forms = ", ".join(sorted(result.dtypes))
        console.note(
            f"RWKV-{result.version}, {forms}: {size(result.source_bytes)} -> {size(result.nbytes)} "
            f"in {len(result.files)} file{'s' if len(result.files) != 1 else ''}"
        )
