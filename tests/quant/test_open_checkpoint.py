"""Which reader opens what; files that are not checkpoints; files cut short or damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from quant.checkpoints import open_checkpoint
from quant.errors import FormatError, QuantError, SourceNotFound, UnsupportedModel
from quant.synthetic import write_safetensors


def test_content_decides_and_not_the_name(tiny_pth: Path, tiny_safetensors: Path, tmp_path: Path) -> None:
    for source, kind in ((tiny_pth, "pth"), (tiny_safetensors, "safetensors")):
        for name in ("a.bin", "b.pth", "c.safetensors", "no suffix"):
            path = tmp_path / name
            shutil.copy(source, path)
            with open_checkpoint(str(path)) as checkpoint:
                assert checkpoint.format == kind
                assert checkpoint.path == path
                assert checkpoint.arch.version == "7"


def test_both_formats_hold_the_same(
    tiny_pth: Path, tiny_safetensors: Path, tiny_tensors: dict[str, np.ndarray]
) -> None:
    with open_checkpoint(tiny_pth) as one, open_checkpoint(tiny_safetensors) as two:
        assert one.names == two.names == tuple(tiny_tensors)
        assert one.arch == two.arch
        assert one.nbytes == two.nbytes == sum(values.nbytes for values in tiny_tensors.values())
        assert two.metadata == {"origin": "test"}
        for name, values in tiny_tensors.items():
            assert np.array_equal(one.read(name), values.reshape(one.shape(name)))
            assert np.array_equal(two.read(name), values.reshape(two.shape(name)))
        assert one.shape("blocks.0.att.x_r") == (16,)


def test_aligned_float32_is_not_copied(tiny_pth: Path) -> None:
    with open_checkpoint(tiny_pth) as checkpoint:
        one = checkpoint.read("emb.weight")
        two = checkpoint.read("emb.weight")
        assert np.shares_memory(one, two)
    assert one.sum() == two.sum()  # still mapped after close
    checkpoint.close()


def test_sha256_with_progress(tiny_pth: Path) -> None:
    calls: list[tuple[int, int]] = []
    with open_checkpoint(tiny_pth) as checkpoint:
        digest = checkpoint.sha256(lambda done, total: calls.append((done, total)))
    assert digest == hashlib.sha256(tiny_pth.read_bytes()).hexdigest()
    assert calls[-1] == (tiny_pth.stat().st_size, tiny_pth.stat().st_size)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"none\.pth does not exist") as caught:
        open_checkpoint(tmp_path / "none.pth")
    assert caught.value.exit_code == 3
    with pytest.raises(SourceNotFound, match="is a folder") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == "pass a checkpoint file"
    (tmp_path / "one.pth").write_bytes(b"1")
    with pytest.raises(SourceNotFound) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == f"pass {tmp_path / 'one.pth'} instead"
    (tmp_path / "two.safetensors").write_bytes(b"1")
    with pytest.raises(SourceNotFound) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint == "pass one of its 2 model files"
    with pytest.raises(SourceNotFound, match="cannot be read"):
        open_checkpoint("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")


CONTENTS: dict[str, tuple[bytes, str, type[QuantError]]] = {
    "empty": (b"", "is empty", FormatError),
    "one byte": (b"P", "1 bytes long", FormatError),
    "text": (b"hello, this is some text", "is not a checkpoint", FormatError),
    "zeros": (bytes(1000), "is not a checkpoint", FormatError),
    "empty GGUF": (b"GGUF\3\0\0\0" + bytes(50), "holds no tensors", FormatError),
    "old GGUF": (b"GGUF\1\0\0\0" + bytes(50), "GGUF file of version 1", UnsupportedModel),
    "big-endian GGUF": (b"GGUF\0\0\0\3" + bytes(50), "big-endian", UnsupportedModel),
    "empty ggmf": (struct.pack("<6i", 0x67676D66, 101, 256, 64, 12, 0), "holds no tensors", FormatError),
    "old ggmf": (struct.pack("<6i", 0x67676D66, 99, 256, 64, 12, 0), "of version 99", UnsupportedModel),
    "ggml": (struct.pack("<6i", 0x67676D6C, 101, 256, 64, 12, 0), "ggml", UnsupportedModel),
    "bare pickle": (b"\x80\x02}q\x00.............", "a bare pickle", FormatError),
    "old torch": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "torch before 1.6", UnsupportedModel),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git LFS pointer",
        FormatError,
    ),
    "web page": (b"<!DOCTYPE html><html>", "web page", FormatError),
    "shard index": (
        b'{"metadata": {}, "weight_map": {"a": "b"}}',
        "end in .index.json|index of several",
        FormatError,
    ),
    "zip": (b"PK\3\4" + bytes(100), "is truncated", FormatError),
    "empty zip": (b"PK\5\6" + bytes(18), "not one written by torch.save", FormatError),
    "no tensors": (b"\2\0\0\0\0\0\0\0{}", "holds no tensors", FormatError),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_other_contents_are_named(tmp_path: Path, case: str) -> None:
    content, words, kind = CONTENTS[case]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def open_and_read(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names:
            checkpoint.read(name)


def expect_refusal(path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        open_and_read(path)
    assert "\n" not in str(caught.value)


def test_truncated_pth(tiny_pth: Path, tmp_path: Path) -> None:
    data = tiny_pth.read_bytes()
    cuts = {1, 2, 3, 4, 5, 30, len(data) - 1, len(data) - 21, len(data) - 22, len(data) - 23}
    with zipfile.ZipFile(tiny_pth) as archive:
        cuts.update((archive.start_dir - 1, archive.start_dir, archive.start_dir + 1, archive.start_dir + 46))
        for member in archive.infolist():
            cuts.update((member.header_offset, member.header_offset + 30, member.header_offset + 64))
    path = tmp_path / "cut.pth"
    for cut in sorted(cuts - {0}):
        path.write_bytes(data[:cut])
        expect_refusal(path)


def test_truncated_safetensors(tiny_safetensors: Path, tmp_path: Path) -> None:
    data = tiny_safetensors.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = {1, 7, 8, 9, 10, 100, header - 1, header, header + 1, len(data) - 1, len(data) - 64}
    path = tmp_path / "cut.safetensors"
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        expect_refusal(path)
    for tail in (b"\0", b"more"):
        path.write_bytes(data + tail)
        expect_refusal(path)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def test_damaged_archive_directory(tiny_pth: Path, tmp_path: Path) -> None:
    data = tiny_pth.read_bytes()
    end = data.rindex(b"PK\5\6")
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    third = data.index(b"PK\1\2", second + 4)
    damaged = {
        "disk number": patched(data, end + 4, b"\1\0"),
        "fewer entries here": patched(data, end + 8, b"\1\0"),
        "more entries than fit": patched(data, end + 8, b"\xff\xff\xff\xff"),
        "directory past the end": patched(data, end + 16, b"\xff\xff\xff\x7f"),
        "directory too long": patched(data, end + 12, b"\xff\xff\xff\x7f"),
        "comment past the end": patched(data, end + 20, b"\5\0"),
        "entry signature": patched(data, second, b"XX"),
        "encrypted": patched(data, first + 8, b"\1"),
        "compressed": patched(data, first + 10, b"\x08"),
        "sizes differ": patched(data, third + 20, b"\1\0\0\0"),
        "member too long": patched(data, third + 20, b"\xff\xff\xff\x0f" * 2),
        "sizes wide without field": patched(data, third + 20, b"\xff\xff\xff\xff" * 2),
        "offset past the end": patched(data, third + 42, b"\xff\xff\xff\x7f"),
        "offset of another": patched(data, third + 42, bytes(4)),
        "name too long": patched(data, first + 28, b"\xff\xff"),
        "extra too long": patched(data, first + 30, b"\xff\xff"),
        "local signature": patched(data, 0, b"XX"),
        "local name": patched(data, 30, b"X"),
        "local extra too long": patched(data, 28, b"\xff\xff"),
        "pickle changed": patched(data, data.index(b"emb.weight"), b"EMB"),
        "two members of one name": data[:first] + data[first:].replace(b"archive/data/2", b"archive/data/1"),
    }
    path = tmp_path / "damaged.pth"
    for case, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value), case


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """A member that lies inside another one's data."""
    inner = b"PK\3\4" + struct.pack("<5H3I2H", 0, 0, 0, 0, 0, 0, 1, 1, 1, 0) + b"b" + b"!"
    name = b"root/data.pkl"
    sizes = struct.pack("<2I", len(inner), len(inner))
    outer = (
        b"PK\3\4"
        + struct.pack("<5HI", 0, 0, 0, 0, 0, 0)
        + sizes
        + struct.pack("<2H", len(name), 0)
        + name
        + inner
    )
    central = b""
    for member, size, offset in ((name, len(inner), 0), (b"b", 1, len(outer) - len(inner))):
        central += b"PK\1\2" + struct.pack(
            "<6H3I5H2I", 0, 0, 0, 0, 0, 0, 0, size, size, len(member), 0, 0, 0, 0, 0, offset
        )
        central += member
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 2, 2, len(central), len(outer), 0)
    path = tmp_path / "overlap.pth"
    path.write_bytes(outer + central + end)
    with pytest.raises(FormatError, match="overlaps"):
        open_checkpoint(path)


def test_no_heavy_imports() -> None:
    code = "import sys, quant.checkpoints.pth, quant.checkpoints.safetensors, quant.synthetic; "
    code += "print([name for name in ('torch', 'rwkvcli', 'safetensors') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_part_of_a_model_is_called_one(tmp_path: Path, tiny_tensors: dict[str, np.ndarray]) -> None:
    half = {name: tensor for name, tensor in tiny_tensors.items() if not name.startswith("ln_out")}
    for number, count, tensors in ((2, 3, half), (1, 1, half), (1, 2, tiny_tensors)):
        path = tmp_path / f"model-{number:05}-of-{count:05}.safetensors"
        write_safetensors(path, tensors)
        with open_checkpoint(path) as checkpoint:
            if tensors is tiny_tensors:
                assert checkpoint.arch.version == "7"
                continue
            with pytest.raises(FormatError) as caught:
                _ = checkpoint.arch
        assert ("is part 2 of 3 of a model in several files" in str(caught.value)) == (count == 3)
