"""Choosing the next token.

What happens to the logits, in this order: penalties for tokens generated before, logit bias, banned tokens and
strings, what a grammar does not allow, softmax over the valid ids; then typical, top-p, min-p and top-k, each over what the one before it
left; then temperature. This is BlinkDL's order: the cuts are made at temperature 1. `order="temperature-first"`
makes them at the temperature, as most other engines do. Greedy choice, temperature 0, takes the first of the
largest logits. `csrc/text/sampler.h` and `csrc/text/penalties.h` state each rule.

Random numbers come from the counter-based generator Philox4x64-10: draw number `i` of seed `s` is a pure
function of `s` and `i`, the same on every device, and needs no state but the counter. It equals
`numpy.random.Generator(numpy.random.Philox(counter=i, key=s)).random()`. The token is the first at which
the running sum of the weights, over ascending ids, exceeds the draw.
"""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import FormatError, UsageError
from rwkvcli.runtime.numbers import real, whole

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.banning import BannedStrings
    from rwkvcli.runtime.grammar import GrammarMatcher
    from rwkvcli.runtime.tokenizer import Tokenizer

ORDERS = ("rwkv", "temperature-first")
_SEEDS = 2**64
_DAMAGED = "the model file may be damaged: `rwkv verify` checks it"
_LARGEST_TOP_K = 2**31 - 1
_HUGE = 1e30
"""Beyond it, and its reciprocal, float32 cannot tell the difference; what is made of larger ones would be infinite."""
_FLOATS = (
    "temperature", "top_p", "min_p", "typical", "presence_penalty", "frequency_penalty", "penalty_decay",
    "repetition_penalty",
)  # fmt: skip
_COUNTED_AS_NOTHING = b" \t0123456789"
"""Tokens whose text is a part of this add nothing to their own count, so that numbers stay possible."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose among the next tokens. Raises UsageError for values out of range.

    The first four may be given by position.
    """

    temperature: float = 1.0
    """>= 0; 0 is greedy."""
    top_k: int = 0
    """>= 0; 0 is off."""
    top_p: float = 1.0
    """> 0; off from 1 up."""
    seed: int | None = None
    """In [0, 2**64); None takes a random one."""
    min_p: float = 0.0
    """In [0, 1]; 0 is off."""
    typical: float = 1.0
    """> 0; off from 1 up."""
    presence_penalty: float = 0.0
    """Off the logits of tokens that were generated."""
    frequency_penalty: float = 0.0
    """Times the count, off the same."""
    penalty_decay: float = 0.996
    """In [0, 1]: of the counts, with every generated token."""
    repetition_penalty: float = 1.0
    """> 0; 1 is off. Divides the positive logits of tokens that were generated, multiplies the negative ones."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """{token id: added to its logit}; -inf bans it."""
    banned_strings: tuple[str, ...] = ()
    """Texts that must not come up."""
    order: str = "rwkv"
    """One of ORDERS."""

    def __post_init__(self) -> None:
        self._settle_types()
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be 0 or more, not {self.temperature}", hint="0 is greedy")
        for name in ("top_p", "typical"):
            value = getattr(self, name)
            if not value > 0:  # also refuses NaN
                raise UsageError(
                    f"{name} must be above 0, not {value}", hint="1 is off; for greedy use temperature 0"
                )
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 or more, not {self.top_k}", hint="0 is off")
        object.__setattr__(self, "top_k", min(self.top_k, _LARGEST_TOP_K))
        if self.seed is not None and not 0 <= self.seed < _SEEDS:
            raise UsageError(f"seed must be from 0 to 2**64 - 1, not {self.seed}")
        for name in ("min_p", "penalty_decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must be from 0 to 1, not {value}")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise UsageError(f"{name} must be a number, not {value}", hint="0 is off")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UsageError(
                f"repetition_penalty must be above 0, not {self.repetition_penalty}", hint="1 is off"
            )
        for token, bias in self.logit_bias.items():
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise UsageError(
                    f"logit_bias {token}={bias} is not an id and a number", hint="-inf bans a token"
                )
        if isinstance(self.banned_strings, str):
            raise UsageError("banned_strings takes a list of strings, not one string")
        if "" in self.banned_strings:
            raise UsageError("a banned string is empty")
        if self.order not in ORDERS:
            raise UsageError(f"unknown order {self.order!r} of sampling", hint=f"one of {', '.join(ORDERS)}")

    def _settle_types(self) -> None:
        """Numbers of any library become Python's own."""
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if value is not None:
                try:
                    object.__setattr__(self, name, whole(value))
                except TypeError:
                    raise UsageError(f"{name} must be a whole number, not {value!r}") from None
        for name in _FLOATS:
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, real(value))
            except (TypeError, ValueError, OverflowError):
                raise UsageError(f"{name} must be a number, not {value!r}") from None
        try:
            biases = {whole(token): real(bias) for token, bias in self.logit_bias.items()}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise UsageError("logit_bias takes token ids and numbers, as {id: number}") from None
        object.__setattr__(self, "logit_bias", biases)
        banned: Any = self.banned_strings
        if not isinstance(banned, str):
            try:
                banned = tuple(banned)
            except TypeError:
                banned = (banned,)
            for text in banned:
                if not isinstance(text, str):
                    raise UsageError(f"banned_strings takes a list of strings, and {text!r} is none")
            object.__setattr__(self, "banned_strings", banned)

    @classmethod
    def of(cls, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
        """`given` where it is not None, else `defaults`. Raises UsageError for a setting that does not exist."""
        known = {item.name for item in fields(cls)}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"no sampling setting {name!r}", hint=f"there are {', '.join(sorted(known))}"
                )
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**defaults, **chosen})

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were generated cost anything."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1


