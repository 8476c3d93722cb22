"""Quantize a checkpoint with the native encoder: what `rwkv quantize` does, without the printing."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.errors import SourceNotFound
from rwkvcli.services import planning
from rwkvcli.services.planning import Choices
from rwkvcli.services.preparing import Preparation

if TYPE_CHECKING:
    from quant.checkpoints import Checkpoint
    from quant.container.reader import ModelFile
    from quant.pipeline import Progress, Result
    from rwkvcli.services.assessment import Assessment


class ClassForecast(NamedTuple):
    """Size and formats of one class of tensors."""

    weights: int
    nbytes: int
    encodings: tuple[str, ...]


@dataclass(frozen=True)
class Forecast:
    """What quantizing would make."""

    version: str
    parameters: int
    """As `rwkv show` counts the file that would be made."""
    source_bytes: int
    nbytes: int
    """About the size of the file."""
    bits_per_weight: float
    classes: dict[str, ClassForecast]
    notes: dict[str, Any]
    """What else was decided, and why, as in the report."""
    encodings: dict[str, str]
    """{tensor: encoding}."""

    def to_json(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        classes = {
            name: {"weights": row.weights, "bytes": row.nbytes, "encodings": list(row.encodings)}
            for name, row in self.classes.items()
        }
        return {
            "version": self.version,
            "parameters": self.parameters,
            "source_bytes": self.source_bytes,
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "classes": classes,
            **self.notes,
            "encodings": self.encodings,
        }


def default_output(source: Path, kind: str) -> Path:
    """`./<stem>-<kind>.safetensors`."""
    return Path(f"{stem_of(source)}-{kind}.safetensors")


def stem_of(source: Path) -> str:
    """What files made of `source` are called: its name without ending, for a model in several files that of its folder, or
    of its repository on the Hub.
    """
    from rwkvcli.services.hub_cache import repository_of

    if source.name.endswith(".index.json"):
        source = source.parent
    if source.is_dir() and (repository := repository_of(source)) is not None:
        return repository.rpartition("/")[2]
    return source.resolve().name if source.is_dir() else source.stem


def check_files(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    texts: Mapping[str, Path] | None = None,
    report: Path | None = None,
    force: bool = False,
) -> None:
    """Refuse an OUT or a report that would replace what is to be kept, before any work. `texts`: by what they are
    called.

    Raises UsageError: one of them is the source, the tokenizer, a text or the other, exists (unless `force`), is no
    regular file, or lies in no folder.
    """
    from quant.atomic import new_file
    from quant.pipeline import source_files

    kept = source_files(source)
    if tokenizer is not None:
        kept["the tokenizer"] = tokenizer
    kept |= texts or {}
    new_file(out, force=force, kept=kept)
    if report is not None:
        new_file(report, force=force, kept={**kept, "the model file": out})


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON to `path`, whole or not at all. Raises OSError."""
    from quant.atomic import whole_file

    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def quantize(
    source: Checkpoint | ModelFile,
    out: str | os.PathLike[str],
    kind: str,
    *,
    choices: Choices | None = None,
    threads: int | None = None,
    device: str = "auto",
    tokenizer: Path | None = None,
    template: str | None = None,
    group_norm_eps: float | None = None,
    force: bool = False,
    resume: bool = False,
    origin: Mapping[str, str] | None = None,
    assessment: Assessment | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Write `source` as a model file of `kind`; see `quant.pipeline.quantize`, which this calls.

    `choices`: recipe, formats, method and the text to calibrate with. `threads`: None for one per core. `device`: where
    GPTQ reads that text. `tokenizer`: a tokenizer.json to embed. `template`: a family's name. `origin`:
    where the source came from, and perhaps the sha256 that it must have.
    With `assessment` the file is measured against the source on a text before it takes its place; a checkpoint is
    written out as a model file for that and for calibrating, beside OUT and for the time being. Raises what the
    pipeline raises, SourceNotFound if the tokenizer cannot be read, FormatError if it is none, UsageError for choices
    that do not go together, a family that does not exist and a text that is no use, MissingExtra.
    """
    from quant.pipeline import quantize as run
    from quant.sources import source_of

    choices = choices or Choices()
    weights = source_of(source)
    tokenizer_json = _tokenizer_json(tokenizer, weights.arch.vocab_size)
    _check_template(template)
    planning.check(choices, kind)
    folder = Path(os.path.realpath(out)).parent
    with contextlib.ExitStack() as stack:
        work = Preparation(
            source, weights, kind, choices, threads, device, tokenizer_json, on_progress, should_stop
        )
        common: dict[str, Any] = {
            "encoder": work.encoder,
            "tokenizer_json": tokenizer_json,
            "template": template,
            "group_norm_eps": group_norm_eps,
            "on_progress": on_progress,
            "should_stop": should_stop,
        }
        if assessment is not None:
            assessment.check(work.tokenizer())
        work.read_text()
        base = None
        if assessment is not None or choices.text is not None:
            from rwkvcli.services.assessment import base_file

            base = stack.enter_context(base_file(source, folder, **common))
        work.decide(base, template=template, group_norm_eps=group_norm_eps, evaluated=assessment is not None)
        evaluate = None
        if assessment is not None and base is not None:
            evaluate = partial(assessment.measured, base=base, threads=work.threads, should_stop=should_stop)
        return run(
            source,
            out,
            kind,
            plan=work.planning.plan,
            recipe=work.planning.recipe,
            notes=work.planning.notes,
            calibration=work.calibration,
            hessians=work.hessians(group_norm_eps),
            force=force,
            resume=resume,
            origin=origin,
            evaluate=evaluate,
            **common,
        )


def forecast(
    source: Checkpoint | ModelFile,
    out: str | os.PathLike[str],
    kind: str,
    *,
    choices: Choices | None = None,
    threads: int | None = None,
    tokenizer: Path | None = None,
    template: str | None = None,
    group_norm_eps: float | None = None,
    assessment: Assessment | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Forecast:
    """What `quantize` would make of `source`: from its header, if no size and no text is to decide; otherwise its
    weights are looked at as far as the decision takes. Raises what that would before its work.
    """
    from quant.frame import check_options
    from quant.recipe import bits_per_weight, class_encodings, class_sizes
    from quant.sources import source_of

    choices = choices or Choices()
    weights = source_of(source)
    tokenizer_json = _tokenizer_json(tokenizer, weights.arch.vocab_size)
    _check_template(template)
    check_options(weights, tokenizer_json=tokenizer_json, group_norm_eps=group_norm_eps)
    planning.check(choices, kind)
    with contextlib.ExitStack() as stack:
        work = Preparation(
            source, weights, kind, choices, threads, "cpu", tokenizer_json, on_progress, should_stop
        )
        if assessment is not None:
            assessment.check(work.tokenizer())
        work.read_text()
        base = None
        if choices.text is not None:
            from rwkvcli.services.assessment import base_file

            folder = Path(os.path.realpath(out)).parent
            options: dict[str, Any] = {"tokenizer_json": tokenizer_json, "group_norm_eps": group_norm_eps}
            base = stack.enter_context(
                base_file(source, folder, encoder=work.encoder, should_stop=should_stop, **options)
            )
        work.decide(base, template=template, group_norm_eps=group_norm_eps, evaluated=assessment is not None)
    plan = work.planning.plan
    encodings = class_encodings(plan)
    classes = {
        name: ClassForecast(size.weights, size.nbytes, encodings[name])
        for name, size in class_sizes(plan).items()
    }
    return Forecast(
        weights.arch.version,
        sum(math.prod(item.shape) for item in plan.values()),
        weights.file_size,
        work.size_of(plan, work.planning.recipe, work.planning.notes),
        bits_per_weight(plan),
        classes,
        work.planning.notes,
        {name: item.encoding for name, item in plan.items()},
    )


def _tokenizer_json(path: Path | None, vocab_size: int) -> bytes | None:
    """The bytes of a tokenizer.json. Raises SourceNotFound, and now rather than when the model is used FormatError."""
    if path is None:
        return None
    from rwkvcli.runtime.tokenizer import tokenizer_for

    try:
        contents = path.read_bytes()
    except OSError as e:
        raise SourceNotFound(
            f"{path}: {(e.strerror or str(e)).lower()}", hint="--tokenizer takes a tokenizer.json file"
        ) from None
    tokenizer_for("json", vocab_size, contents, str(path))
    return contents


def _check_template(name: str | None) -> None:
    """Raise UsageError for a family that does not exist."""
    if name is not None:
        from rwkvcli.runtime.templates import named

        named(name)


def open_source(path: Path) -> Checkpoint | ModelFile:
    """Open what is to be quantized; close it when done. Raises what `quant.sources.open_model` raises."""
    from quant.sources import open_model

    return open_model(path)


def lost_before(source: Checkpoint | ModelFile) -> str:
    """The form of a source that has been quantized by another tool; empty if it has not been."""
    from quant.checkpoints import Checkpoint

    return source.quantized if isinstance(source, Checkpoint) else ""


def report(result: Result) -> dict[str, Any]:
    """A finished quantization, ready for JSON: sizes, what was lost by class and by tensor, what was decided, measured
    quality.
    """
    from quant.metrics import to_json

    quality = {} if result.quality is None else {"quality": dict(result.quality)}
    return {
        "path": str(result.path),
        "version": result.arch.version,
        "format": result.kind,
        "source_bytes": result.source_bytes,
        "bytes": result.nbytes,
        **to_json(result.tensors),
        **result.notes,
        **quality,
    }
