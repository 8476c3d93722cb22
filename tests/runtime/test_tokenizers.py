"""Byte and tokenizer.json vocabularies, ids one by one, and which tokenizer a model file gets."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vocabularies import SAMPLE, byte_level_json, word_level_json

from rwkvcli.errors import FormatError, UsageError
from rwkvcli.runtime.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, WorldTokenizer, tokenizer_for


@pytest.fixture(scope="module")
def bpe() -> JsonTokenizer:
    return JsonTokenizer(byte_level_json())


@given(st.binary(max_size=60))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_byte_capable_tokenizers_round_trip_any_bytes(data: bytes) -> None:
    for tokenizer in (ByteTokenizer(), WorldTokenizer()):
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert tokenizer.decode(ids) == data.decode("utf-8", "replace")
        assert tokenizer.encode(data.decode("utf-8", "surrogateescape")) == ids
        stream = tokenizer.stream()
        assert b"".join(map(stream, ids)) == data


def test_bytes_are_their_own_ids() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\0") == [0xC3, 0xA9, 0]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (256, 0)
    for ids in ([256], [-1], [1.5], ["a"]):
        with pytest.raises(UsageError):
            tokenizer.decode_bytes(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc7f"])
def test_halves_of_surrogate_pairs(text: str) -> None:
    with pytest.raises(UsageError, match="surrogate"):
        ByteTokenizer().encode(text)


@given(text=st.text(max_size=40) | st.sampled_from([SAMPLE, "né  né", "e\u0301", " " * 9, "\n\n"]))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_json_equals_the_library(bpe: JsonTokenizer, text: str) -> None:
    import unicodedata

    from tokenizers import Tokenizer as Native

    assume("<|endoftext|>" not in text)  # has no text; see below

    native = Native.from_str(byte_level_json().decode())
    ids = bpe.encode(text)
    assert ids == native.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids) == unicodedata.normalize("NFC", text)
    if "né" not in text:  # the library takes the é of the added token for a spelled byte
        assert bpe.decode(ids) == native.decode(ids)
    stream = bpe.stream()
    assert b"".join(map(stream, ids)) == bpe.decode_bytes(ids)


def test_json_ids_that_end_inside_a_character(bpe: JsonTokenizer) -> None:
    ids = bpe.encode("😸")
    assert len(ids) > 1  # not in the training text: single bytes
    assert bpe.decode_bytes(ids[:1]) == "😸".encode()[: len(bpe.decode_bytes(ids[:1]))]
    assert bpe.decode(ids[:1]) == "\ufffd"


def test_json_special_tokens_have_an_id_but_no_text(bpe: JsonTokenizer) -> None:
    assert bpe.eos_id == 0
    assert bpe.encode("a<|endoftext|>b")[1] == 0
    assert bpe.decode(bpe.encode("a<|endoftext|>b")) == "ab"
    assert (
        bpe.vocab_size == max(json.loads(byte_level_json())["model"]["vocab"].values()) + 1 + 2
    )  # two added


def test_json_refuses_what_is_not_text(bpe: JsonTokenizer) -> None:
    with pytest.raises(UsageError, match="byte 1 "):
        bpe.encode_bytes(b"a\xff")
    with pytest.raises(UsageError):
        bpe.encode("a\udcff")
    for ids in ([bpe.vocab_size], [-1]):
        with pytest.raises(UsageError):
            bpe.decode(ids)


def test_json_settings_for_training_do_not_cut_a_prompt() -> None:
    cutting = byte_level_json(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    )
    assert JsonTokenizer(cutting).encode(SAMPLE) == JsonTokenizer(byte_level_json()).encode(SAMPLE)


@pytest.mark.parametrize("vocabulary", [byte_level_json, word_level_json])
def test_json_refuses_what_is_no_id_and_streams_on(vocabulary: Callable[[], bytes]) -> None:
    tokenizer = JsonTokenizer(vocabulary())
    stream, expected = tokenizer.stream(), tokenizer.stream()
    assert stream(1) == expected(1)
    for bad in (1.5, "a", None, -1, tokenizer.vocab_size, 2**70):
        for refuses in (stream, lambda token: tokenizer.decode([1, token])):
            with pytest.raises(UsageError, match="token"):
                refuses(bad)  # type: ignore[operator]
    assert stream(2) == expected(2)
    with pytest.raises(UsageError, match="whole numbers"):
        tokenizer.decode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[1, 3, 2], [1], [2, 2, 2, 3], []])
def test_json_streams_what_depends_on_neighbours(ids: list[int]) -> None:
    tokenizer = JsonTokenizer(word_level_json())
    assert tokenizer.encode("pitch 60 wait") == [1, 3, 2]
    stream = tokenizer.stream()
    assert b"".join(map(stream, ids)).decode() == tokenizer.decode(ids)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}', b"[" * 10_000, b"null"])
def test_json_refuses_other_files(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        JsonTokenizer(data)


def test_the_tokenizer_of_a_model_file() -> None:
    kinds: list[tuple[Tokenizer, type, int]] = [
        (tokenizer_for("world", 65536), WorldTokenizer, 65530),
        (tokenizer_for("world", 65529), WorldTokenizer, 65529),
        (tokenizer_for("bytes", 256), ByteTokenizer, 256),
        (tokenizer_for("bytes", 300), ByteTokenizer, 256),
        (tokenizer_for("json", 50277, byte_level_json()), JsonTokenizer, 312),
    ]
    for tokenizer, kind, size in kinds:
        assert isinstance(tokenizer, kind)
        assert (tokenizer.vocab_size, tokenizer.eos_id) == (size, 0)
    with pytest.raises(UsageError) as none:
        tokenizer_for("none", 65536)
    assert none.value.exit_code == 2
    assert none.value.hint is not None and "rwkv quantize" in none.value.hint
    assert "--tokenizer FILE" in none.value.hint


@pytest.mark.parametrize(
    ("kind", "rows", "data"),
    [
        ("world", 50277, None),
        ("bytes", 128, None),
        ("json", 300, byte_level_json()),
        ("json", 300, None),
        ("x", 9, None),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model(kind: str, rows: int, data: bytes | None) -> None:
    with pytest.raises(FormatError):
        tokenizer_for(kind, rows, data)
