"""The validating safetensors reader, against the stock library and against damaged headers."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import safetensors_file
from quant.errors import FormatError, SourceNotFound
from quant.safetensors_file import SafetensorsFile


def raw_file(path: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_agrees_with_the_stock_library(tmp_path: Path) -> None:
    stock = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(1)
    arrays = {
        "float": random.standard_normal((3, 5)).astype(np.float32),
        "half": random.standard_normal((7,)).astype(np.float16),
        "bytes": np.arange(5, dtype=np.uint8),
        "long": np.arange(-3, 3, dtype=np.int64).reshape(2, 3),
        "flags": np.array([True, False, True]),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float64),
    }
    path = tmp_path / "a.safetensors"
    stock.save_file(arrays, path, metadata={"key": "värde"})
    with SafetensorsFile(path) as file:
        assert set(file.header) == set(arrays)
        assert file.metadata == {"key": "värde"}
        for name, values in arrays.items():
            assert file.header[name].shape == values.shape
            assert np.array_equal(file.array(name), values)
            assert not file.array(name).flags.writeable
            assert bytes(file.buffer(name)) == values.tobytes()
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        kept = file.array("float")
    assert np.array_equal(kept, arrays["float"])


def test_bf16_is_given_as_bits_and_data_may_be_unaligned(tmp_path: Path) -> None:
    header = {"b": entry("BF16", [2], 1, 5), "a": entry("U8", [1], 0, 1)}
    path = raw_file(tmp_path / "a", json.dumps(header), b"\xff\x80\x3f\x00\xc0")
    with SafetensorsFile(path) as file:
        assert list(file.header) == ["a", "b"]
        assert file.array("b").tolist() == [0x3F80, 0xC000]


def test_progress_of_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.mapped_file.HASH_CHUNK", 4)
    path = raw_file(tmp_path / "a", "{}")
    calls: list[tuple[int, int]] = []
    with SafetensorsFile(path) as file:
        assert (
            file.sha256(lambda done, total: calls.append((done, total)))
            == hashlib.sha256(path.read_bytes()).hexdigest()
        )
    assert calls == [(4, 10), (8, 10), (10, 10)]


ONE = entry("F32", [2], 0, 8)
BAD_ENTRIES: dict[str, dict[str, Any]] = {
    "past the end": {"a": entry("F32", [4], 0, 16)},
    "far past the end": {"a": entry("U8", [2**61], 0, 2**61)},
    "wrong size": {"a": entry("F32", [3], 0, 8)},
    "overlap": {"a": ONE, "b": entry("F32", [1], 4, 8)},
    "same range": {"a": ONE, "b": ONE},
    "hole": {"a": entry("F32", [1], 4, 8)},
    "hole inside": {"a": entry("U8", [1], 0, 1), "b": entry("U8", [6], 2, 8)},
    "data left over": {"a": entry("F32", [1], 0, 4)},
    "no tensor covers": {},
    "backwards": {"a": entry("F32", [2], 8, 0)},
    "negative offset": {"a": entry("F32", [2], -8, 0)},
    "negative size": {"a": entry("F32", [-2], 0, 8)},
    "two negative sizes": {"a": entry("F32", [-2, -1], 0, 8)},
    "overflowing product": {"a": entry("F32", [2**33, 2**33], 0, 8)},
    "overflow to zero": {"a": entry("U8", [2**32, 2**32, 2**32], 0, 0), "b": entry("U8", [8], 0, 8)},
    "huge size": {"a": entry("F32", [2**70, 0], 0, 8)},
    "float size": {"a": entry("F32", [2.0], 0, 8)},
    "bool size": {"a": entry("F32", [True, 2], 0, 8)},
    "text size": {"a": entry("F32", ["2"], 0, 8)},
    "shape no list": {"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
    "rank": {"a": entry("U8", [1] * 33 + [8], 0, 8)},
    "three offsets": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}},
    "offsets no list": {"a": {"dtype": "F32", "shape": [2], "data_offsets": 8}},
    "unknown dtype": {"a": entry("Q4", [2], 0, 8)},
    "dtype no text": {"a": {"dtype": 4, "shape": [2], "data_offsets": [0, 8]}},
    "half a byte": {"a": entry("F4", [15], 0, 8)},
    "missing key": {"a": {"dtype": "F32", "shape": [2]}},
    "extra key": {"a": {**ONE, "more": 1}},
    "entry no object": {"a": [1]},
    "metadata no object": {"__metadata__": [], "a": ONE},
    "metadata no texts": {"__metadata__": {"k": 1}, "a": ONE},
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_bad_entries_are_refused(tmp_path: Path, case: str) -> None:
    path = raw_file(tmp_path / "bad", json.dumps(BAD_ENTRIES[case]), bytes(8))
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


TEXT = json.dumps(ONE)
BAD_TEXT: dict[str, str | bytes] = {
    "empty": "",
    "no JSON": "{a}",
    "cut": '{"a":',
    "array": "[]",
    "number": "12",
    "space first": " {}",
    "more after": "{}{}",
    "zeros after": "{}\0\0",
    "duplicate tensor": f'{{"a":{TEXT},"a":{TEXT}}}',
    "duplicate key": '{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "duplicate metadata": f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{TEXT}}}',
    "NaN": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "bad UTF-8": b'{"\xff":1}',
    "deep": "{" + '"a":{' * 50_000,
    "deep lists": '{"a":' + "[" * 200_000,
    "long number": '{"a":{"dtype":"F32","shape":[' + "9" * 10_000 + '],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_refused(tmp_path: Path, case: str) -> None:
    path = raw_file(tmp_path / "bad", BAD_TEXT[case], bytes(8))
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_header_length_is_limited(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "bad", "{}", length=safetensors_file.MAX_HEADER + 1)
    with pytest.raises(FormatError, match="over the limit"):
        SafetensorsFile(path)
    with pytest.raises(FormatError, match="truncated"):
        SafetensorsFile(raw_file(tmp_path / "bad", "{}", length=3))
    with pytest.raises(FormatError):
        SafetensorsFile(raw_file(tmp_path / "bad", "{}", length=2**64 - 1))


def test_names_cannot_hurt_the_terminal(tmp_path: Path) -> None:
    header = {"\x1b[31mred\r\n" + "x" * 500: entry("F32", [3], 0, 8)}
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(raw_file(tmp_path / "bad", json.dumps(header), bytes(8)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_unknown_names_and_unreadable_dtypes(tmp_path: Path) -> None:
    with SafetensorsFile(
        raw_file(tmp_path / "a", json.dumps({"a": entry("F4", [16], 0, 8)}), bytes(8))
    ) as file:
        with pytest.raises(FormatError, match="no tensor b"):
            file.array("b")
        with pytest.raises(FormatError, match="F4"):
            file.array("a")
        assert len(file.buffer("a")) == 8


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="does not exist"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(SourceNotFound, match="folder"):
        SafetensorsFile(tmp_path)
