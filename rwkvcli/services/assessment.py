"""What quantization cost in prediction: the new file against its source, on a text."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from quant.checkpoints import Checkpoint
    from quant.container.reader import ModelFile
    from rwkvcli.runtime.tokenizer import Tokenizer
    from rwkvcli.services.evaluation import Progress

_PREFIX, _BASE, _LOCK = ".rwkv-", "source.safetensors", "lock"
"""What the source is written out as for the time being: the folder's name begins with the first."""
_DIGITS = 6
"""Significant digits of the numbers that are kept."""


@dataclass
class Assessment:
    """What to measure a new file on: `text`, called `name`, in windows of `ctx` tokens if that is not None."""

    text: BinaryIO
    name: str
    on_progress: Progress | None = None
    ctx: int | None = None

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a text that cannot be measured before the work begins, if it can be read twice.

        Raises UsageError as `evaluation.measure` would.
        """
        from rwkvcli.errors import UsageError
        from rwkvcli.runtime.long_text import encode_long, read_text

        if not self.text.seekable():
            return
        begin = self.text.tell()
        if not sum(len(piece.ids) for piece in encode_long(tokenizer, read_text(self.text))):
            raise UsageError(f"{self.name}: the text is empty: there is nothing to predict")
        self.text.seek(begin)

    def measured(
        self, made: Path, base: Path, *, threads: int, should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """The quality record of the model file `made`: `Measurement.to_json` without the drift, and which text.

        It is the same for any number of threads and any CPU level. Raises what `evaluation.measure` raises.
        """
        from rwkvcli.runtime.model import Model
        from rwkvcli.services.evaluation import measure

        text = Hashed(self.text)
        found = measure(
            Model.load(made, device="cpu", threads=threads),
            text,  # type: ignore[arg-type]
            base=Model.load(base, device="cpu", threads=threads),
            ctx=self.ctx,
            on_progress=self.on_progress,
            should_stop=should_stop,
        ).to_json()
        del found["base"]["drift"]
        record: dict[str, Any] = _shortened(found)
        return {**record, "text": {"file": self.name, "sha256": text.digest.hexdigest()}}


@contextlib.contextmanager
def base_file(source: Checkpoint | ModelFile, folder: Path, **options: Any) -> Iterator[Path]:
    """A model file with exactly the weights of `source`, in `folder` until the block ends.

    `options` as of `quant.pipeline.quantize`. A model file that they do not change is its own base.
    """
    from quant.container.reader import ModelFile
    from quant.pipeline import quantize
    from rwkvcli.services.locks import locked

    if isinstance(source, ModelFile) and not options["tokenizer_json"] and options["group_norm_eps"] is None:
        yield source.path
        return
    _remove_left_behind(folder)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary:
        made = Path(temporary) / _BASE
        with locked(Path(temporary) / _LOCK, on_wait=lambda who: None):
            quantize(source, made, _lossless(source), **options)
            yield made


def _remove_left_behind(folder: Path) -> None:
    """Remove what processes that were killed left of `base_file` in `folder`: it is as large as their source."""
    from quant.atomic import part_name
    from rwkvcli.services.locks import left_behind

    for old in folder.glob(f"{_PREFIX}*"):
        with left_behind(old / _LOCK) as is_free, contextlib.suppress(OSError):
            if is_free and {item.name for item in old.iterdir()} <= {_LOCK, _BASE, part_name(_BASE)}:
                shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):  # on Windows the lock was in it until now; others are not empty
            old.rmdir()


def _lossless(source: Checkpoint | ModelFile) -> str:
    """The smallest format that holds every weight as it is."""
    from quant.container.reader import ModelFile

    if isinstance(source, ModelFile):
        stored = {item.encoding for item in source.plan.values() if len(item.shape) > 1} - {"f32"} or {"f32"}
    else:
        stored = {source.dtype(name) for name in source.names}
    return stored.pop() if stored in ({"bf16"}, {"f16"}) else "f32"


class Hashed:
    """A file that knows the hash of what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.digest.update(data)
        return data


def _shortened(value: Any) -> Any:
    """`value` with its numbers rounded."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
