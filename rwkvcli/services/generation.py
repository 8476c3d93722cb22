"""Continue a prompt with a model: what `rwkv generate` does, without the printing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
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
    from rwkvcli.services.inspection import refuse_checkpoint

    try:
        return Model.load(found.path, device=device or "auto", threads=threads)
    except FormatError:
        refuse_checkpoint(found)
        raise


def check_device(device: str | None) -> None:
    """Refuse a device that cannot be, before anything is downloaded. Raises UsageError, DeviceUnavailable."""
    from rwkvcli.runtime.device import parse_device

    parse_device(device or "auto")


def template_names() -> list[str]:
    """The families of models that are known."""
    from rwkvcli.runtime.templates import templates

    return list(templates())


@dataclass(frozen=True)
class Settings:
    """How to continue a text.

    `sampling` holds settings of `rwkvcli.runtime.sampling.SamplingParams` by name; what is None or missing is as
    usual for the model's family. `chat`: the text is a person's message, written as the family expects it, and
    what comes is the answer, without white space around it. `system` goes before it. `template` names a family
    in place of the model's own.
    """

    max_tokens: int = 512
    """-1: until the model ends the text."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    template: str | None = None


@dataclass
class Timings:
    """Seconds. `decode` is the time after the prompt, sampling included."""

    load: float = 0.0
    prompt: float = 0.0
    decode: float = 0.0


@dataclass
class Generation:
    """A text in the making: iterate over it for its pieces; the rest is final at the end.

    Making one raises UsageError for settings out of range, and FormatError for a model of an unknown family;
    nothing is evaluated before the first piece is asked for. `seed` is the one in use, so that the text can
    be made again.
    """

    model: Model
    text_given: bytes
    settings: Settings
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "interrupted"
    """`stop`, `length`, or what ended it from outside: `interrupted`, `timeout`."""
    text: str = ""
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        from rwkvcli.runtime.sampling import Sampler, SamplingParams
        from rwkvcli.runtime.streaming import StopMatcher
        from rwkvcli.runtime.templates import named

        settings, tokenizer = self.settings, self.model.tokenizer
        self.template = named(settings.template) if settings.template is not None else self.model.template
        params = SamplingParams.of(self.template.settings(settings.chat), settings.sampling)
        self._sampler = Sampler(params, tokenizer.vocab_size, tokenizer)
        self.seed = self._sampler.seed
        self._stop = (*settings.stop, *(self.template.stop if settings.chat else ()))
        StopMatcher(self._stop)  # complains now rather than after the prompt
        self.prompt = self._prompt()
        """The text that the model sees."""

    def __iter__(self) -> Iterator[str]:
        """Evaluate the prompt, then yield pieces of text (never half a character) as they come."""
        from rwkvcli.runtime.decoding import decode
        from rwkvcli.runtime.streaming import AnswerTrim

        model, settings = self.model, self.settings
        ids = self._ids()
        self.prompt_tokens = len(ids)
        begin = time.perf_counter()
        state = model.new_state()
        logits = model.forward(ids, state)
        self.timings.prompt = time.perf_counter() - begin
        trim = AnswerTrim(self.template.lead) if settings.chat else None
        pieces = decode(model, state, logits, model.tokenizer, self._sampler, settings.max_tokens, self._stop)
        begin = time.perf_counter()
        try:
            for piece in pieces:
                self.timings.decode = time.perf_counter() - begin
                text = piece.text if trim is None else trim.push(piece.text)
                if piece.finish is None:
                    self.completion_tokens += 1
                else:
                    self._end(piece.finish)
                    text += trim.flush() if trim is not None else ""
                if text:
                    self.text += text
                    yield text
        finally:
            self.timings.decode = time.perf_counter() - begin

    def _prompt(self) -> bytes:
        if not self.settings.chat:
            return self.text_given
        from rwkvcli.runtime.templates import Turn
        from rwkvcli.runtime.tokenizer import text_to_bytes

        message = self.text_given.decode("utf-8", "surrogateescape")  # bytes that are not UTF-8 come through
        return text_to_bytes(self.template.render([Turn(message)], self.settings.system))

    def _ids(self) -> list[int]:
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode_bytes(self.prompt)
        # the end of one text is the beginning of the next: an empty prompt begins with it
        if not ids or (self.settings.chat and self.template.begin):
            ids = [tokenizer.eos_id, *ids]
        return ids

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
