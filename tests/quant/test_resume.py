"""Interrupted quantization that goes on: the same file, and no tensor made twice that need not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quant_models import checkpoint, odd_arch, quantized

from quant.arrays import F32, Array
from quant.container.reader import ModelFile
from quant.errors import Cancelled
from quant.methods import numpy_encoder
from quant.synthetic import SyntheticModel, write_safetensors


class CountingEncoder:
    """Counts what it encodes, and may be interrupted."""

    def __init__(self, stop_at: int = 0, method: str = "nearest") -> None:
        self.method, self.stop_at, self.count = method, stop_at, 0

    def encode(self, w: F32, encoding: str, layout: str, importance: F32 | None = None) -> dict[str, Array]:
        self.count += 1
        if self.count == self.stop_at:
            raise KeyboardInterrupt
        return numpy_encoder(self.method).encode(w, encoding, layout, importance)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "m.pth", odd_arch("4"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_goes_on_where_it_was(small: Path, tmp_path: Path) -> None:
    whole = CountingEncoder()
    quantized(small, tmp_path / "whole", "int4", encoder=whole)
    first = CountingEncoder(6)
    with pytest.raises(KeyboardInterrupt):
        quantized(small, tmp_path / "o", "int4", encoder=first, resume=True)
    assert names(tmp_path) == [".o.journal", ".o.part", "m.pth", "whole"]
    second = CountingEncoder()
    done: list[int] = []
    result = quantized(
        small, tmp_path / "o", "int4", encoder=second, resume=True, on_progress=lambda p: done.append(p.done)
    )
    assert second.count == whole.count - 5
    assert names(tmp_path) == ["m.pth", "o", "whole"]
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()
    assert done == sorted(done) and done[-1] == result.classes[-1].weights


def test_it_says_so_when_asked_to_stop(small: Path, tmp_path: Path) -> None:
    calls: list[object] = []
    with pytest.raises(Cancelled, match="the same command goes on from here"):
        quantized(
            small, tmp_path / "o", "int8", resume=True, on_progress=calls.append,
            should_stop=lambda: len(calls) > 4,
        )  # fmt: skip
    assert names(tmp_path) == [".o.journal", ".o.part", "m.pth"]


@pytest.mark.parametrize("damage", ["bytes", "journal", "method", "kind", "source", "size"])
def test_what_is_not_of_the_same_work_is_made_again(small: Path, tmp_path: Path, damage: str) -> None:
    whole = CountingEncoder()
    with pytest.raises(KeyboardInterrupt):
        quantized(small, tmp_path / "o", "int4", encoder=CountingEncoder(6), resume=True)
    kind, method = "int4", "nearest"
    part, journal = tmp_path / ".o.part", tmp_path / ".o.journal"
    if damage == "bytes":
        with part.open("r+b") as file:
            file.seek(part.stat().st_size - 300)  # of the last tensor that was done
            file.write(bytes(np.frombuffer(file.read(200), np.uint8) ^ 1))
    elif damage == "size":
        part.write_bytes(b"")
    elif damage == "journal":
        journal.write_bytes(journal.read_bytes()[:-5] + b"\xff{")
    elif damage == "source":
        checkpoint(small, odd_arch("4"), seed=1)
    method = "codebook" if damage == "method" else method
    kind = "int8" if damage == "kind" else kind
    quantized(small, tmp_path / "whole", kind, encoder=CountingEncoder(method=method))
    quantized(small, tmp_path / "o", kind, encoder=CountingEncoder(method=method), resume=True)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()
    assert names(tmp_path) == ["m.pth", "o", "whole"]
    assert whole.count == 0


def test_an_ordinary_run_removes_what_was_kept(small: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantized(small, tmp_path / "o", "int4", encoder=CountingEncoder(6), resume=True)
    quantized(small, tmp_path / "o", "int8")
    with ModelFile.open(tmp_path / "o") as model:
        assert model.recipe == "int8"
    assert names(tmp_path) == ["m.pth", "o"]
    (tmp_path / ".o.journal").write_text("of somebody else\n")
    quantized(small, tmp_path / "o", "int4", force=True)
    assert (tmp_path / ".o.journal").exists()


@pytest.mark.parametrize(
    "line", ["5", "null", "[]", '["a"]', '["emb.weight", "x", 1]', '["emb.weight", "x", "a", "b", "c"]',
             '["emb.weight", 5, 1, 2, 3]', '["emb.weight", "x", 1, 2, 1' + "0" * 400 + "]"]
)  # fmt: skip
def test_a_damaged_line_of_the_journal_ends_it(small: Path, tmp_path: Path, line: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantized(small, tmp_path / "o", "int4", encoder=CountingEncoder(6), resume=True)
    journal = tmp_path / ".o.journal"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], lines[1], line.encode(), *lines[2:]]))
    whole, rest = CountingEncoder(), CountingEncoder()
    quantized(small, tmp_path / "whole", "int4", encoder=whole)
    quantized(small, tmp_path / "o", "int4", encoder=rest, resume=True)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()
    assert rest.count == whole.count - 1  # the embedding was done


def test_what_follows_half_a_line_is_kept(small: Path, tmp_path: Path) -> None:
    """A line that was being written when the machine stopped must not spoil the next one."""
    with pytest.raises(KeyboardInterrupt):
        quantized(small, tmp_path / "o", "int4", encoder=CountingEncoder(4), resume=True)
    journal = tmp_path / ".o.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    with pytest.raises(KeyboardInterrupt):
        quantized(small, tmp_path / "o", "int4", encoder=CountingEncoder(4), resume=True)
    whole, rest = CountingEncoder(), CountingEncoder()
    quantized(small, tmp_path / "whole", "int4", encoder=whole)
    quantized(small, tmp_path / "o", "int4", encoder=rest, resume=True)
    assert rest.count == whole.count - 5


def test_another_file_in_the_folder_of_the_source_is_noticed(tmp_path: Path) -> None:
    """Written over in place, it leaves the folder's own time as it was."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "rwkv"}')
    for seed in (0, 1):
        write_safetensors(tmp_path / str(seed), SyntheticModel(odd_arch("4"), seed))
    (folder / "model.safetensors").write_bytes((tmp_path / "0").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        quantized(folder, tmp_path / "o", "int4", encoder=CountingEncoder(6), resume=True)
    (folder / "model.safetensors").write_bytes((tmp_path / "1").read_bytes())
    whole, again = CountingEncoder(), CountingEncoder()
    quantized(folder, tmp_path / "whole", "int4", encoder=whole)
    quantized(folder, tmp_path / "o", "int4", encoder=again, resume=True)
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()
    assert again.count == whole.count
