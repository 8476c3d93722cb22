"""`rwkv quantize`."""

from __future__ import annotations

import contextlib
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, check_target, with_settings
from rwkvcli.cli.settings import Settings
from rwkvcli.cli.signals import held_signals

if TYPE_CHECKING:
    from quant.pipeline import Result
    from rwkvcli.services.quantization import Forecast

EXAMPLES = """
  rwkv quantize demo --to int4
  rwkv quantize model.pth --to int8 -o model-int8.safetensors --force
  rwkv quantize owner/repo:model.pth --to int4 --dry-run
  rwkv quantize pile.pth --to int8 --tokenizer 20B_tokenizer.json
  rwkv quantize model.pth --to int4 --eval book.txt --fail-over kl=0.05
  rwkv quantize model.pth --to int4 --calibrate book.txt
  rwkv quantize model.pth --to nf4                      # the codes of bitsandbytes
  rwkv quantize model.pth --to int4 --max-size 900MB --tensor 'att.value=q8g32' --dry-run
"""


class Kind(StrEnum):
    """What `--to` takes."""

    int8 = "int8"
    int6 = "int6"
    int5 = "int5"
    int4 = "int4"
    nf4 = "nf4"
    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"


class Recipe(StrEnum):
    """What `--recipe` takes."""

    default = "default"
    best = "best"


class Method(StrEnum):
    """What `--method` takes."""

    codebook = "codebook"
    nearest = "nearest"
    gptq = "gptq"


class FfnValue(StrEnum):
    """What `--ffn-value` takes."""

    auto = "auto"
    tile = "tile"
    kn = "kn"


