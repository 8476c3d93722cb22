"""What is found out about a model before it is quantized: the text's statistics and the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import Cancelled, MissingExtra, UsageError
from rwkvcli.services import planning
from rwkvcli.services.encoding import NativeEncoder
from rwkvcli.services.planning import Choices

if TYPE_CHECKING:
    from quant.calibration import Calibration
    from quant.checkpoints import Checkpoint
    from quant.container.reader import ModelFile
    from quant.methods.gptq import Hessians
    from quant.pipeline import Progress
    from quant.recipe import Plan
    from quant.sources import Source
    from rwkvcli.runtime.tokenizer import Tokenizer
    from rwkvcli.runtime.torch_hessians import TorchHessians
    from rwkvcli.services.calibrating import Windows


class Preparation:
    """What is found out before the first tensor is encoded: text, statistics, plan."""

    planning: planning.Planning
    calibration: Calibration | None = None

    def __init__(
        self,
        source: Checkpoint | ModelFile,
        weights: Source,
        kind: str,
        choices: Choices,
        threads: int | None,
        device: str,
        tokenizer_json: bytes | None,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        from rwkvcli.runtime.device import cpu_level
        from rwkvcli.runtime.machine import default_threads

        self._source, self._weights, self._kind, self._choices = source, weights, kind, choices
        self._device, self._tokenizer_json = device, tokenizer_json
        self._on_progress, self._should_stop = on_progress, should_stop
        self._windows: Windows | None = None
        self._framing: dict[str, Any] = {}
        self._gptq = planning.uses_gptq(choices, kind)
        self.threads = threads or default_threads()
        method = "nearest" if choices.method == "nearest" else "codebook"
        self.encoder = NativeEncoder(self.threads, method, cpu_level())
        if self._gptq:
            self._torch_device()
            _torch_hessians()

    def tokenizer(self) -> Tokenizer:
        """What the new file will encode text with. Raises UsageError if it will know no vocabulary, FormatError."""
        return tokenizer_of(self._source, self._tokenizer_json)

    def read_text(self) -> None:
        """Take the windows out of the text to calibrate with, if there is one."""
        if self._choices.text is None:
            return
        from rwkvcli.services.calibrating import TOKENS, read_windows

        tokens = self._choices.tokens or TOKENS
        self._windows = read_windows(self._choices.text, self._choices.text_name, self.tokenizer(), tokens)

    def decide(
        self,
        base: Path | None,
        *,
        template: str | None = None,
        group_norm_eps: float | None = None,
        evaluated: bool = False,
    ) -> None:
        """Gather statistics with the unquantized model file `base`, then make the plan. The rest is what else the file's
        size depends on.
        """
        self._framing = {"template": template, "group_norm_eps": group_norm_eps, "evaluated": evaluated}
        from rwkvcli.services.calibrating import gather

        gathered = None
        if self._windows is not None and base is not None:
            # GPTQ finds out by itself what it needs; of the density a glimpse is enough
            windows = (
                dataclasses.replace(self._windows, ids=self._windows.ids[:2]) if self._gptq else self._windows
            )
            gathered = gather(
                base,
                windows,
                threads=self.threads,
                on_progress=lambda done, total: self._tell("calibrating", done, total),
                should_stop=self._should_stop,
            )
            self.calibration = gathered
            if self._gptq:
                self.calibration = dataclasses.replace(
                    gathered, tokens=self._windows.tokens, inputs={}, statistic="second moments of the inputs"
                )
        self.planning = planning.decide(
            self._weights,
            self._kind,
            self._choices,
            encoder=self.encoder,
            calibration=gathered,
            size_of=self.size_of,
            on_progress=lambda name, done, total: self._tell(f"measuring {name}", done, total),
            stop=self._check,
        )

    def size_of(self, plan: Plan, recipe: str, notes: dict[str, Any]) -> int:
        """How large the file will be, once `decide` knows what else it holds."""
        from quant.frame import file_size

        return file_size(
            self._weights,
            plan,
            recipe,
            method="gptq" if self._gptq else self.encoder.method,
            calibration=self.calibration,
            notes=notes,
            tokenizer_json=self._tokenizer_json,
            **self._framing,
        )

    def _torch_device(self) -> str:
        """Where GPTQ works. Raises UsageError for a device that is not PyTorch's."""
        from rwkvcli.runtime.device import parse_device

        kind, device = parse_device(self._device)
        if kind == "cuda":
            raise UsageError(
                "--method gptq works with PyTorch",
                hint=f"use `--device torch:cuda:{device}`, or leave it out",
            )
        if kind in ("auto", "cpu"):
            return self._device
        return str(device)

    def hessians(self, group_norm_eps: float | None) -> Hessians | None:
        """The view of the text that GPTQ needs; None for other methods."""
        if not self._gptq or self._windows is None:
            return None
        from quant.formats import ENCODINGS
        from quant.recipe import class_of
        from rwkvcli.runtime.backend import UNUSED_EPS

        device = self._torch_device()
        wanted = [
            name
            for name, item in self.planning.plan.items()
            if ENCODINGS[item.encoding].weighted
            and not ENCODINGS[item.encoding].form
            and class_of(name) in ("att", "ffn", "head")
        ]
        return _torch_hessians()(
            self._weights,
            self._windows.ids,
            wanted,
            device=device,
            threads=self.threads,
            group_norm_eps=group_norm_eps or self._weights.group_norm_eps or UNUSED_EPS,
            check=lambda: self._check("quantization was stopped"),
        )

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            from quant.pipeline import Progress

            self._on_progress(Progress(what, done, total))

    def _check(self, message: str = "quantization was stopped; nothing was written") -> None:
        if self._should_stop is not None and self._should_stop():
            raise Cancelled(message)


def tokenizer_of(source: Checkpoint | ModelFile, given: bytes | None) -> Tokenizer:
    """What the new file will encode text with. Raises UsageError if it will know no vocabulary, FormatError."""
    from quant.frame import implied_tokenizer
    from quant.sources import source_of
    from rwkvcli.runtime.tokenizer import tokenizer_for

    weights = source_of(source)
    size = weights.arch.vocab_size
    if given is not None:
        return tokenizer_for("json", size, given)
    return tokenizer_for(weights.tokenizer or implied_tokenizer(size), size, weights.tokenizer_bytes())


def _torch_hessians() -> type[TorchHessians]:
    try:
        from rwkvcli.runtime.torch_hessians import TorchHessians
    except ImportError:
        raise MissingExtra("torch", "--method gptq") from None
    return TorchHessians
