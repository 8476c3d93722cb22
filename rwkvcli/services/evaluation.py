"""How well a model predicts a text, and how far it is from another one: what `rwkv perplexity` does.

Every token of the text is predicted from those before it; the first one from the token that ends a text, since
the end of one text is the beginning of the next. Memory is fixed: the text is read, encoded and evaluated in
pieces, and of the results only sums are kept. These are the same bits for any number of threads, any processor
and any way to cut the text, since the engine's logits are, and all that follows is added in one order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from rwkvcli.errors import Cancelled, ThresholdMissed, UsageError
from rwkvcli.runtime.scoring import rows_together
from rwkvcli.services.estimates import Mean, Quantiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.scoring import Float64
    from rwkvcli.runtime.state import State

_FIRST_OCTAVE = 64
"""Positions 0 to 63 stand in one row of the drift; each row after it is twice as long as all before."""

LIMITS = {
    "kl": ("base", "kl", "mean"),
    "kl-p99": ("base", "kl", "p99"),
    "ratio": ("base", "ratio"),
    "changed-top": ("base", "same_top"),
    "perplexity": ("perplexity",),
    "bits-per-byte": ("bits_per_byte",),
}
"""What a limit can be set to, and where it stands in `Measurement.to_json`; `changed-top` is 1 - same_top."""

Progress = Callable[[int, float], None]
"""(bytes of the text that are evaluated, perplexity so far)."""


@dataclass
class Drift:
    """What two models' difference is at some positions of the text (or of its windows)."""

    begin: int
    end: int
    kl: Mean = field(default_factory=Mean)
    same: Mean = field(default_factory=Mean)
    gain: Mean = field(default_factory=Mean)

    def to_json(self) -> dict[str, Any]:
        """Positions [begin, end), the number of tokens there, and the means."""
        return {
            "begin": self.begin,
            "end": self.end,
            "tokens": self.kl.count,
            "kl": self.kl.value,
            "same_top": self.same.value,
            "ratio": _exp(self.gain.value),
        }


