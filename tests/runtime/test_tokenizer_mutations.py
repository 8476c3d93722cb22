"""A tokenizer.json with random damage: refused with FormatError, or one that works; nothing else."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from vocabularies import byte_level_json, word_level_json

from rwkvcli.errors import FormatError, UsageError
from rwkvcli.runtime.tokenizer import JsonTokenizer

CASES = int(os.environ.get("RWKV_MUTATION_CASES", "2000")) // 4
JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    1.5,
    "",
    "x",
    "ByteLevel",
    [],
    [0],
    {},
    {"type": "BPE"},
    "\ud800",
]
TEXT = "The cat sat on the mat. 你好 😀\n\n  twice"


def replaced(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one member, at any depth, replaced or removed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(JUNK)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], *([] if rng.random() < 0.2 else [replaced(value[at], rng)]), *value[at + 1 :]]
    result, key = dict(value), rng.choice(list(value))
    match rng.randrange(6):
        case 0:
            del result[key]
        case 1:
            result[rng.choice(list(value))] = result.pop(key)
        case _:
            result[key] = replaced(value[key], rng)
    return result


def works(data: bytes) -> bool:
    """Whether the file is taken; what is taken encodes to valid ids, and streams what it decodes."""
    try:
        tokenizer = JsonTokenizer(data)
    except FormatError as error:
        assert str(error).startswith("tokenizer.json")
        return False
    try:
        ids = tokenizer.encode(TEXT)
    except (FormatError, UsageError):
        return False
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert 0 <= tokenizer.eos_id < tokenizer.vocab_size
    stream = tokenizer.stream()
    streamed = b"".join(map(stream, ids))
    assert not tokenizer.has_own_bytes or streamed == tokenizer.decode_bytes(ids)
    assert isinstance(tokenizer.decode(ids), str)
    return True


@pytest.mark.parametrize("make", [byte_level_json, word_level_json])
def test_damaged_structure(make: Any) -> None:
    whole, rng = json.loads(make()), random.Random(21)
    taken = sum(works(json.dumps(replaced(whole, rng)).encode()) for _ in range(CASES))
    assert 0 < taken < CASES


@pytest.mark.parametrize("make", [byte_level_json, word_level_json])
def test_damaged_bytes(make: Any) -> None:
    whole, rng = make(), random.Random(22)
    taken = 0
    for _ in range(CASES):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at] = rng.randrange(256)
                case _:
                    del data[at : at + rng.randint(1, 50)]
        taken += works(bytes(data))
    assert 0 < taken < CASES
