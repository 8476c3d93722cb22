"""The World tokenizer: against the author's own, against a brute-force twin, and given damaged vocabularies."""

from __future__ import annotations

import hashlib
import json
import os
import random
import runpy
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import greedy, world_entries

import rwkvcli
from rwkvcli import _kernels
from rwkvcli.errors import UsageError
from rwkvcli.runtime.tokenizer import WorldTokenizer

ROOT = Path(__file__).parents[2]
BLOB = Path(rwkvcli.__file__).with_name("data").joinpath("world_vocab.bin").read_bytes()
ENTRIES = world_entries(BLOB)
GOLDEN = json.loads(ROOT.joinpath("tests", "golden", "world_tokens.json").read_text())
WORLD = WorldTokenizer()

TABLE = {
    "Hello world": [33155, 40213],
    "你好": [10464, 11685],
    "你好，世界": [10464, 11685, 19137, 10267, 14610],
    " 42": [3515],
    "😀": [3319, 153, 129],
    "\n": [11],
    "\n\n": [261],
    "\r\n": [263],
    "✿": [10060],
    "User: hi\n\nAssistant:": [24281, 59, 4571, 261, 5585, 41693, 59],
    "Assistant: <think": [5585, 41693, 59, 295, 35762],
    "\nElon Musk has": [11, 994, 2098, 29435, 21800],
    "The Eiffel tower is in the city of": [6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706],
    "User✿Hello✿\nBot✿<think": [24281, 10060, 33155, 10060, 11, 5645, 10060, 61, 35762],
}


@pytest.mark.parametrize("text", TABLE, ids=ascii)
def test_published_ids(text: str) -> None:
    assert WORLD.encode(text) == TABLE[text]
    assert WORLD.decode(TABLE[text]) == text


def test_recorded_ids() -> None:
    for text, ids in GOLDEN["cases"]:
        assert WORLD.encode_bytes(bytes.fromhex(text)) == ids
        assert WORLD.decode_bytes(ids) == bytes.fromhex(text)


def test_vocabulary_is_the_recorded_one() -> None:
    entries = [WORLD.decode_bytes([number]) for number in range(1, 65530)]
    digest = hashlib.sha256(b"".join(bytes([len(entry)]) + entry for entry in entries))
    assert digest.hexdigest() == GOLDEN["vocabulary"]
    assert list(ENTRIES) == entries


def test_every_entry_is_its_own_longest_match() -> None:
    assert WORLD.vocab_size == 65530
    assert all(WORLD.encode_bytes(entry) == [number] for entry, number in ENTRIES.items())
    assert all(ENTRIES[bytes([byte])] == byte + 1 for byte in range(256))


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8")))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_equals_brute_force(text: bytes) -> None:
    ids = WORLD.encode_bytes(text)
    assert ids == greedy(ENTRIES, text)
    assert WORLD.decode_bytes(ids) == text


def test_equals_brute_force_where_entries_nearly_match() -> None:
    generator = random.Random(1)
    entries = list(ENTRIES)
    for _ in range(500):
        # beginnings of long entries, joined: the longest walks that end without a match
        text = b"".join(
            e[: generator.randrange(1, len(e) + 1)] for e in generator.choices(entries[-3000:], k=4)
        )
        assert WORLD.encode_bytes(text) == greedy(ENTRIES, text)


@pytest.fixture(scope="module")
def reference() -> Any:
    module = pytest.importorskip("rwkv.rwkv_tokenizer")
    return module.TRIE_TOKENIZER(str(Path(module.__file__).with_name("rwkv_vocab_v20230424.txt")))


def test_equals_the_reference_package(reference: Any) -> None:
    assert reference.token2idx == ENTRIES
    generator = random.Random(2)
    entries = list(ENTRIES)
    for _ in range(300):
        text = b"".join(generator.choices(entries, k=20)) + generator.randbytes(20)
        assert WORLD.encode_bytes(text) == reference.encodeBytes(text)


@pytest.mark.skipif("RWKV_TEST_CORPUS" not in os.environ, reason="RWKV_TEST_CORPUS names no folder of texts")
def test_equals_the_reference_package_on_books(reference: Any) -> None:
    texts = sorted(Path(os.environ["RWKV_TEST_CORPUS"]).glob("*.txt"))
    assert texts
    for path in texts:
        text = path.read_bytes()
        ids = WORLD.encode_bytes(text)
        assert WORLD.decode_bytes(ids) == text
        assert WORLD.encode_bytes(text[:200_000]) == reference.encodeBytes(text[:200_000])