@dataclass
class Comparison:
    """A model against the base model, token by token."""

    nll: Mean = field(default_factory=Mean)
    """The base model's loss, nats."""
    gain: Mean = field(default_factory=Mean)
    """Loss minus the base model's: its exponential is the ratio of the perplexities. Token by token, so that
    the text's own ups and downs cancel out of its error."""
    kl: Mean = field(default_factory=Mean)
    """Divergence from the base model, nats."""
    kl_quantiles: Quantiles = field(default_factory=Quantiles)
    kl_max: float = 0.0
    same: Mean = field(default_factory=Mean)
    """1 where both models put the same token first."""
    drift: list[Drift] = field(default_factory=list)

    def add(self, nll: Float64, base_nll: Float64, kl: Float64, same: Float64, position: int) -> None:
        """Take the next tokens; the first of them stands at `position`."""
        gain = nll - base_nll
        self.nll.add(base_nll)
        self.gain.add(gain)
        self.kl.add(kl)
        self.kl_quantiles.add(kl)
        self.kl_max = max(self.kl_max, float(kl.max()))
        self.same.add(same)
        at = 0
        while at < len(kl):
            octave = self._octave(position + at)
            stop = min(len(kl), octave.end - position)
            octave.kl.add(kl[at:stop])
            octave.same.add(same[at:stop])
            octave.gain.add(gain[at:stop])
            at = stop

    def _octave(self, position: int) -> Drift:
        number = (position // _FIRST_OCTAVE).bit_length()
        while len(self.drift) <= number:
            end = _FIRST_OCTAVE << len(self.drift)
            self.drift.append(Drift(end // 2 if self.drift else 0, end))
        return self.drift[number]


@dataclass
class Measurement:
    """What a model makes of a text."""

    ctx: int | None
    """Tokens in a window; None: one window."""
    nbytes: int = 0
    nll: Mean = field(default_factory=Mean)
    """Loss: minus the log-probability of each token, nats."""
    comparison: Comparison | None = None

    @property
    def tokens(self) -> int:
        """Tokens evaluated."""
        return self.nll.count

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss of a token."""
        return _exp(self.nll.value)

    @property
    def bits_per_byte(self) -> float:
        """All losses, in bits, over the bytes of the text: comparable across vocabularies."""
        return self.nll.total / math.log(2) / self.nbytes

    def to_json(self, base: str | None = None) -> dict[str, Any]:
        """All of it; `base`: what the base model is called. The names are stable.

        What too few tokens give no answer to, and what is past float64's range, is None.
        """
        error = self.nll.stderr
        result: dict[str, Any] = {
            "tokens": self.tokens,
            "bytes": self.nbytes,
            "ctx": self.ctx,
            "perplexity": self.perplexity,
            "stderr": _times(self.perplexity, error),  # of exp(mean): the derivative is exp(mean)
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_stderr": _times(self.tokens / self.nbytes / math.log(2), error),
        }
        if self.comparison is not None:
            named = {} if base is None else {"model": base}
            result["base"] = {**named, **self._comparison(self.comparison)}
        finite: dict[str, Any] = _finite(result)
        return finite

    def _comparison(self, found: Comparison) -> dict[str, Any]:
        ratio = _exp(found.gain.value)
        return {
            "perplexity": _exp(found.nll.value),
            "bits_per_byte": found.nll.total / math.log(2) / self.nbytes,
            "ratio": ratio,
            "ratio_stderr": _times(ratio, found.gain.stderr),
            "kl": {
                "mean": found.kl.value,
                "stderr": found.kl.stderr,
                "median": found.kl_quantiles.at(0.5),
                "p99": found.kl_quantiles.at(0.99),
                "max": found.kl_max,
            },
            "same_top": found.same.value,
            "same_top_stderr": found.same.stderr,
            "drift": [octave.to_json() for octave in found.drift],
        }


def measure(
    model: Model,
    text: BinaryIO,
    *,
    base: Model | None = None,
    ctx: int | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Measurement:
    """Let `model` predict `text`, and compare it with `base` on the way.

    `ctx`: cut the text into windows of so many tokens that are predicted independently, each from the token
    that ends a text on; None: one window of any length. `limit`: the first so many tokens only.
    `should_stop` is asked between chunks.

    Raises UsageError (an empty text, a model without a tokenizer or one that cannot encode the text, another
    vocabulary than that of `base`), FormatError for a model whose logits are no numbers, Cancelled, OSError
    from reading.
    """
    from rwkvcli.runtime.long_text import encode_long, read_text

    tokenizer = model.tokenizer
    if base is not None:
        check_comparable(model, base)
    result = Measurement(ctx, comparison=None if base is None else Comparison())
    windows = _Windows(model, base, result, ctx)
    for piece in encode_long(tokenizer, read_text(text)):
        ids, nbytes = piece
        if limit is not None and result.tokens + len(ids) > limit:
            ids = ids[: limit - result.tokens]
            nbytes = len(tokenizer.decode_bytes(ids))
        for begin in range(0, len(ids), windows.rows):
            if should_stop is not None and should_stop():
                raise Cancelled("the measurement was stopped")
            windows.add(ids[begin : begin + windows.rows])
            if on_progress is not None:
                share = min(1.0, (begin + windows.rows) / len(ids))
                on_progress(result.nbytes + int(share * nbytes), result.perplexity)
        result.nbytes += nbytes
        if result.tokens == limit:
            break
    if not result.tokens:
        raise UsageError("the text is empty: there is nothing to predict")
    return result


def parse_limits(words: Iterable[str], *, compared: bool) -> dict[str, float]:
    """{name: limit} out of `NAME=X`. `compared`: whether there is a base model. Raises UsageError."""
    limits = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in LIMITS:
            raise UsageError(f"no measured value {name!r}", hint=f"there are {', '.join(LIMITS)}")
        try:
            limits[name] = float(text)
        except ValueError:
            limits[name] = math.nan
        if math.isnan(limits[name]):
            raise UsageError(f"{text!r} is no limit for {name}", hint=f"write {name}=X, X being a number")
        if not compared and LIMITS[name][0] == "base":
            raise UsageError(f"{name} compares two models", hint="name the other with --base")
    return limits


def check_limits(found: Mapping[str, Any], limits: Mapping[str, float], hint: str | None = None) -> None:
    """Raise ThresholdMissed if values of `found`, as `Measurement.to_json` returns it, are above their limits."""
    missed = []
    for name, limit in limits.items():
        value: Any = found
        for key in LIMITS[name]:
            value = value[key]
        if name == "changed-top":
            value = 1 - value
        if value is None or value > limit:  # None: past float64's range
            missed.append(f"{name} is {'infinite' if value is None else f'{value:.4g}'}, above {limit:g}")
    if missed:
        raise ThresholdMissed("; ".join(missed), hint=hint)


def check_comparable(model: Model, base: Model) -> None:
    """Raise UsageError unless an id means the same to both models."""
    ours, theirs = _vocabulary(model), _vocabulary(base)
    if ours != theirs:
        raise UsageError(
            f"the models have different vocabularies: {_told(model)} and {_told(base)}",
            hint="only models with the same tokenizer can be compared token by token; bits per byte compare any",
        )


class _Windows:
    """The models at their place in the text."""

    def __init__(self, model: Model, base: Model | None, result: Measurement, ctx: int | None) -> None:
        self._models = [model] if base is None else [model, base]
        self._result, self._ctx = result, ctx
        self.rows = rows_together(model.config.vocab_size)
        """Tokens that are evaluated at a time."""
        self._begin()

    def add(self, ids: list[int]) -> None:
        """Predict the next tokens."""
        while ids:
            room = len(ids) if self._ctx is None else self._ctx - self._position
            part, ids = ids[:room], ids[room:]
            self._score(part)
            if self._position == self._ctx:
                self._begin()

    def _begin(self) -> None:
        self._states: list[State] = [model.new_state() for model in self._models]
        self._last = self._models[0].tokenizer.eos_id
        self._position = 0

    def _score(self, ids: list[int]) -> None:
        from rwkvcli.runtime.scoring import divergence, score

        fed = [self._last, *ids[:-1]]
        all_logits = [
            model.forward(fed, state, all_logits=True)
            for model, state in zip(self._models, self._states, strict=True)
        ]
        targets: NDArray[np.int32] = np.array(ids, np.int32)
        log_probs, tops = score(all_logits[0], targets)
        self._result.nll.add(-log_probs)
        if self._result.comparison is not None:
            base_log_probs, base_tops = score(all_logits[1], targets)
            kl = divergence(all_logits[1], all_logits[0])
            same = (tops == base_tops).astype(np.float64)
            self._result.comparison.add(-log_probs, -base_log_probs, kl, same, self._position)
        self._last = ids[-1]
        self._position += len(ids)


def _vocabulary(model: Model) -> tuple[Any, ...]:
    return model.file.tokenizer, model.file.tokenizer_bytes(), model.config.vocab_size


def _told(model: Model) -> str:
    kind = {"json": "a tokenizer.json", "none": "no tokenizer"}.get(
        model.file.tokenizer, model.file.tokenizer
    )
    return f"{kind} with {model.config.vocab_size} rows"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _times(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error
