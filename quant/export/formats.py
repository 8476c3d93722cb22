"""Export of a whole model, one tensor at a time, in the format of another tool.

A format is a line in FORMATS: `tensors` says what is stored and how it is made (and refuses what the format or its tools
cannot do), `save` writes it, whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from quant.atomic import new_file
from quant.checkpoints import Checkpoint
from quant.container.reader import ModelFile
from quant.errors import InvalidRequest
from quant.export import blinkdl, bnb, gguf, hf
from quant.export.outgoing import Outgoing, OutgoingStream
from quant.export.weights import Weights
from quant.pipeline import SOURCE_ITSELF, Progress, source_files
from quant.sources import GROUP_NORM_EPS

DTYPES = ("f32", "f16", "bf16")


class Format(NamedTuple):
    """One format of other tools."""

    tensors: Callable[[Weights, str | None], list[Outgoing]]
    save: Callable[[Weights, OutgoingStream, Path, Sequence[bytes] | None], None]
    suffix: str
    """What its files end with; "" for a folder."""
    files: tuple[str, ...] = ()
    """The files in the folder; none if it is one file."""
    takes_nf4: bool = False
    """Whether model files of nf4 can be exported."""


FORMATS: dict[str, Format] = {
    "pth": Format(blinkdl.tensors, blinkdl.save_pth, ".pth"),
    "safetensors": Format(blinkdl.tensors, blinkdl.save_safetensors, ".safetensors"),
    "gguf": Format(gguf.tensors, gguf.save, ".gguf"),
    "hf": Format(hf.tensors, hf.save, "", hf.FILES),
    "bnb": Format(bnb.tensors, bnb.save, "", hf.FILES, takes_nf4=True),
}


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    path: Path
    format: str
    version: str
    files: tuple[Path, ...]
    nbytes: int
    source_bytes: int
    dtypes: dict[str, int]
    """{dtype, or "nf4": number of tensors}."""
    untold_eps: float | None = None
    """The group norm's epsilon, if it is not the usual one and the file has no place for it."""


def export(
    source: Checkpoint | ModelFile,
    out: str | os.PathLike[str],
    to: str,
    *,
    dtype: str | None = None,
    vocabulary: Callable[[Weights], Sequence[bytes] | None] = lambda weights: None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Exported:
    """Write `source` to `out` in format `to`. `dtype`: None to keep what every tensor has.

    `vocabulary` gives the bytes of every token, by id, or None if they are not known; it is asked where a format needs
    them. Raises InvalidRequest (a quantized source, an unknown format or dtype, a model that the format does not hold,
    an output that exists or is no file), FormatError (damaged weights, values past the dtype's range), Cancelled and
    OSError. In all cases what was at `out` stays.
    """
    if to not in FORMATS or (dtype is not None and dtype not in DTYPES):
        raise InvalidRequest(f"unknown format {to} or dtype {dtype}")
    kind, path = FORMATS[to], Path(out)
    files = check_output(path, to, force=force, source=source.path)
    weights = Weights(source, nf4=kind.takes_nf4)
    if kind.files and weights.tokenizer_json is not None:
        files += _in_folder(path, (hf.TOKENIZER,), force=force, kept=source_files(source.path))
    stream = OutgoingStream(kind.tensors(weights, dtype), on_progress, should_stop)
    kind.save(weights, stream, path if kind.files else files[0], vocabulary(weights))
    size = source.size if isinstance(source, ModelFile) else source.file_size
    nbytes = sum(file.stat().st_size for file in files)
    eps = weights.group_norm_eps
    untold = eps if eps is not None and eps != GROUP_NORM_EPS and not kind.files else None
    return Exported(path, to, weights.arch.version, tuple(files), nbytes, size, dict(stream.forms), untold)


def check_output(out: Path, to: str, *, force: bool, source: Path) -> list[Path]:
    """The files that an export to `out` writes. Raises InvalidRequest where it may not."""
    kind = FORMATS[to]
    kept = source_files(source)
    if not kind.files:
        return [new_file(out, force=force, kept=kept)]
    if source.is_dir() and out.is_dir() and out.samefile(source):
        raise InvalidRequest(f"{out} is {SOURCE_ITSELF}", hint="choose another folder")
    if not out.is_dir():
        new_file(out, force=False, kept=kept)  # nothing is there, and its folder is
    return _in_folder(out, kind.files, force=force, kept=kept)


def _in_folder(out: Path, names: Sequence[str], *, force: bool, kept: Mapping[str, Path]) -> list[Path]:
    """The files of these names in the folder `out`. Raises InvalidRequest where one of them may not be written."""
    if not out.is_dir():
        return [out / name for name in names]
    return [new_file(out / name, force=force, kept=kept) for name in names]