@with_settings
def quantize(
    settings: Settings,
    *,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SRC", help="Checkpoint (a file or a folder) or unquantized model.", show_default=False
        ),
    ] = None,
    to: Annotated[
        Kind | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="int8, int6, int5, int4, nf4, bf16, f16 or f32.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="Default: ./<name>-<format>.safetensors.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and the report if they exist.")] = False,
    gn_eps: Annotated[
        float | None, typer.Option("--gn-eps", metavar="X", help="Epsilon of the group norm; default: 64e-5.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json to put into the file.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="NAME", help="Form of a conversation to name in the file."),
    ] = None,
    ffn_value: Annotated[
        FfnValue, typer.Option("--ffn-value", metavar="LAYOUT", help="Layout of ffn.value: auto, tile or kn.")
    ] = FfnValue.auto,
    recipe: Annotated[
        Recipe,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="default: as small as usual files of so many bits; best: larger, and closer to SRC.",
        ),
    ] = Recipe.default,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor",
            metavar="REGEX=FORMAT",
            help="A format for the tensors that match; the last match decides.",
        ),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option("--target-bpw", metavar="X", help="Choose formats for at most X bits per weight."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Choose formats for a file of at most SIZE (900MB)."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option("--calibrate", metavar="TEXT", help="Weigh errors by what this text puts through SRC."),
    ] = None,
    calibrate_tokens: Annotated[
        int | None,
        typer.Option(
            "--calibrate-tokens",
            metavar="N",
            help="How many tokens of it, spread over it; default: 8192.",
            min=1,
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="codebook (default), nearest, or gptq (with --calibrate; needs torch).",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is done when interrupted, and go on from there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell the plan and its size; write no model.")
    ] = False,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Write what it cost, by tensor, as JSON.")
    ] = None,
    eval_text: Annotated[
        str | None,
        typer.Option("--eval", metavar="TEXT", help="Measure the new file against SRC on this text file."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--ctx", metavar="N", min=1, help="--eval: predict windows of N tokens independently."),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-over", metavar="NAME=X", help="Exit with 6 if --eval finds NAME (kl, ratio, ...) above X."
        ),
    ] = None,
) -> None:
    """Make a model file out of a checkpoint.

    The file holds everything that `rwkv generate` needs, in the layout that the processor reads. Stdout is
    its path; sizes and errors by class of tensors go to stderr. An interrupted run leaves nothing behind, or with
    --resume two hidden files beside OUT that the same command goes on from. A FORMAT of --tensor is q8g32 (int8), q6g32 (int6),
    q6g16, q5g16 (int5), q5g32, q4g16 (int4), q4g32, nf4, bf16, f16 or f32. What
    --eval measures (as `rwkv perplexity --base SRC` does, with the same --ctx) is told too, and kept in the file, where
    `rwkv show` finds it. A file that misses a limit of --fail-over is written all the same.

    nf4 has bitsandbytes (with the torch extra) choose the codes of attention and FFN: NF4 in blocks of 64, kept
    exactly; its scales and table are rounded to the form that the 4-bit kernels read, and what that costs is told.
    """
    source = source if source is not None else settings.model
    if source is None:
        raise Misuse("no SRC: name a checkpoint, for example `model.pth`")
    if to is None:
        raise Misuse("no format: give one, for example `--to int4`")
    if calibrate == eval_text == "-":
        raise Misuse("--calibrate and --eval cannot both read stdin")
    check_target(out)
    check_target(report, "--report")
    if (fail_over or context is not None) and eval_text is None:
        flag = "--fail-over" if fail_over else "--ctx"
        raise Misuse(f"{flag} needs a text to measure on: --eval TEXT")
    from quant.sources import told_name
    from rwkvcli.cli.download import model_file
    from rwkvcli.cli.quality import opened_text, record_lines
    from rwkvcli.cli.render import QuantizationBar, loss_table, nf4_lines
    from rwkvcli.services import quantization
    from rwkvcli.services.assessment import Assessment
    from rwkvcli.services.evaluation import check_limits, parse_limits
    from rwkvcli.services.planning import Choices, parse_size

    limits = parse_limits(fail_over or (), compared=True)
    console = Console(settings)
    path = model_file(console, source, source=True).path
    target = Path(out) if out is not None else quantization.default_output(path, to.value)
    tokenizer_path = Path(tokenizer) if tokenizer is not None else None
    report_path = Path(report) if report is not None else None
    text_path = Path(eval_text) if eval_text not in (None, "-") else None
    limit = parse_size(max_size) if max_size is not None else None
    quantization.check_files(
        path,
        target,
        tokenizer=tokenizer_path,
        texts={
            f"the text to {use}": Path(name)
            for use, name in (("measure on", eval_text), ("calibrate with", calibrate))
            if name is not None and name != "-"
        },
        report=report_path,
        force=force,
    )
    with quantization.open_source(path) as opened, contextlib.ExitStack() as stack:
        bar = QuantizationBar(console)
        lost_before = quantization.lost_before(opened)
        if lost_before:
            console.note(f"note: {source} is quantized itself ({lost_before}); what that cost stays")
        assessment = None
        if eval_text is not None:
            text, nbytes = stack.enter_context(opened_text(eval_text, "--eval"))
            name = "stdin" if text_path is None else told_name(text_path)
            assessment = Assessment(
                text, name, lambda done, so_far: bar.measure(done, nbytes, so_far), ctx=context
            )
        calibration_text = None
        if calibrate is not None:
            calibration_text, _ = stack.enter_context(opened_text(calibrate, "--calibrate"))
        choices = Choices(
            recipe=recipe.value,
            tensors=tuple(tensor or ()),
            target_bpw=target_bpw,
            max_size=limit,
            ffn_value=ffn_value.value,
            method=None if method is None else method.value,
            text=calibration_text,
            text_name="stdin" if calibrate == "-" else told_name(Path(calibrate or "")),
            tokens=calibrate_tokens,
        )
        if dry_run:
            with held_signals() as should_stop, bar:
                found = quantization.forecast(
                    opened,
                    target,
                    to.value,
                    choices=choices,
                    threads=settings.threads,
                    tokenizer=tokenizer_path,
                    template=template,
                    group_norm_eps=gn_eps,
                    assessment=assessment,
                    on_progress=bar.update,
                    should_stop=should_stop,
                )
            if report_path is not None:
                quantization.write_report(report_path, {"path": str(target), **found.to_json()})
            _tell_forecast(console, target, found, told=report_path is not None)
            return
        with held_signals() as should_stop:
            with bar:
                result = quantization.quantize(
                    opened,
                    target,
                    to.value,
                    choices=choices,
                    threads=settings.threads,
                    device=settings.device or "auto",
                    tokenizer=tokenizer_path,
                    template=template,
                    group_norm_eps=gn_eps,
                    force=force,
                    resume=resume,
                    assessment=assessment,
                    on_progress=bar.update,
                    should_stop=should_stop,
                )
            # the file is in its place: what is left is to say so, whatever becomes of the report
            lost = quantization.report(result)
            try:
                if report_path is not None:
                    quantization.write_report(report_path, lost)
            finally:
                console.line(json.dumps(lost) if settings.json else str(result.path))
            console.note(loss_table(console, result.classes))
            for line in nf4_lines(lost):
                console.note(line)
            if result.quality is not None:
                console.note("\n".join(record_lines(dict(result.quality))))
            console.note(_summary(result))
    if result.quality is not None:
        check_limits(result.quality, limits, hint=f"{result.path} was written all the same")


def _summary(result: Result) -> str:
    """Both sizes, and what to type next."""
    from rwkvcli.cli.render import size
    from rwkvcli.services.store import quoted

    sizes = f"{size(result.source_bytes)} -> {size(result.nbytes)}"
    return f'{sizes}; try: rwkv generate -m {quoted(str(result.path))} "Once upon a time"'


def _tell_forecast(console: Console, target: Path, found: Forecast, told: bool) -> None:
    """What would be made; `told`: the report was written all the same."""
    from rwkvcli.cli.render import nf4_lines, size

    if console.settings.json:
        console.line(json.dumps({"path": str(target), **found.to_json()}))
        return
    console.line(f"{target}: RWKV-{found.version}, {found.parameters:,} parameters")
    for name, row in found.classes.items():
        bits = f"{8 * row.nbytes / row.weights:6.2f} bits"
        console.line(
            f"  {name:<9} {row.weights:>15,} weights {bits} {size(row.nbytes):>9}  {'+'.join(row.encodings)}"
        )
    if "ffn_value" in found.notes:
        console.line(
            f"ffn.value in layout {found.notes['ffn_value']['layout']}: {found.notes['ffn_value']['why']}"
        )
    for line in nf4_lines(found.notes):
        console.line(line)
    console.line(f"{found.bits_per_weight:.2f} bits per weight")
    written = "nothing but the report" if told else "nothing"
    console.line(f"{size(found.source_bytes)} -> about {size(found.nbytes)}; {written} was written")
