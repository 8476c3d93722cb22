"""Which tokens may come next under a grammar, by the optional package llguidance, which nothing else imports.

A grammar is what llguidance calls one: JSON, made by `runtime/constraint.py`.
"""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

from rwkvcli.errors import MissingExtra, OutOfMemory, UsageError
from rwkvcli.runtime.rust import refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

    from rwkvcli.runtime.tokenizer import Tokenizer

_T = TypeVar("_T")
_END = b"<|end|>"
"""What llguidance calls the token that ends a text; a grammar that names no such token needs none of its own."""
_IDS = 1 << 16
"""Of the vocabulary that a grammar is tried with: a grammar may name ids of the model's own."""
_STACK, _STACK_PER_BYTE, _LARGEST_STACK = 8 << 20, 2048, (512 if sys.platform != "win32" else 255) << 20
"""Bytes. llguidance goes down a chain of rules by recursion, at up to 16 KB a rule, and a rule has 30 bytes or more there.
Python gives threads less than 256 MB on Windows."""
_LONGEST = 160
"""Characters that are told of what llguidance says."""


def require(what: str) -> Any:
    """The package llguidance. Raises MissingExtra: it is not installed, and `what` needs it."""
    try:
        import llguidance
    except ImportError:
        raise MissingExtra("grammar", what) from None
    return llguidance


class GrammarMatcher:
    """Follows the generated tokens through a grammar, and tells which ones may come next.

    Raises UsageError for a vocabulary in which the text of a token depends on its neighbours, and for a grammar that
    llguidance refuses.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer) -> None:
        vocabulary = _vocabulary(tokenizer)
        self._eos = tokenizer.eos_id
        self._has_bytes = vocabulary.has_bytes
        try:
            self._matcher = _on_a_large_stack(grammar, lambda: _matcher(vocabulary.tokens, grammar))
        except ValueError as e:
            raise UsageError(f"the grammar does not fit this model's vocabulary: {told(str(e))}") from None
        self.ids: list[int] = []
        """The tokens of the text so far."""
        self.complete = False
        """Whether the text has come to its end, and nothing can follow."""

    def strike(self, logits: memoryview[float]) -> None:
        """Make the float32 `logits` [V] of what may not come now minus infinity.

        Raises UsageError: llguidance gave up, or no token of this vocabulary can go on.
        """
        import numpy as np

        values = np.asarray(logits)
        with refusals(_gave_up):
            allowed = _bits(self._matcher, len(values)) & self._has_bytes[: len(values)]
            allowed[self._eos] = self._matcher.is_accepting()
        if not allowed.any():
            raise UsageError("the grammar cannot go on here with any token of this model's vocabulary")
        values[~allowed] = -math.inf

    def push(self, token: int) -> None:
        """`token` was generated. Raises UsageError: llguidance gave up."""
        if token == self._eos:
            return
        with refusals(_gave_up):
            if not self._matcher.consume_token(token):
                raise ValueError(self._matcher.get_error())
            self.complete = bool(self._matcher.is_stopped())
        self.ids.append(token)

    def fork(self) -> GrammarMatcher:
        """One that goes its own way from here."""
        other = copy(self)
        other._matcher, other.ids = self._matcher.deep_copy(), list(self.ids)
        return other

    @property
    def forced(self) -> bytes:
        """Text that has to come next, as far as it is known. Raises UsageError: llguidance gave up."""
        with refusals(_gave_up):
            return self._matcher.compute_ff_bytes() if not self.complete else b""

    def resume(self, ids: Sequence[int]) -> None:
        """Go on after a text of these tokens; nothing was generated yet. Raises UsageError: it does not fit the grammar."""
        with refusals(_gave_up):
            taken = self._matcher.try_consume_tokens(list(ids))
            self.complete = bool(self._matcher.is_stopped())
        if taken != len(ids):
            raise UsageError(
                "the text that the state was left in does not fit this schema or grammar",
                hint="go on with the options that it was begun with, or give a new text",
            )
        self.ids = list(ids)


def first_bytes(grammar: str) -> bytes:
    """Those that a text may begin with, in order. Raises ValueError with what llguidance has against the grammar."""
    matcher = _on_a_large_stack(grammar, lambda: _matcher(_single_bytes(), grammar))
    with refusals(ValueError):
        bits = _bits(matcher, _IDS)
    if not bits.any():
        raise ValueError("no text conforms to it")
    return bytes(bits[:256].nonzero()[0].tolist())


def told(error: str) -> str:
    """What llguidance says in several lines, as one: the place and the reason."""
    lines = [line for line in error.splitlines() if line.strip()] or ["no reason is told"]
    reason = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    reason = re.sub(r"^(at )?\d+\(\d+\): ", "", reason).removeprefix("Parser Error: ")
    reason = re.sub(r"^invalid regex .* \(in regex\): ", "", reason)
    place = re.match(r"(?:at )?(\d+)\((\d+)\): ", lines[0])
    begin = f"line {place[1]}, column {place[2]}: " if place else ""
    cut = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + "..."
    return begin + cut[:1].lower() + cut[1:]


class _Vocabulary(NamedTuple):
    """A model's tokens, as llguidance takes them, and which of them have bytes: bool [V]."""

    tokens: LLTokenizer
    has_bytes: NDArray[np.bool_]