class Sampler:
    """Draws tokens: `params`, the number of the next draw, and what has been generated.

    `valid` is the number of ids that belong to tokens: logits past it are ignored. `tokenizer` is needed for
    banned strings and for penalties as RWKV has them (digits and spaces are not counted). `grammar`: what the tokens
    must conform to, from the first one.
    """

    def __init__(
        self,
        params: SamplingParams,
        valid: int,
        tokenizer: Tokenizer | None = None,
        grammar: GrammarMatcher | None = None,
    ) -> None:
        if valid < 1:
            raise UsageError(f"the vocabulary must have at least one id, not {valid}")
        from rwkvcli import _kernels
        from rwkvcli.runtime.native import native_sampler

        self._native = native_sampler()
        self._uniform = _kernels.uniform
        self._native_error = _kernels.FormatError
        self._temperature = min(max(params.temperature, 1 / _HUGE), _HUGE)
        self._first = params.order == "temperature-first"
        self._penalties: _kernels.Penalties | None = None
        if params.penalizes:
            self._penalties = _kernels.Penalties(
                _within(params.presence_penalty),
                _within(params.frequency_penalty),
                max(_within(params.repetition_penalty), 1 / _HUGE),
                params.penalty_decay,
            )
        for token in params.logit_bias:
            if token >= valid:
                raise UsageError(f"logit_bias: token {token} is outside the vocabulary of {valid}")
        self._biased = array("i", params.logit_bias.keys())
        self._bias = array("f", [b if b == -math.inf else _within(b) for b in params.logit_bias.values()])
        self._banned: BannedStrings | None = None
        if params.banned_strings:
            from rwkvcli.runtime.banning import BannedStrings

            if tokenizer is None:
                raise UsageError("banned strings need the model's vocabulary")
            self._banned = BannedStrings(params.banned_strings, tokenizer)
        self._grammar = grammar
        changes = (
            any(each is not None for each in (self._penalties, self._banned, grammar))
            or len(self._biased) > 0
        )
        self._work = memoryview(bytearray(4 * valid)).cast("f") if changes else None
        self._tokenizer = tokenizer
        self.params = params
        self.valid = valid
        self.seed = secrets.randbits(32) if params.seed is None else params.seed
        """The seed in use, also when none was asked for: with it the run can be repeated."""
        self.draws = 0

    def __call__(self, logits: Logits) -> int:
        """The next token for float32 `logits` [V], which stay as they are. A greedy choice draws no number.

        Raises FormatError when no token can be chosen, since a logit is NaN or +inf, or all are -inf; and
        UsageError when biases, banned strings and the grammar leave no token.
        """
        logits = self._changed(logits[: self.valid])
        if self.params.greedy:
            token = self._native.greedy(logits)
            if not math.isfinite(logits[token]):
                raise self._no_token(f"the model's largest logit is {logits[token]}", logits)
        else:
            draw = self._uniform(self.seed, self.draws)
            params = self.params
            try:
                token = self._native.sample(
                    logits, self._temperature, params.top_k, params.top_p, draw, params.min_p,
                    params.typical, self._first,
                )  # fmt: skip
            except self._native_error as e:
                raise self._no_token(str(e), logits) from None
            self.draws += 1
        self._count(token)
        return token

    def fork(self) -> Sampler:
        """One that draws what this one would from the same logits, and of which this one does not know. It shares this one's
        working memory: they do not draw at the same time."""
        other = copy(self)
        if self._penalties is not None:
            other._penalties = self._penalties.copy()
        if self._banned is not None:
            other._banned = copy(self._banned)
        if self._grammar is not None:
            other._grammar = self._grammar.fork()
        return other

    @property
    def conforms(self) -> bool:
        """Whether there is a grammar."""
        return self._grammar is not None

    @property
    def forced(self) -> bytes:
        """Text that has to come next, as far as the grammar knows it."""
        return self._grammar.forced if self._grammar is not None else b""

    @property
    def complete(self) -> bool:
        """Whether the text is all that the grammar allows: no token can follow."""
        return self._grammar is not None and self._grammar.complete

    def state(self) -> dict[str, Any]:
        """What is needed to go on later with the same draws, penalties and bans: seed, draws, with penalties
        `counts`, a list of [token, count], with banned strings `recent`, bytes in hex, and with a grammar
        `conforming`, the tokens that it has seen. Ready for JSON."""
        state: dict[str, Any] = {"seed": self.seed, "draws": self.draws}
        if self._penalties is not None:
            state["counts"] = [list(pair) for pair in self._penalties.counts()]
        if self._banned is not None:
            state["recent"] = self._banned.recent.hex()
        if self._grammar is not None:
            state["conforming"] = list(self._grammar.ids)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken. Raises FormatError if it is not such a state, and changes nothing; UsageError if
        its text does not fit the grammar."""
        seed, draws, counts = state.get("seed"), state.get("draws"), state.get("counts", [])
        if not (
            isinstance(seed, int) and isinstance(draws, int) and 0 <= seed < _SEEDS and 0 <= draws < _SEEDS
        ):
            raise FormatError("not the state of a sampler")
        if not isinstance(counts, Sequence) or not all(map(self._is_count, counts)):
            raise FormatError("not the state of a sampler: its counts are not pairs of a token and a number")
        try:
            recent = bytes.fromhex(state.get("recent", ""))
        except (TypeError, ValueError):
            raise FormatError("not the state of a sampler: its recent bytes are none") from None
        ids = state.get("conforming", [])
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < self.valid for each in ids):
            raise FormatError("not the state of a sampler: its tokens are none")
        if self._penalties is not None:
            try:
                self._penalties.restore([(token, float(count)) for token, count in counts])
            except ValueError as e:
                raise FormatError(f"not the state of a sampler: {e}") from None
        if self._grammar is not None:
            self._grammar.resume(ids)
        if self._banned is not None:
            self._banned.resume(recent)
        self.seed, self.draws = seed, draws

    def _is_count(self, pair: Any) -> bool:
        if not isinstance(pair, Sequence) or len(pair) != 2:
            return False
        token, count = pair
        return (
            isinstance(token, int) and 0 <= token < self.valid
            and isinstance(count, int | float) and 0 <= count <= _HUGE
        )  # fmt: skip

    def _changed(self, logits: Logits) -> Logits:
        """The logits after penalties, bias and bans."""
        if self._work is None:
            return logits
        work = self._work[: len(logits)]
        work[:] = logits  # type: ignore[assignment]  # any buffer of float32
        if self._penalties is not None:
            self._penalties.apply(work)
        if len(self._biased):
            self._native.bias(work, self._biased, self._bias)
        if self._banned is not None:
            self._banned.strike(work)
        if self._grammar is not None:
            self._grammar.strike(work)
        return work

    def _count(self, token: int) -> None:
        if self._penalties is not None:
            nothing = (
                self._tokenizer is not None and self._tokenizer.decode_bytes((token,)) in _COUNTED_AS_NOTHING
            )
            self._penalties.observe(token, 0.0 if nothing else 1.0)
        if self._banned is not None:
            self._banned.push(token)
        if self._grammar is not None:
            self._grammar.push(token)

    def _no_token(self, why: str, logits: Logits) -> FormatError | UsageError:
        if self._work is not None and all(logit == -math.inf for logit in logits):
            return UsageError("no token is left to choose: all are banned")
        return FormatError(why, hint=_DAMAGED)


def _within(value: float) -> float:
    """`value`, no larger than float32 can compute with."""
    return min(max(value, -_HUGE), _HUGE)