def test_the_blob_is_what_the_tool_makes(tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "make_world_vocab.py"))
    assert tool["pack"](list(ENTRIES)) == BLOB
    lines = ["1 b'\\xff' 1\r\n", "2 ' ' 1\n", '3 " it\'s" 5\n', "4 '\\u4f60' 3\n"]
    assert tool["parse"](lines) == [b"\xff", b" ", b" it's", "你".encode()]
    for bad in ["2 'a' 1", "1 'a' 2", "1 17 2", "1 __import__('os') 1", "1", ""]:
        with pytest.raises((ValueError, SyntaxError)):
            tool["parse"]([bad])


def test_ids_outside_the_vocabulary() -> None:
    assert WORLD.decode_bytes([0, 33155, 0]) == b"Hello"
    for ids in ([65530], [-1], [33155, 2**40], [2**70], ["33155"], [1.5]):
        with pytest.raises(UsageError):
            WORLD.decode_bytes(ids)  # type: ignore[arg-type]


def test_a_model_with_fewer_rows() -> None:
    longest = max(ENTRIES, key=len)
    assert WORLD.encode_bytes(longest) == [65529]
    fewer = WorldTokenizer(65529)
    assert fewer.vocab_size == 65529
    ids = fewer.encode_bytes(longest)
    assert max(ids) < 65529
    assert fewer.decode_bytes(ids) == longest
    with pytest.raises(UsageError):
        fewer.decode_bytes([65529])


def small_blob(entries: list[bytes], **changes: int) -> bytes:
    body = bytes(len(entry) for entry in entries) + b"".join(entries)
    fields = {"count": len(entries), "total": sum(map(len, entries)), "hash": fnv1a(body), **changes}
    return struct.pack("<8sIIQ", b"RWKVVOC\x01", fields["count"], fields["total"], fields["hash"]) + body


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


SINGLE = [bytes([byte]) for byte in range(256)]
SMALL = [*SINGLE, b"ab", b"abcd", b"bc", b"\x00\x00\x00", b"x" * 255]


def test_small_vocabulary() -> None:
    small = _kernels.WorldTokenizer(small_blob(SMALL))
    text = b"abcabcdxab\x00\x00\x00\x00" + b"x" * 600
    assert small.encode(text) == greedy(world_entries(small_blob(SMALL)), text)
    assert [small.token_bytes(i) for i in range(1, small.vocab_size)] == SMALL


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "layout"),
        (BLOB[:23], "layout"),
        (b"RWKVVOC\x02" + BLOB[8:], "layout"),
        (BLOB[:-1], "truncated"),
        (BLOB + b"\0", "truncated"),
        (BLOB[:-1] + b"\0", "checksum"),
        (small_blob(SMALL, count=2**32 - 1), "too large"),
        (small_blob(SMALL, total=2**32 - 1), "too large"),
        (small_blob(SMALL, hash=1), "checksum"),
        (small_blob([*SINGLE, b""]), "empty entry"),
        (small_blob([*SINGLE, b"ab", b"a", b"cd"]), "twice"),
        (small_blob([*SINGLE[1:], b"ab"]), "single byte"),
        (small_blob([]), "single byte"),
    ],
)
def test_damaged_vocabularies_are_refused(blob: bytes, message: str) -> None:
    with pytest.raises(_kernels.FormatError, match=message):
        _kernels.WorldTokenizer(blob)


def test_lengths_that_do_not_add_up() -> None:
    body = bytes([1] * 256 + [2]) + bytes(range(256)) + b"abc"
    blob = struct.pack("<8sIIQ", b"RWKVVOC\x01", 257, 259, fnv1a(body)) + body
    with pytest.raises(_kernels.FormatError, match="add up"):
        _kernels.WorldTokenizer(blob)


def test_mutated_vocabularies() -> None:
    """Any damage: refused, or (the checksum being made right again) a vocabulary that still encodes everything."""
    generator = random.Random(3)
    accepted = 0
    for _ in range(2000):
        blob = bytearray(small_blob(SMALL))
        for _ in range(generator.randrange(1, 4)):
            at = generator.choice([generator.randrange(24), generator.randrange(len(blob))])
            blob[at] = generator.randrange(256)
        if generator.random() < 0.1:
            del blob[generator.randrange(len(blob)) :]
        if generator.random() < 0.8 and len(blob) >= 24:
            blob[16:24] = fnv1a(bytes(blob[24:])).to_bytes(8, "little")
        try:
            tokenizer = _kernels.WorldTokenizer(bytes(blob))
        except _kernels.FormatError:
            continue
        accepted += 1
        text = generator.randbytes(50) + b"abcd" * 3
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 0 < accepted < 2000
