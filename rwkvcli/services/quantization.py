"""Quantize a checkpoint with the native encoder: what `rwkv quantize` does, without the printing."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvcli.errors import DeviceUnavailable, SourceNotFound

if TYPE_CHECKING:
    from quant.arrays import F32, Array
    from quant.checkpoints import Checkpoint
    from quant.container.reader import ModelFile
    from quant.pipeline import Progress, Result
    from rwkvcli.runtime.tokenizer import Tokenizer
    from rwkvcli.services.assessment import Assessment


@dataclass(frozen=True)
class Forecast:
    """What quantizing would make."""

    version: str
    parameters: int
    """As `rwkv show` counts the file that would be made."""
    source_bytes: int
    nbytes: int
    """About the size of the file."""
    classes: dict[str, tuple[int, int]]
    """{class of tensors: (weights, bytes)}."""

    def to_json(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        classes = {name: {"weights": weights, "bytes": n} for name, (weights, n) in self.classes.items()}
        return {
            "version": self.version,
            "parameters": self.parameters,
            "source_bytes": self.source_bytes,
            "bytes": self.nbytes,
            "classes": classes,
        }


@dataclass
class NativeEncoder:
    """The C++ encoder of `rwkvcli._kernels`: the bytes of `quant.methods.numpy_twin`, many times as fast."""

    threads: int
    method: str = "codebook"
    level: str = ""
    """A CPU level, or empty for the best one. The bytes are the same on all."""

    def encode(self, w: F32, encoding: str, layout: str) -> dict[str, Array]:
        """Parts of the float32 matrix w [N, K] by name. See `quant.methods.Encoder`.

        Raises UsageError (no such level) and DeviceUnavailable (one that does not run here).
        """
        from rwkvcli import _kernels
        from rwkvcli.runtime.native import refused

        values = np.ascontiguousarray(w, np.float32)
        try:
            return _kernels.encode(values, encoding, layout, self.threads, self.method, self.level)
        except _kernels.DeviceError as e:
            raise DeviceUnavailable(str(e)) from None
        except ValueError as e:
            raise refused(e) from None


def default_output(source: Path, kind: str) -> Path:
    """`./<stem>-<kind>.safetensors`."""
    return Path(f"{stem_of(source)}-{kind}.safetensors")


def stem_of(source: Path) -> str:
    """What files made of `source` are called: its name without ending, or its folder's for a model in several files."""
    if source.name.endswith(".index.json"):
        source = source.parent
    return source.resolve().name if source.is_dir() else source.stem


def check_files(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    text: Path | None = None,
    report: Path | None = None,
    force: bool = False,
) -> None:
    """Refuse an OUT or a report that would replace what is to be kept, before any work.

    Raises UsageError: one of them is the source, the tokenizer, the text or the other, exists (unless `force`), is no
    regular file, or lies in no folder.
    """
    from quant.atomic import new_file
    from quant.pipeline import source_files

    kept = source_files(source)
    if tokenizer is not None:
        kept["the tokenizer"] = tokenizer
    if text is not None:
        kept["the text to measure on"] = text
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
    threads: int | None = None,
    tokenizer: Path | None = None,
    template: str | None = None,
    group_norm_eps: float | None = None,
    ffn_value: str = "auto",
    force: bool = False,
    assessment: Assessment | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Write `source` as a model file of `kind`; see `quant.pipeline.quantize`, which this calls.

    `threads`: None for one per core. `tokenizer`: a tokenizer.json to embed. `template`: a family's name.
    With `assessment` the file is measured against the source on a text before it takes its place; a checkpoint is
    written out as a model file for that, beside OUT and for the time being. Raises what the pipeline raises,
    SourceNotFound if the tokenizer cannot be read, FormatError if it is none, UsageError for a family that does
    not exist and for a text that cannot be measured.
    """
    from quant.pipeline import quantize as run
    from rwkvcli.runtime.device import cpu_level
    from rwkvcli.runtime.machine import default_threads

    tokenizer_json = _tokenizer_json(tokenizer, source.arch.vocab_size)
    _check_template(template)
    threads = threads or default_threads()
    common: dict[str, Any] = {
        "encoder": NativeEncoder(threads, level=cpu_level()),
        "tokenizer_json": tokenizer_json,
        "template": template,
        "group_norm_eps": group_norm_eps,
        "on_progress": on_progress,
        "should_stop": should_stop,
    }
    with contextlib.ExitStack() as stack:
        evaluate = None
        if assessment is not None:
            from rwkvcli.services.assessment import base_file

            assessment.check(_tokenizer_of(source, tokenizer_json))
            folder = Path(os.path.realpath(out)).parent
            base = stack.enter_context(base_file(source, folder, **common))
            evaluate = partial(assessment.measured, base=base, threads=threads, should_stop=should_stop)
        return run(source, out, kind, ffn_value=ffn_value, force=force, evaluate=evaluate, **common)


def forecast(
    source: Checkpoint | ModelFile,
    kind: str,
    *,
    tokenizer: Path | None = None,
    template: str | None = None,
    group_norm_eps: float | None = None,
    ffn_value: str = "auto",
) -> Forecast:
    """What `quantize` would make of `source`, from its header. Raises what that would before its work."""
    from quant.pipeline import check_options
    from quant.recipe import class_sizes, estimated_bytes, make_plan
    from quant.sources import source_of

    weights = source_of(source)
    tokenizer_json = _tokenizer_json(tokenizer, weights.arch.vocab_size)
    _check_template(template)
    check_options(weights, tokenizer_json=tokenizer_json, group_norm_eps=group_norm_eps)
    plan = make_plan(weights.arch, kind, ffn_value=ffn_value)
    classes = {name: (size.weights, size.nbytes) for name, size in class_sizes(plan).items()}
    return Forecast(
        weights.arch.version,
        sum(math.prod(item.shape) for item in plan.values()),
        weights.file_size,
        estimated_bytes(plan),
        classes,
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
    tokenizer_for("json", vocab_size, contents)
    return contents


def _tokenizer_of(source: Checkpoint | ModelFile, given: bytes | None) -> Tokenizer:
    """What the new file will encode text with. Raises UsageError if it will know no vocabulary, FormatError."""
    from quant.pipeline import implied_tokenizer
    from quant.sources import source_of
    from rwkvcli.runtime.tokenizer import tokenizer_for

    weights = source_of(source)
    size = weights.arch.vocab_size
    if given is not None:
        return tokenizer_for("json", size, given)
    return tokenizer_for(weights.tokenizer or implied_tokenizer(size), size, weights.tokenizer_bytes())


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
    """A finished quantization, ready for JSON: sizes, what was lost by class and by tensor, measured quality."""
    from quant.metrics import to_json

    quality = {} if result.quality is None else {"quality": dict(result.quality)}
    return {
        "path": str(result.path),
        "version": result.arch.version,
        "format": result.kind,
        "source_bytes": result.source_bytes,
        "bytes": result.nbytes,
        **to_json(result.tensors),
        **quality,
    }
