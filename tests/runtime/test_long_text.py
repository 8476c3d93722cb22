"""Texts read and encoded in pieces: the ids of the whole text, wherever it is cut."""

from __future__ import annotations

import io
import random

import pytest
from text_oracles import world_entries
from vocabularies import SAMPLE, byte_level_json, word_level_json

from rwkvcli.cli.prompt import normalized
from rwkvcli.errors import NotUtf8
from rwkvcli.runtime import long_text, tokenizer
from rwkvcli.runtime.long_text import encode_long, read_text
from rwkvcli.runtime.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, WorldTokenizer


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut texts of a few thousand bytes in many places."""
    monkeypatch.setattr(long_text, "PIECE", 300)
    monkeypatch.setattr(tokenizer, "_CONTEXT", 100)


def texts() -> list[bytes]:
    """Ordinary text, and what is hard to cut: no spaces, long runs, many bytes to a character, no text at all."""
    generator = random.Random(5)
    words = SAMPLE.split(" ")
    return [
        SAMPLE.encode() * 20,
        " ".join(generator.choice(words) for _ in range(2000)).encode(),
        ("x" * 400 + " " * 300 + "\n" * 400 + "你好，世界" * 300 + "😀" * 200 + "né    é" * 100).encode(),
        b"a",
    ]


def rejoined(vocabulary: Tokenizer, text: bytes, size: int = 217) -> list[int]:
    """Ids of `text`, given in pieces of `size` bytes; how many bytes they stand for is checked."""
    found = list(encode_long(vocabulary, [text[at : at + size] for at in range(0, len(text), size)]))
    assert sum(piece.nbytes for piece in found) == len(text)
    assert len(found) > 3 or len(text) < 3000
    return [token for piece in found for token in piece.ids]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("number", range(4))
def test_the_ids_are_those_of_the_whole_text(number: int) -> None:
    text = texts()[number]
    for vocabulary in (ByteTokenizer(), WorldTokenizer(), JsonTokenizer(byte_level_json())):
        whole = vocabulary.encode_bytes(text)
        for size in (1, 217, 5000):
            assert rejoined(vocabulary, text, size) == whole


@pytest.mark.usefixtures("small_pieces")
def test_bytes_that_are_no_text() -> None:
    generator = random.Random(6)
    data = bytes(generator.randrange(256) for _ in range(5000))
    for vocabulary in (ByteTokenizer(), WorldTokenizer()):
        assert rejoined(vocabulary, data) == vocabulary.encode_bytes(data)


def test_no_world_token_is_longer_than_what_is_kept_back() -> None:
    from pathlib import Path

    import rwkvcli

    blob = Path(rwkvcli.__file__).with_name("data").joinpath("world_vocab.bin").read_bytes()
    assert max(map(len, world_entries(blob))) <= tokenizer.LONGEST_WORLD_TOKEN


@pytest.mark.usefixtures("small_pieces")
def test_a_world_token_of_any_length_at_a_cut() -> None:
    world = WorldTokenizer()
    longest = max((world.decode_bytes([i]) for i in range(world.vocab_size)), key=len)
    for shift in range(0, 160, 7):
        text = b"x" * shift + longest * 30
        assert rejoined(world, text) == world.encode_bytes(text)


@pytest.mark.usefixtures("small_pieces")
def test_text_without_white_space_is_cut_the_same_way_however_it_comes() -> None:
    vocabulary = JsonTokenizer(byte_level_json())
    text = "你好é".encode() * 400  # no white space
    assert vocabulary.decode_bytes(rejoined(vocabulary, text)) == text
    assert rejoined(vocabulary, text, 1) == rejoined(vocabulary, text, 5000)


@pytest.mark.usefixtures("small_pieces")
def test_words_between_spaces() -> None:
    vocabulary = JsonTokenizer(word_level_json())
    text = b"wait  60 pitch\n" * 300
    assert rejoined(vocabulary, text) == vocabulary.encode_bytes(text)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("position", [0, 599, 600, 601, 2345, 3599])
def test_the_place_of_what_is_not_utf8(position: int) -> None:
    text = bytearray("été ".encode() * 600)
    text[position] = 0xFF
    with pytest.raises(NotUtf8) as caught:
        rejoined(JsonTokenizer(byte_level_json()), bytes(text))
    assert caught.value.position in (position - 1, position)  # the first half of the character that it ends
    with pytest.raises(NotUtf8, match="byte 2 of the text"):
        rejoined(JsonTokenizer(byte_level_json()), b"ab\xc3")


@pytest.mark.usefixtures("small_pieces")
def test_text_is_read_as_prompts_are() -> None:
    generator = random.Random(7)
    for _ in range(300):
        parts = [b"\xef\xbb\xbf", b"\r\n", b"\n", b"\r", b"abc", b"x" * 295]
        data = b"".join(generator.choices(parts, k=generator.randrange(8)))
        assert b"".join(read_text(io.BytesIO(data))) == normalized(data), data
