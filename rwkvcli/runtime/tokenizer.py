"""Text to token ids and back: World (native), bytes, and any `tokenizer.json`."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rwkvcli.errors import FormatError, NotUtf8, UsageError
from rwkvcli.runtime.rust import refusals

if TYPE_CHECKING:
    import tokenizers

    from rwkvcli import _kernels

WORLD_IDS = 65530
"""Valid ids of the World vocabulary: 65529 entries and id 0. Models pad their embedding to 65536 rows."""


LONGEST_WORLD_TOKEN = 128
"""Bytes."""
_CONTEXT = 1024
"""Bytes after a cut that a tokenizer.json must see there."""
_TRIES = 8
_END = "<|endoftext|>"
"""The token that ends a text in a tokenizer.json."""


class Tokenizer(Protocol):
    """What a model needs to know of its vocabulary.

    Methods that take text raise UsageError for text that cannot be encoded, methods that take ids for ids
    outside [0, vocab_size).
    """

    @property
    def vocab_size(self) -> int:
        """Number of valid ids. Logits at and past it belong to no token and are masked when sampling."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        ...

    @property
    def eos_text(self) -> str | None:
        """What that id is written as in a text that is encoded; None: it cannot be written."""
        ...

    @property
    def has_own_bytes(self) -> bool:
        """Whether every id stands for bytes of its own, whatever its neighbours."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Lone surrogates made by `surrogateescape` (as in sys.argv) stand for their bytes."""
        ...

    def encode_bytes(self, data: bytes) -> list[int]: ...

    def encode_settled(self, data: bytes) -> tuple[list[int], int]:
        """Ids of the beginning of a longer text that `data` begins with, and its length in bytes.

        What comes after `data` does not change them, and the rest of the text can be encoded by itself. `data`
        has at least a few thousand bytes.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, invalid UTF-8 replaced by U+FFFD."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...

    def stream(self) -> Callable[[int], bytes]:
        """A function from each next id to the bytes it adds to the text: for ids that come one by one."""
        ...


def text_to_bytes(text: str) -> bytes:
    """UTF-8 of `text`; surrogates U+DC80..U+DCFF become the bytes they escaped. UsageError for others, and for what is no
    text."""
    if not isinstance(text, str):
        raise UsageError(f"a text is a string, not {type(text).__name__}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        raise UsageError(
            f"character {e.start} of the text is half a surrogate pair, not a character"
        ) from None


class _ByteCapable(ABC):
    """The text half of a tokenizer whose every id stands for bytes of its own."""

    eos_id = 0
    has_own_bytes = True

    @abstractmethod
    def encode_bytes(self, data: bytes) -> list[int]: ...

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...

    def encode(self, text: str) -> list[int]:
        return self.encode_bytes(text_to_bytes(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> Callable[[int], bytes]:
        return lambda token: self.decode_bytes((token,))


class WorldTokenizer(_ByteCapable):
    """RWKV World (v20230424): greedy longest match over bytes; any bytes can be encoded. Id 0 has no bytes.

    `rows` is the model's number of rows; ids that it has no row for are never produced.
    """

    def __init__(self, rows: int = WORLD_IDS) -> None:
        self._native = _world_kernel(min(rows, WORLD_IDS))

    @property
    def vocab_size(self) -> int:
        return self._native.vocab_size

    @property
    def eos_text(self) -> None:
        return None

    def encode_bytes(self, data: bytes) -> list[int]:
        return self._native.encode(data)

    def encode_settled(self, data: bytes) -> tuple[list[int], int]:
        """Exact: a longest match is certain once the longest entry would still fit into `data`."""
        ids = self._native.encode(data)
        end = len(data)
        while ids:
            begin = end - len(self._native.token_bytes(ids[-1]))
            if begin + LONGEST_WORLD_TOKEN <= len(data):
                break
            ids.pop()
            end = begin
        return ids, end

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        try:
            return self._native.decode(ids)
        except (ValueError, TypeError) as e:
            raise _bad_ids(ids, self.vocab_size) from e


class ByteTokenizer(_ByteCapable):
    """One id per byte. Id 0, the NUL byte, ends a text."""

    vocab_size = 256
    eos_text = "\0"

    def encode_bytes(self, data: bytes) -> list[int]:
        return list(data)

    def encode_settled(self, data: bytes) -> tuple[list[int], int]:
        return list(data), len(data)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        try:
            return bytes(map(operator.index, ids))  # bytes(array) would be the array's memory
        except (ValueError, TypeError) as e:
            raise _bad_ids(ids, self.vocab_size) from e


class JsonTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library: GPT-NeoX and custom vocabularies.

    Special tokens written out in the text are recognised, as the models were trained; none is added.
    Special tokens have no text. Input must be valid UTF-8. Raises FormatError if `tokenizer_json` is not
    such a file.
    """

    def __init__(self, tokenizer_json: bytes, told: str = "tokenizer.json") -> None:
        """`told`: what messages call the file."""
        from tokenizers import Tokenizer as Native
        from tokenizers.decoders import ByteLevel

        self._told = told
        with _refusals(self._told):
            self._native: tokenizers.Tokenizer = Native.from_str(tokenizer_json.decode("utf-8"))
        self._native.no_truncation()
        self._native.no_padding()
        ids = self._native.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise FormatError(f"{told}: the vocabulary is empty")
        self.vocab_size = max(ids) + 1
        self.eos_id: int = self._native.token_to_id(_END) or 0
        self.eos_text = _END if self._native.token_to_id(_END) is not None else None
        # A byte-level vocabulary spells each byte as one printable character, so every id has bytes of its
        # own. In others the text of an id can depend on its neighbours.
        self._byte_of = _byte_level_alphabet() if isinstance(self._native.decoder, ByteLevel) else None
        self._added = self._native.get_added_tokens_decoder()

    @property
    def has_own_bytes(self) -> bool:
        return self._byte_of is not None

    def encode(self, text: str) -> list[int]:
        return self.encode_bytes(text_to_bytes(text))

    def encode_bytes(self, data: bytes) -> list[int]:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise NotUtf8(e.start) from None
        with _refusals(self._told):
            return self._native.encode(text, add_special_tokens=False).ids

    def encode_settled(self, data: bytes) -> tuple[list[int], int]:
        """Cut between a word and the white space after it, where vocabularies of this kind never join; in text
        without white space, before a character.

        `data` as a whole has to give the same ids there. Where it does at none of the places tried, the text
        is cut all the same; the ids are then those of the parts.
        """
        data = _whole_characters(data)
        ids = self.encode_bytes(data)
        last = len(data) - _CONTEXT
        places = range(last, last // 2, -1)
        words = (at for at in places if data[at] in b" \n" and data[at - 1] not in b" \t\r\n")
        characters = [at for at in places[: 4 * _TRIES] if data[at] & 0xC0 != 0x80]
        for at in chain(islice(words, _TRIES), characters[:_TRIES]):
            begin = self.encode_bytes(data[:at])
            if begin == ids[: len(begin)] and self.encode_bytes(data[at:]) == ids[len(begin) :]:
                return begin, at
        return self.encode_bytes(data[: characters[0]]), characters[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        try:
            whole = list(map(operator.index, ids))
        except TypeError as e:
            raise _bad_ids(ids, self.vocab_size) from e
        if whole and not 0 <= min(whole) <= max(whole) < self.vocab_size:
            raise _bad_ids(whole, self.vocab_size)
        if self._byte_of is None:
            with _refusals(self._told):
                return self._native.decode(whole, skip_special_tokens=True).encode("utf-8")
        return b"".join(map(self._bytes_of, whole))

    def stream(self) -> Callable[[int], bytes]:
        if self._byte_of is not None:
            return lambda token: self.decode_bytes((token,))
        return _WindowStream(self).push

    def _bytes_of(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode("utf-8")
        spelling = self._native.id_to_token(token)
        if spelling is None or self._byte_of is None:
            return b""  # a gap in the vocabulary
        return b"".join(self._byte_of.get(char) or char.encode("utf-8") for char in spelling)


def _refusals(told: str) -> AbstractContextManager[None]:
    """Make FormatError of what the library raises for a damaged file."""
    return refusals(lambda why: FormatError(f"{told}: {why}"))


class _WindowStream:
    """Text added by each id, where that depends on the ids before: the difference between two decodings.

    The window is cut where a decoding ended in whole characters, so that the cost of an id does not grow
    with the text.
    """

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._known = 0  # the window's ids whose text was given out

    def push(self, token: int) -> bytes:
        window = [*self._window, token]
        text = self._tokenizer.decode(window)  # refuses what is no id
        self._window = window
        given = self._tokenizer.decode(self._window[: self._known])
        if text.endswith("\ufffd") or not text.startswith(given):
            return b""
        self._window = self._window[self._known :]
        self._known = len(self._window)
        return text[len(given) :].encode("utf-8")


def tokenizer_for(
    kind: str, vocab_size: int, json: bytes | None = None, told: str = "tokenizer.json"
) -> Tokenizer:
    """The tokenizer that a model file names: `world`, `bytes`, `json` (with its bytes), or `none`.

    `vocab_size` is the model's number of rows, `told` what messages call a tokenizer.json. Raises UsageError for `none`, and FormatError for an unknown
    kind or a vocabulary that does not fit the model.
    """
    if kind == "none":
        raise UsageError(
            "the model file names no tokenizer",
            hint="`rwkv quantize SRC --tokenizer FILE` embeds one; token ids can be used without",
        )
    if kind == "world":
        if vocab_size < WORLD_IDS - 1:  # a few models leave the last id out
            raise FormatError(f"the World vocabulary has {WORLD_IDS} ids, but the model has {vocab_size}")
        return WorldTokenizer(vocab_size)
    tokenizer: Tokenizer
    if kind == "bytes":
        tokenizer = ByteTokenizer()
    elif kind == "json":
        if json is None:
            raise FormatError("the model file names an embedded tokenizer.json, but holds none")
        tokenizer = JsonTokenizer(json, told)
    else:
        raise FormatError(
            f"unknown tokenizer {kind[:40]!r}", hint="the file may need a newer version of rwkv"
        )
    if tokenizer.vocab_size > vocab_size:
        raise FormatError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model only {vocab_size}",
            hint="it belongs to another model",
        )
    return tokenizer


@lru_cache(maxsize=2)
def _world_kernel(vocab_size: int) -> _kernels.WorldTokenizer:
    """Shared by all models of the process: it never changes."""
    from rwkvcli import _kernels

    blob = Path(__file__).parent.parent.joinpath("data", "world_vocab.bin").read_bytes()
    try:
        return _kernels.WorldTokenizer(blob, vocab_size)
    except _kernels.FormatError as e:
        raise FormatError(str(e), hint="the installation is damaged: install it again") from None


def _whole_characters(data: bytes) -> bytes:
    """`data` without the beginning of a character at its end, if there is one."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
    return data


def _bad_ids(ids: Sequence[int], vocab_size: int) -> UsageError:
    try:
        for token in ids:
            if not 0 <= token < vocab_size:
                return UsageError(
                    f"token {token} is outside the vocabulary of {vocab_size}",
                    hint="it belongs to another vocabulary",
                )
    except (TypeError, ValueError):  # ValueError: rows of an array
        pass
    return UsageError("token ids must be whole numbers")


def _byte_level_alphabet() -> dict[str, bytes]:
    """Character to byte, as byte-level BPE spells them: printable Latin-1 as itself, others from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    alphabet.update({chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)})
    return alphabet
