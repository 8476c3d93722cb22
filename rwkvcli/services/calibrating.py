"""What a text says about a model's matrices: `rwkv quantize --calibrate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from rwkvcli.errors import Cancelled, UsageError
from rwkvcli.services.assessment import Hashed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.calibration import Calibration
    from rwkvcli.runtime.tokenizer import Tokenizer

TOKENS = 8192
"""Tokens of a text that are used unless told otherwise."""
WINDOW = 512
"""Tokens that are read from one fresh state."""

Progress = Callable[[int, int], None]
"""(tokens read, in all)."""


@dataclass(frozen=True)
class Windows:
    """Parts of a text, evenly spread over it."""

    text: str
    """Its name."""
    sha256: str
    """Of the whole text."""
    ids: list[NDArray[np.int32]]
    """Equally long."""

    @property
    def tokens(self) -> int:
        return sum(len(window) for window in self.ids)


def read_windows(stream: BinaryIO, name: str, tokenizer: Tokenizer, tokens: int = TOKENS) -> Windows:
    """About `tokens` tokens of the text in `stream`, called `name`: all of it if it has no more.

    A window begins with the token that ends a text, as every text does. Raises UsageError (an empty text, one that the
    vocabulary cannot encode), OSError.
    """
    from rwkvcli.runtime.long_text import encode_long, read_text

    if tokens < 1:
        raise UsageError(f"{tokens} tokens are nothing to calibrate with")
    hashed = Hashed(stream)
    ids = np.fromiter((i for piece in encode_long(tokenizer, read_text(hashed)) for i in piece.ids), np.int32)  # type: ignore[arg-type]
    if not len(ids):
        raise UsageError(f"{name}: the text is empty: there is nothing to calibrate with")
    length = min(WINDOW - 1, len(ids), max(1, tokens - 1))
    count = max(1, min(tokens, len(ids)) // WINDOW)
    begins = [i * (len(ids) - length) // max(1, count - 1) for i in range(count)]
    first = np.array([tokenizer.eos_id], np.int32)
    windows = [np.concatenate((first, ids[begin : begin + length])) for begin in begins]
    return Windows(name, hashed.digest.hexdigest(), windows)


def gather(
    base: Path,
    windows: Windows,
    *,
    threads: int,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Calibration:
    """Let the engine read the windows with the unquantized model file `base`, and add up what goes into its matrices.

    The sums are the same bits for any number of threads and any CPU level. Raises Cancelled, FormatError.
    """
    from quant.calibration import Calibration, InputSums
    from rwkvcli.runtime.model import Model

    model = Model.load(base, device="cpu", threads=threads)
    backend = model.backend
    backend.collect_inputs(True)  # type: ignore[attr-defined]
    done = 0
    for window in windows.ids:
        if should_stop is not None and should_stop():
            raise Cancelled("the calibration was stopped; nothing was written")
        model.forward(
            window, model.new_state(), all_logits=True
        )  # else the head would see the last token only
        done += len(window)
        if on_progress is not None:
            on_progress(done, windows.tokens)
    found = {name: InputSums(squares, nonzero) for name, (squares, nonzero) in backend.inputs.items()}  # type: ignore[attr-defined]
    return Calibration(windows.text, windows.sha256, windows.tokens, found)
