"""Text to token ids and back with a model's vocabulary: what `rwkv tokenize` and `rwkv detokenize` do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rwkvcli.errors import SourceNotFound, UsageError

if TYPE_CHECKING:
    from rwkvcli.runtime.tokenizer import Tokenizer

Vocabulary: TypeAlias = "Tokenizer"
"""For callers above the runtime."""

_MAX_DIGITS = 18


def tokenizer_of(path: Path) -> Tokenizer:
    """The vocabulary of a model file, or the one that a checkpoint's size implies; weights are not read.

    Raises what opening raises, UsageError if the file knows none, FormatError if it does not fit.
    """
    from quant.container.reader import ModelFile
    from quant.frame import implied_tokenizer
    from quant.sources import open_model
    from rwkvcli.runtime.tokenizer import tokenizer_for

    with open_model(path) as opened:
        size = opened.arch.vocab_size
        if isinstance(opened, ModelFile):
            return tokenizer_for(opened.tokenizer, size, opened.tokenizer_bytes())
        return tokenizer_for(implied_tokenizer(size), size)


def tokenizer_named(name: str) -> Tokenizer:
    """`world`, `bytes`, or the file of a tokenizer.json. Raises SourceNotFound, FormatError."""
    from rwkvcli.runtime.tokenizer import ByteTokenizer, JsonTokenizer, WorldTokenizer

    if name == "world":
        return WorldTokenizer()
    if name == "bytes":
        return ByteTokenizer()
    hint = "--tokenizer takes world, bytes or a tokenizer.json file"
    try:
        path = Path(name).expanduser()
        if not name:
            raise SourceNotFound("the name of the vocabulary is empty", hint=hint)
        if path.is_dir():  # Windows says that it may not be read
            raise SourceNotFound(f"{name}: is a directory", hint=hint)
        data = path.read_bytes()
    except RuntimeError:  # expanduser's
        raise SourceNotFound(f"{name}: there is no such home folder", hint=hint) from None
    except OSError as e:
        raise SourceNotFound(f"{name}: {(e.strerror or str(e)).lower()}", hint=hint) from None
    return JsonTokenizer(data, name)


def described(tokenizer: Tokenizer, ids: list[int]) -> dict[str, Any]:
    """`ids`, their `count`, and the text of each (`tokens`, bytes that are no characters replaced)."""
    texts = [tokenizer.decode_bytes((token,)).decode("utf-8", "replace") for token in ids]
    return {"ids": ids, "count": len(ids), "tokens": texts}


def parse_ids(words: Iterable[str]) -> list[int]:
    """Ids out of words: numbers between spaces, commas, brackets. Raises UsageError for anything else."""
    ids = []
    for word in words:
        for part in re.split(r"[\s,\[\]]+", word):
            if not part:
                continue
            if not (part.isascii() and part.isdigit() and len(part) <= _MAX_DIGITS):
                raise UsageError(f"`{part[:40]}` is not a token id", hint="ids are whole numbers from 0 up")
            ids.append(int(part))
    return ids