_VOCABULARIES: WeakKeyDictionary[Tokenizer, _Vocabulary] = WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    """Made once, which takes a seventh of a second for World."""
    found = _VOCABULARIES.get(tokenizer)
    if found is None:
        import numpy as np

        if not tokenizer.has_own_bytes:
            raise UsageError(
                "no schema or grammar can be kept to: the text of this model's tokens depends on neighbours"
            )
        tokens = [tokenizer.decode_bytes((token,)) for token in range(tokenizer.vocab_size)]
        tokens[tokenizer.eos_id] = b""
        has_bytes = np.array(list(map(bool, tokens)))
        found = _Vocabulary(_tokens(tokens, tokenizer.eos_id, _Encoder(tokens, tokenizer)), has_bytes)
        _VOCABULARIES[tokenizer] = found
    return found


@lru_cache(maxsize=1)
def _single_bytes() -> LLTokenizer:
    """A vocabulary that every grammar can be tried with: the bytes, the end of a text, and ids without bytes."""
    tokens = [bytes([byte]) for byte in range(256)]
    return _tokens(tokens + [b""] * (_IDS - len(tokens)), len(tokens), list)


class _Encoder:
    """The ids of text that has to come, as llguidance asks for them: those that the model was trained on for it."""

    def __init__(self, tokens: list[bytes], tokenizer: Tokenizer) -> None:
        self._tokenizer = ref(tokenizer)  # what is made of it is kept as long as it is there
        self._ids = {each: token for token, each in enumerate(tokens) if each}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, data: bytes) -> list[int]:
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            with suppress(UsageError):
                ids = tokenizer.encode_bytes(data)
                if tokenizer.eos_id not in ids and tokenizer.decode_bytes(ids) == data:
                    return ids
        return self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        """For a vocabulary that changes text, or sees the name of a special token in it. It ends where nothing fits."""
        ids, at = [], 0
        while at < len(data):
            sizes = range(min(self._longest, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[data[at : at + size]])
            at += size
        return ids


def _tokens(tokens: list[bytes], eos: int, encode: Callable[[bytes], list[int]]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    class Given:
        """What llguidance wants to know of a vocabulary."""

        eos_token_id = eos
        bos_token_id = None
        special_token_ids = (eos,)

        def __init__(self) -> None:
            self.tokens = [*tokens[:eos], _END, *tokens[eos + 1 :]]

        def __call__(self, data: bytes) -> list[int]:
            return encode(data)

    return LLTokenizer(TokenizerWrapper(Given()))


def _matcher(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokens, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


def _bits(matcher: LLMatcher, size: int) -> NDArray[np.bool_]:
    """Which of the first `size` tokens may come now. Raises ValueError."""
    import numpy as np

    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    if matcher.is_error():
        error = matcher.get_error()
        if error.startswith("NoExtension"):  # its name for a dead end
            return np.zeros(size, np.bool_)
        raise ValueError(error)
    return np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)


def _gave_up(why: str) -> UsageError:
    return UsageError(
        f"llguidance gave up in the middle of the text: {told(why)}",
        hint="a simpler schema or grammar may do",
    )


def _on_a_large_stack(grammar: str, make: Callable[[], _T]) -> _T:
    """What `make` returns, in a thread of its own: on a small stack a long chain of rules would end the program."""
    made: list[_T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with refusals(ValueError):
                made.append(make())
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=work, name="grammar", daemon=True)
    with _STACK_SIZE:
        before = threading.stack_size(min(_STACK + _STACK_PER_BYTE * (len(grammar) & ~1), _LARGEST_STACK))
        try:
            thread.start()
        except RuntimeError:
            raise OutOfMemory("there is no memory for reading the grammar") from None
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


_STACK_SIZE = threading.Lock()
"""It is one for all threads that begin."""
