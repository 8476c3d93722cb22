"""Model files: what is in them, who can read them, what is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quant_models import checkpoint, odd_arch, quantized
from safetensors import safe_open

from quant.container.header import Entry, place, render
from quant.container.reader import ModelFile
from quant.container.writer import ContainerWriter
from quant.errors import FormatError, InvalidRequest, NoSpace, SourceNotFound
from quant.safetensors_file import SafetensorsFile
from quant.synthetic import SyntheticModel, write_safetensors

Header = dict[str, Any]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("container")
    source = checkpoint(folder / "m.pth", odd_arch("7"))
    quantized(source, folder / "m.safetensors", "int4", ffn_value="kn", tokenizer_json=b'{"model": {}}')
    return folder / "m.safetensors"


@pytest.fixture
def altered(model_path: Path, tmp_path: Path) -> Callable[[Callable[[Header], None]], Path]:
    """Write the model file with its header changed by a function; data stay where they are."""

    def write(change: Callable[[Header], None]) -> Path:
        data = model_path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
        path = tmp_path / "altered.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        return path

    return write


def change_json(key: str, **values: Any) -> Callable[[Header], None]:
    """A change of fields of a metadata value that holds JSON; the value ... removes one."""

    def change(header: Header) -> None:
        inner = json.loads(header["__metadata__"][key])
        for name, value in values.items():
            if value is ...:
                del inner[name]
            else:
                inner[name] = value
        header["__metadata__"][key] = json.dumps(inner)

    return change


def change_plan(tensor: str, **values: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        plan = json.loads(header["__metadata__"]["plan"])
        plan[tensor] |= values
        header["__metadata__"]["plan"] = json.dumps(plan)

    return change


def test_every_tensor_is_aligned_and_padding_is_zero(model_path: Path) -> None:
    with SafetensorsFile(model_path) as file:
        assert file.data_begin % 64 == 0
        pads = [name for name in file.header if name.startswith("_pad.")]
        assert pads == [f"_pad.{i}" for i in range(len(pads))] and pads
        for name, info in file.header.items():
            if name in pads:
                assert info.end % 64 == 0 and not any(file.buffer(name))
            else:
                assert info.begin % 64 == 0


def test_tensors_lie_in_the_order_of_use(model_path: Path) -> None:
    with ModelFile.open(model_path) as model:
        offsets = [part.offset for plan in model.plan.values() for part in plan.parts]
        assert offsets == sorted(offsets)
        names = list(model.plan)
        assert names[0] == "emb.weight" and names[-1] == "head.weight"
        order = [names.index(f"blocks.1.{part}.weight") for part in ("ln1", "att.key", "ln2", "ffn.key")]
        assert order == sorted(order)


def test_the_stock_reader_opens_it(model_path: Path) -> None:
    with ModelFile.open(model_path) as model, safe_open(model_path, "np") as stock:
        assert stock.metadata() == model.metadata
        names = list(stock.keys())
        pads = {name for name in names if name.startswith("_pad.")}
        assert set(names) - set(model.tensors) == pads
        data = model_path.read_bytes()
        for name, plan in model.plan.items():
            parts = model.parts(name)
            for part in plan.parts:
                array = stock.get_tensor(f"{name}.{part.name}" if part.name else name)
                assert np.array_equal(array, parts[part.name])
                assert array.tobytes() == data[part.offset : part.offset + part.nbytes]


def test_accessors(model_path: Path) -> None:
    with ModelFile.open(model_path) as model:
        assert model.arch == odd_arch("7") and model.group_norm_eps == 64e-5
        assert model.tokenizer == "json" and model.tokenizer_bytes() == b'{"model": {}}'
        assert model.template == "none" and model.recipe == "int4, ffn.value kn"
        assert model.method == "codebook" and model.calibration == "none" and model.quantized
        assert model.source["file"] == "m.pth" and model.source["dtype"] == "f32"
        assert model.size == model_path.stat().st_size
        assert model.plan["blocks.0.ffn.value.weight"].layout == "kn"
        assert [part.name for part in model.plan["blocks.0.ffn.value.weight"].parts] == ["q", "d", "cb"]
        with pytest.raises(FormatError, match="no tensor"):
            model.decode("blocks.7.ln1.weight")
        with pytest.raises(InvalidRequest, match="quantized"):
            model.rows("head.weight", 0, 1)


@pytest.mark.parametrize("writer", ["header", "stock"])
def test_a_checkpoint_is_not_a_model_file(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "c.safetensors"
    write_safetensors(
        path, SyntheticModel(odd_arch("4")), metadata={"format": "pt"} if writer == "stock" else None
    )
    with pytest.raises(FormatError, match="is a checkpoint, not a model file") as caught:
        ModelFile.open(path)
    assert f"rwkv quantize {path} --to int8" in str(caught.value.hint)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SourceNotFound):
            ModelFile.open(path)


def set_version(header: Header) -> None:
    header["__metadata__"]["format_version"] = "3"


def remove_method(header: Header) -> None:
    del header["__metadata__"]["method"]


def unknown_tokenizer(header: Header) -> None:
    header["__metadata__"]["tokenizer"] = "gpt2"


def world_with_file(header: Header) -> None:
    header["__metadata__"]["tokenizer"] = "world"


def no_json(header: Header) -> None:
    header["__metadata__"]["plan"] = "{"


def json_list(header: Header) -> None:
    header["__metadata__"]["arch"] = "[]"


def twice(header: Header) -> None:
    header["__metadata__"]["source"] = '{"a": 1, "a": 2}'


def nan_report(header: Header) -> None:
    header["__metadata__"]["report"] = '{"a": NaN}'


def rename_part(header: Header) -> None:
    header["head.weight.x"] = header.pop("head.weight.s")


def wrong_dtype(header: Header) -> None:
    header["head.weight.s"]["dtype"] = "U8"


def extra_tensor(header: Header) -> None:
    header["extra"] = header.pop("_pad.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_version, "version 3"),
        (remove_method, "lack method"),
        (unknown_tokenizer, "tokenizer gpt2"),
        (world_with_file, "unexpected tensor tokenizer.json"),
        (no_json, "plan is not valid JSON"),
        (json_list, "arch is not a JSON object"),
        (twice, "source is not valid JSON"),
        (nan_report, "report is not valid JSON"),
        (rename_part, "head.weight.s is missing"),
        (wrong_dtype, "head.weight.s is U8"),
        (extra_tensor, "unexpected tensor extra"),
        (change_json("arch", version="8"), "known version"),
        (change_json("arch", n_layer=10**9), "no sizes"),
        (change_json("arch", n_embd=True), "no sizes"),
        (change_json("arch", n_head=5), "do not make"),
        (change_json("arch", n_layer=3), "disagree about tensor blocks.2"),
        (change_json("arch", n_ffn=105), r"ffn.key.weight has shape \[104, 48\], not \[105, 48\]"),
        (change_json("arch", rank_gate=...), "known version"),
        (change_json("arch", group_norm_eps=0), "epsilon"),
        (change_json("arch", group_norm_eps=...), "epsilon"),
        (change_json("arch", group_norm_eps=1e-50), "epsilon"),  # 0 where it is computed with
        (change_json("plan", **{"head.weight": ...}), "disagree about tensor head.weight"),
        (change_plan("head.weight", encoding="q4g32"), "head.weight.q is"),
        (change_plan("head.weight", layout="row"), "head.weight has a form that it may not have"),
        (change_plan("head.weight", layout="kn"), "may not have"),
        (change_plan("emb.weight", layout="t16x4"), "may not have"),
        (change_plan("blocks.1.att.key.weight", layout="row"), "may not have"),
        (change_plan("blocks.1.att.w1", layout="kn"), "may not have"),
        (change_plan("blocks.1.ffn.value.weight", layout="row"), "may not have"),
        (change_plan("blocks.1.ffn.key.weight", encoding="f16"), "may not have"),
        (change_plan("blocks.1.att.r_k", encoding="q8g32", layout="t16x4"), "may not have"),
        (change_plan("blocks.1.att.r_k", encoding="bf16"), "may not have"),
        (
            change_plan("ln_out.weight", encoding="f16"),
            "ln_out.weight has a form that it may not have: f16, row",
        ),
        (change_plan("head.weight", encoding="q2g8"), "unknown form"),
        (change_plan("head.weight", encoding=["q8g32"]), "unknown form"),
        (change_plan("ln_out.weight", encoding="q8g32"), "may not have"),
        (change_plan("ln_out.weight", more=1), "not an encoding"),
        (change_plan("ln_out.weight", shape=[True]), "has shape"),
    ],
)
def test_wrong_headers_are_refused(
    altered: Callable[[Callable[[Header], None]], Path], change: Callable[[Header], None], message: str
) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        ModelFile.open(altered(change))
    if message == "unknown form":  # of a newer program, perhaps
        assert "upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("head.weight", "d"), np.float32(np.nan), "row scales"),
        (("head.weight", "d"), np.float32(-1), "row scales"),
        (("blocks.0.ffn.key.weight", "cb"), np.uint8(0), "codebook"),
        (("blocks.0.ffn.key.weight", "cb"), np.uint8(127), "codebook"),
        (("ln_out.bias", ""), np.float32(np.inf), "NaN or infinite"),
        (("blocks.0.att.r_k", ""), np.float32(np.nan), "NaN or infinite"),
    ],
)
def test_wrong_values_are_refused(
    model_path: Path, tmp_path: Path, where: tuple[str, str], value: np.generic, message: str
) -> None:
    tensor, part = where
    with ModelFile.open(model_path) as model:
        offset = next(p.offset for p in model.plan[tensor].parts if p.name == part)
    data = bytearray(model_path.read_bytes())
    data[offset : offset + value.nbytes] = value.tobytes()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        ModelFile.open(path)


def test_tables_of_five_bits_begin_at_their_zero(tmp_path: Path) -> None:
    source, path = checkpoint(tmp_path / "m.pth", odd_arch("7")), tmp_path / "m.safetensors"
    quantized(source, path, "int5")
    with ModelFile.open(path) as model:
        offset = next(p.offset for p in model.plan["blocks.0.att.key.weight"].parts if p.name == "cb")
    data = bytearray(path.read_bytes())
    data[offset] = 63  # a table of 4 bits could begin so
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"a codebook that is not 16 ascending bytes in 64\.\.127"):
        ModelFile.open(path)


def test_truncated_files_are_refused(model_path: Path, tmp_path: Path) -> None:
    data = model_path.read_bytes()
    path = tmp_path / "short.safetensors"
    for size in (1, 7, 8, 100, len(data) // 2, len(data) - 64, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            ModelFile.open(path)


ENTRIES = [Entry("a", "F32", (3,)), Entry("b", "U8", (64,)), Entry("c", "I8", (2, 5))]


def test_placing_fills_gaps_and_only_gaps() -> None:
    assert [(item.entry.name, item.begin) for item in place(ENTRIES)] == [
        ("a", 0), ("_pad.0", 12), ("b", 64), ("c", 128),
    ]  # fmt: skip


def test_headers_are_padded_and_sorted() -> None:
    text = render(place(ENTRIES), {"z": "1", "a": "2"})
    assert len(text) % 64 == 0 and int.from_bytes(text[:8], "little") == len(text) - 8
    assert text[8:].startswith(b'{"__metadata__":{"a":"2","z":"1"},"a":')
    assert render(place(ENTRIES), {}, 1024).endswith(b" ") and len(render(place(ENTRIES), {}, 1024)) == 1024


def write_small(path: Path) -> None:
    with ContainerWriter(path, ENTRIES, {"k": ""}, 64) as writer:
        writer.write("c", np.arange(10, dtype=np.int8).reshape(2, 5))
        writer.write("a", np.ones(2, np.float32), 4)
        writer.write("a", np.zeros(1, np.float32))
        writer.write("b", np.full(64, 7, np.uint8))
        writer.finish({"k": "final"})


def test_writing_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_small(path)
    with SafetensorsFile(path) as file:
        assert file.metadata == {"k": "final"}
        assert file.array("a").tolist() == [0, 1, 1]
        assert file.array("c").tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(failure), ContainerWriter(path, ENTRIES, {}, 64) as writer:
        writer.write("b", np.zeros(64, np.uint8))
        assert len(list(tmp_path.iterdir())) == 2
        raise failure
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_incomplete_files_are_never_put_in_place(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="not written"),
        ContainerWriter(tmp_path / "x", ENTRIES, {}, 0) as writer,
    ):
        writer.finish({})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_and_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = [Entry("a", "U8", (1 << 55,))]
    with pytest.raises(NoSpace, match=r"x needs 36028797 GB, and .* free"):
        ContainerWriter(tmp_path / "x", huge, {}, 0)
    for number, kind, message in (
        (errno.ENOSPC, NoSpace, "the disk is full: .*x needs 394 B"),
        (errno.EFBIG, NoSpace, "x needs 394 B: more than a file may have here"),
        (errno.EIO, OSError, "x'$"),
    ):
        writer = ContainerWriter(tmp_path / "x", ENTRIES, {}, 0)
        with pytest.raises(kind, match=message), writer:
            monkeypatch.setattr(writer._new, "file", _FullDisk(writer._new.file, number))
            writer.write("b", np.zeros(64, np.uint8))
        assert not list(tmp_path.iterdir())


class _FullDisk:
    """A file that takes ten bytes and no more."""

    def __init__(self, file: io.FileIO, number: int) -> None:
        self.file, self.left, self.number = file, 10, number

    def seek(self, at: int) -> None:
        self.file.seek(at)

    def write(self, data: memoryview) -> int:
        if not self.left:
            raise OSError(self.number, os.strerror(self.number))
        self.left = 0
        return self.file.write(data[:10])

    def close(self) -> None:
        self.file.close()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        ContainerWriter(tmp_path / "none" / "x", ENTRIES, {}, 0)
    (tmp_path / ".x.part").mkdir()
    with (
        pytest.raises(InvalidRequest, match="cannot be written"),
        ContainerWriter(tmp_path / "x", ENTRIES, {}, 0),
    ):
        pass


@pytest.mark.parametrize("key", ["method", "source"])
def test_half_a_surrogate_pair_is_no_text(
    altered: Callable[[Callable[[Header], None]], Path], key: str
) -> None:
    def change(header: Header) -> None:
        header["__metadata__"][key] = "\ud800" if key == "method" else '{"file": "\\ud800"}'

    with pytest.raises(FormatError, match="not valid JSON"):
        ModelFile.open(altered(change))
