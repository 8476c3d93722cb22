"""Continue a prompt with a model: what `rwkv generate` does, without the printing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvcli.runtime.decoding import Finish
    from rwkvcli.runtime.model import Model
    from rwkvcli.services.store import LocalModel


def load_model(found: LocalModel, device: str | None = None, threads: int | None = None) -> Model:
    """The model in the file `found`. Raises what `Model.load` raises; a checkpoint is refused as one."""
    from rwkvcli.errors import FormatError
    from rwkvcli.runtime.model import Model

    try:
        return Model.load(found.path, device=device or "auto", threads=threads)
    except FormatError:
        _refuse_checkpoint(found)
        raise


def _refuse_checkpoint(found: LocalModel) -> None:
    """Say so if the file is no model file because nothing has been made of it yet."""
    from quant.container.reader import ModelFile
    from quant.sources import open_model
    from rwkvcli.errors import FormatError, RwkvError

    try:
        with open_model(found.path) as opened:
            if isinstance(opened, ModelFile):
                return
            opened.arch  # noqa: B018  (raises when it is no model)
    except RwkvError:
        return
    raise FormatError(
        f"{found.name} is a checkpoint, not a model file",
        hint=f"make one with `rwkv quantize {found.name} --to int8`",
    )


def check_device(device: str | None) -> None:
    """Refuse a device that cannot be, before anything is downloaded. Raises UsageError, DeviceUnavailable."""
    from rwkvcli.runtime.device import parse_device

    parse_device(device or "auto")


@dataclass(frozen=True)
class Settings:
    """How to continue. `max_tokens` -1: until the model ends the text. `seed` None: a new one each time.

    Temperature 1 and top-p 0.85 are the defaults of the reference package's pipeline.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.85
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass
class Timings:
    """Seconds. `decode` is the time after the prompt, sampling included."""

    load: float = 0.0
    prompt: float = 0.0
    decode: float = 0.0


@dataclass
class Generation:
    """A text in the making: iterate over it for its pieces; the rest is final at the end.

    `seed` is the one in use, so that the text can be made again.
    """

    model: Model
    prompt: bytes
    settings: Settings
    seed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "interrupted"
    """`stop`, `length`, or `interrupted` while it is not finished."""
    text: str = ""
    timings: Timings = field(default_factory=Timings)

    def __iter__(self) -> Iterator[str]:
        """Evaluate the prompt, then yield pieces of text (never half a character) as they come.

        Raises UsageError for settings out of range, before anything is evaluated.
        """
        from rwkvcli.runtime.decoding import decode
        from rwkvcli.runtime.sampling import Sampler, SamplingParams

        model, settings = self.model, self.settings
        tokenizer = model.tokenizer
        self.seed = settings.seed if settings.seed is not None else secrets.randbits(32)
        params = SamplingParams(settings.temperature, settings.top_k, settings.top_p, self.seed)
        sampler = Sampler(params, tokenizer.vocab_size)
        # the end of one text is the beginning of the next: an empty prompt begins with it
        ids = tokenizer.encode_bytes(self.prompt) or [tokenizer.eos_id]
        self.prompt_tokens = len(ids)
        begin = time.perf_counter()
        state = model.new_state()
        logits = model.forward(ids, state)
        self.timings.prompt = time.perf_counter() - begin
        begin = time.perf_counter()
        try:
            for piece in decode(model, state, logits, tokenizer, sampler, settings.max_tokens, settings.stop):
                self.timings.decode = time.perf_counter() - begin
                if piece.finish is None:
                    self.completion_tokens += 1
                else:
                    self._end(piece.finish)
                if piece.text:
                    self.text += piece.text
                    yield piece.text
        finally:
            self.timings.decode = time.perf_counter() - begin

    def _end(self, finish: Finish) -> None:
        self.finish_reason = finish.reason
        self.completion_tokens = finish.tokens

    def report(self) -> dict[str, Any]:
        """The JSON form: text, finish_reason, seed, usage, timings (seconds and tokens/s), model."""
        prompt, decode = self.timings.prompt, self.timings.decode
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "timings": {
                "load_s": round(self.timings.load, 6),
                "prompt_s": round(prompt, 6),
                "decode_s": round(decode, 6),
                "prompt_per_s": round(self.prompt_tokens / prompt, 2) if prompt else None,
                "decode_per_s": round(self.completion_tokens / decode, 2) if decode else None,
            },
            "model": str(self.model.file.path),
        }
