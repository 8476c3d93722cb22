"""Small vocabularies for tests."""

from __future__ import annotations

import json
from typing import Any

SAMPLE = "The cat sat on the mat. Où est-il? 你好，世界 😀\n\n    indented  twice\n" * 3


def byte_level_json(**changes: Any) -> bytes:
    """A small byte-level BPE like GPT-NeoX's: special token 0, added tokens for runs of spaces."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Native

    native = Native(models.BPE())
    native.normalizer = normalizers.NFC()
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    native.train_from_iterator([SAMPLE], trainer)
    native.add_tokens([AddedToken("    ", normalized=False), AddedToken("né", normalized=False)])
    return json.dumps({**json.loads(native.to_str()), **changes}).encode()


def word_level_json() -> bytes:
    """A vocabulary without byte-level spelling: the text of an id depends on its neighbours (a space between)."""
    from tokenizers import Tokenizer as Native
    from tokenizers import models, pre_tokenizers

    native = Native(models.WordLevel({"<unk>": 0, "pitch": 1, "wait": 2, "60": 3}, unk_token="<unk>"))
    native.pre_tokenizer = pre_tokenizers.Whitespace()
    return bytes(native.to_str(), "utf-8")
