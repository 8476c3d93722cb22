"""Export a model in the format of another tool: what `rwkv export` does, without the printing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.checkpoints import Checkpoint
    from quant.container.reader import ModelFile
    from quant.export.formats import Exported
    from quant.export.weights import Weights
    from quant.pipeline import Progress

NEEDS_VOCABULARY = ("gguf",)
"""Formats that hold the vocabulary itself."""


def default_output(source: Path, to: str) -> Path:
    """`./<stem>.<suffix of the format>`; for `hf` and `bnb` the folder `./<stem>-hf`, `./<stem>-bnb`."""
    from quant.export.formats import FORMATS
    from rwkvcli.services.quantization import stem_of

    stem = stem_of(source)
    return Path(f"{stem}{FORMATS[to].suffix}" if FORMATS[to].suffix else f"{stem}-{to}")


def check_output(source: Path, out: Path, to: str, *, force: bool = False) -> None:
    """Refuse an OUT that would replace what is to be kept, before any work. Raises UsageError."""
    from quant.export.formats import check_output as check

    check(out, to, force=force, source=source)


def export(
    source: Checkpoint | ModelFile,
    out: Path,
    to: str,
    *,
    dtype: str | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Exported:
    """Write `source` to `out` in format `to`; see `quant.export.formats.export`, which this calls."""
    from quant.export.formats import export as run

    return run(
        source,
        out,
        to,
        dtype=dtype,
        vocabulary=_vocabulary if to in NEEDS_VOCABULARY else lambda weights: None,
        force=force,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def report(result: Exported) -> dict[str, Any]:
    """A finished export, ready for JSON."""
    return {
        "path": str(result.path),
        "version": result.version,
        "format": result.format,
        "files": [str(file) for file in result.files],
        "source_bytes": result.source_bytes,
        "bytes": result.nbytes,
        "dtypes": result.dtypes,
    }


def _vocabulary(weights: Weights) -> Sequence[bytes] | None:
    """The bytes of every token by id; None where ids have no bytes of their own, or nobody knows them."""
    from rwkvcli.runtime.tokenizer import tokenizer_for

    if weights.tokenizer not in ("world", "bytes"):
        return None
    tokenizer = tokenizer_for(weights.tokenizer, weights.arch.vocab_size)
    return [tokenizer.decode_bytes((token,)) for token in range(tokenizer.vocab_size)]
