"""torch zip files: made by torch where it is there, by the standard library's zipfile otherwise."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.checkpoints import open_checkpoint
from quant.checkpoints.torch_pickle import TensorRef, load
from quant.errors import FormatError, UnsupportedModel


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str = "0",
    count: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    storage: str = "FloatStorage",
) -> bytes:
    """Opcodes that push one tensor, written by hand after torch's pickles."""
    identity = (
        b"("
        + text("storage")
        + f"ctorch\n{storage}\n".encode()
        + text(key)
        + text("cpu")
        + number(count)
        + b"tQ"
    )
    arguments = identity + number(offset) + sizes(shape) + sizes(stride) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def dictionary(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def archive(pickle: bytes, *storages: bytes, **members: bytes) -> dict[str, bytes]:
    result = {"root/data.pkl": b"\x80\x02" + pickle + b"."}
    result |= {f"root/data/{index}": data for index, data in enumerate(storages)}
    return result | {f"root/{name}": data for name, data in members.items()}


SIX = np.arange(6, dtype="<f4").tobytes()


def refused(path: Path, words: str | None, kind: type[FormatError] = FormatError) -> None:
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_hand_made_file(make_zip: Any) -> None:
    path = make_zip(archive(dictionary(a=tensor()), SIX, byteorder=b"little", version=b"3\n"))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "pth"
        assert checkpoint.names == ("a",)
        assert checkpoint.shape("a") == (2, 3)
        assert checkpoint.dtype("a") == "f32"
        assert checkpoint.nbytes == 24
        assert checkpoint.file_size == path.stat().st_size
        assert checkpoint.read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(FormatError, match="no tensor b"):
            checkpoint.read("b")


VIEWS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], list[Any]]] = {
    "transposed": (0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),
    "tail": (2, (4,), (1,), [2, 3, 4, 5]),
    "every second": (1, (3,), (2,), [1, 3, 5]),
    "scalar": (5, (), (), 5),
    "empty": (6, (0, 3), (3, 1), []),
    "vector of [1, 1, C]": (0, (1, 1, 6), (99, 99, 1), [0, 1, 2, 3, 4, 5]),
    "overlapping rows": (0, (2, 3), (1, 1), [[0, 1, 2], [1, 2, 3]]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(make_zip: Any, view: str) -> None:
    offset, shape, stride, values = VIEWS[view]
    path = make_zip(archive(dictionary(a=tensor(offset=offset, shape=shape, stride=stride)), SIX))
    with open_checkpoint(path) as checkpoint:
        array = checkpoint.read("a")
        assert array.tolist() == values
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert not array.flags.writeable
        assert checkpoint.read_raw("a").tolist() == values


BAD_VIEWS: dict[str, dict[str, Any]] = {
    "offset past the end": {"offset": 1},
    "offset far past the end": {"offset": 2**61},
    "negative offset": {"offset": -1},
    "shape past the end": {"shape": (3, 3)},
    "negative size": {"shape": (-2, 3)},
    "negative stride": {"stride": (-3, 1), "offset": 3},
    "stride past the end": {"stride": (4, 1)},
    "huge stride": {"stride": (2**61, 1)},
    "huge shape": {"shape": (2**61, 2**61)},
    "repeated by stride 0": {"shape": (1000, 6), "stride": (0, 1)},
    "ranks differ": {"stride": (1,)},
    "rank 17": {"shape": (1,) * 17, "stride": (1,) * 17},
    "larger storage claimed": {"count": 7},
    "smaller storage claimed": {"count": 5, "shape": (1,), "stride": (1,)},
    "negative storage": {"count": -6},
    "other item size": {"storage": "HalfStorage"},
    "missing storage": {"key": "1"},
    "storage outside the folder": {"key": "../data.pkl"},
}


@pytest.mark.parametrize("case", BAD_VIEWS)
def test_views_outside_the_storage_are_refused(make_zip: Any, case: str) -> None:
    refused(make_zip(archive(dictionary(a=tensor(**BAD_VIEWS[case])), SIX)), None)


def test_shared_storage(make_zip: Any) -> None:
    both = dictionary(a=tensor(shape=(3,), stride=(1,)), b=tensor(shape=(3,), stride=(1,), offset=3))
    with open_checkpoint(make_zip(archive(both, SIX))) as checkpoint:
        assert checkpoint.read("a").tolist() == [0, 1, 2]
        assert checkpoint.read("b").tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("storage", "dtype", "name"),
    [
        ("LongStorage", "<i8", "i64"),
        ("DoubleStorage", "<f8", "f64"),
        ("ByteStorage", "u1", "u8"),
        ("BoolStorage", "?", "bool"),
        ("IntStorage", "<i4", "i32"),
        ("ComplexFloatStorage", "<c8", "c64"),
    ],
)
def test_other_dtypes_are_refused_by_name_when_read(
    make_zip: Any, storage: str, dtype: str, name: str
) -> None:
    pickle = dictionary(a=tensor(), odd=tensor(key="1", storage=storage))
    with open_checkpoint(make_zip(archive(pickle, SIX, np.zeros(6, dtype).tobytes()))) as checkpoint:
        assert checkpoint.dtype("odd") == name
        assert checkpoint.read("a").shape == (2, 3)
        for read in (checkpoint.read, checkpoint.read_raw):
            with pytest.raises(FormatError, match=f"odd is {name};"):
                read("odd")


def test_half_precision(make_zip: Any) -> None:
    halves = np.array([1, -2, 0.5, 65504, 6e-8, 0], "<f2")
    brains = np.array([0x3F80, 0xC000, 0x0001, 0x7F7F, 0x8000, 0x4049], "<u2")
    pickle = dictionary(h=tensor(storage="HalfStorage"), b=tensor(key="1", storage="BFloat16Storage"))
    with open_checkpoint(make_zip(archive(pickle, halves.tobytes(), brains.tobytes()))) as checkpoint:
        assert np.array_equal(checkpoint.read("h").ravel(), halves.astype(np.float32))
        assert np.array_equal(checkpoint.read("b").ravel().view(np.uint32), brains.astype(np.uint32) << 16)
        assert checkpoint.read_raw("h").dtype == np.float16
        assert np.array_equal(checkpoint.read_raw("b").ravel(), brains)
        assert checkpoint.dtype("b") == "bf16"


def test_nan_and_infinity_are_counted(make_zip: Any) -> None:
    values = np.array([1, np.nan, np.inf, -np.inf, 2, 3], "<f4")
    for storage, data in (("FloatStorage", values), ("HalfStorage", values.astype("<f2"))):
        with open_checkpoint(
            make_zip(archive(dictionary(a=tensor(storage=storage)), data.tobytes()))
        ) as checkpoint:
            with pytest.raises(FormatError, match="tensor a has 3 values that are NaN or infinite"):
                checkpoint.read("a")
            assert np.isnan(checkpoint.read("a", check_finite=False)[0, 1])


NESTED = {
    "state_dict": dictionary(state_dict=dictionary(a=tensor()), epoch=b"K\x05", note=text("hi")),
    "model": dictionary(model=dictionary(a=tensor()), optimizer=b"}"),
    "tensors of the training beside them": dictionary(rng=tensor(), model=dictionary(a=tensor())),
    "module in state_dict": dictionary(state_dict=dictionary(module=dictionary(a=tensor()))),
}


@pytest.mark.parametrize("case", NESTED)
def test_nested_weights(make_zip: Any, case: str) -> None:
    with open_checkpoint(make_zip(archive(NESTED[case], SIX))) as checkpoint:
        assert checkpoint.names == ("a",)
        if case == "state_dict":
            assert checkpoint.metadata == {"epoch": "5", "note": "hi"}


@pytest.mark.parametrize(
    "prefix", ["module.", "_forward_module.", "model.", "_orig_mod.", "_forward_module.model."]
)
def test_training_prefixes_are_stripped(make_zip: Any, prefix: str) -> None:
    pickle = dictionary(
        **{f"{prefix}emb.weight": tensor(), f"{prefix}blocks.0.ln1.bias": tensor(), "other": tensor()}
    )
    with open_checkpoint(make_zip(archive(pickle, SIX))) as checkpoint:
        assert checkpoint.names == ("emb.weight", "blocks.0.ln1.bias", "other")
        assert checkpoint.read("emb.weight").shape == (2, 3)


def test_two_names_that_become_one_are_refused(make_zip: Any) -> None:
    pickle = dictionary(**{"module.emb.weight": tensor(), "emb.weight": tensor()})
    refused(make_zip(archive(pickle, SIX)), "are both emb.weight")


@pytest.mark.parametrize("key", ["_strategy", "_version", "_rescale_layer"])
def test_converted_chatrwkv_files_are_refused(make_zip: Any, key: str) -> None:
    pickle = dictionary(a=tensor(), **{key: text("cuda fp16i8")})
    refused(make_zip(archive(pickle, SIX)), "converted by ChatRWKV", UnsupportedModel)


def test_archives_that_are_not_torch_files(make_zip: Any) -> None:
    good = archive(dictionary(a=tensor()), SIX)
    refused(make_zip({"a.npy": b"1"}), "not one written by torch.save")
    refused(make_zip({**good, "two/data.pkl": b""}), "not one written by torch.save")
    refused(make_zip({**good, "root/constants.pkl": b""}), "TorchScript", UnsupportedModel)
    refused(make_zip({**good, "root/byteorder": b"big"}), "big-endian", UnsupportedModel)
    refused(make_zip(good, compression=zipfile.ZIP_DEFLATED), "compressed")
    refused(make_zip(archive(dictionary(a=b"K\x05"))), "holds no tensors")
    refused(make_zip(archive(b"}")), "holds no tensors")
    refused(make_zip(archive(b"]")), "does not hold a dict")
    refused(make_zip(archive(tensor(), SIX)), "does not hold a dict")


def test_protocol_4_pickles_are_understood() -> None:
    identity = (
        b"("
        + text("storage")
        + text("torch")
        + text("FloatStorage")
        + b"\x93\x8c\x010"
        + text("cpu")
        + b"K\x06tQ"
    )
    rebuild = (
        text("torch._utils")
        + text("_rebuild_tensor_v2")
        + b"\x93("
        + identity
        + b"K\x00K\x06\x85K\x01\x85\x89}tR"
    )
    loaded = load(b"\x80\x04}\x94" + b"\x8c\x01a" + rebuild + b"\x94s.", "x")
    assert loaded == {"a": TensorRef(("f32", "0", 6), 0, (6,), (1,))}  # type: ignore[arg-type]


def test_torch_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shared = torch.randn(40)
    square = torch.randn(6, 6)
    tensors = {
        "f32": torch.randn(3, 4),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(2, 3, 4).bfloat16(),
        "transposed": torch.randn(4, 7).bfloat16().t(),
        "first": shared[:8],
        "second": shared[8:].view(4, 8),
        "strided": square[1::2, ::3],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "vector": torch.randn(1, 1, 9),
    }
    path = tmp_path / "real.pth"
    for options in ({}, {"pickle_protocol": 4}, {"pickle_protocol": 5}):
        torch.save(tensors, path, **options)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.names == tuple(tensors)
            for name, value in tensors.items():
                want = value.detach().float().numpy()
                assert np.array_equal(checkpoint.read(name).reshape(want.shape), want), name
            assert checkpoint.shape("vector") == (9,)


def test_torch_state_dict_of_a_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    path = tmp_path / "module.pth"
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names == ("0.weight", "0.bias", "1.weight", "1.bias")
        assert np.array_equal(checkpoint.read("0.weight"), module[0].weight.detach().numpy())


def test_a_torch_pickled_module_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, "torch.nn.modules.linear.Linear")


def test_old_torch_files_are_refused_with_a_hint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedModel, match=r"torch before 1\.6") as caught:
        open_checkpoint(path)
    assert caught.value.hint is not None
    assert "again" in caught.value.hint


def test_torch_files_without_checksums(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("a").tolist() == [1, 1, 1]


def test_the_stride_of_an_axis_of_one_means_nothing(make_zip: Any) -> None:
    wide = 1 << 61  # more bytes than numpy counts
    pickle = dictionary(w=tensor(shape=(1, 2, 3), stride=(wide, 3, 1)))
    with open_checkpoint(make_zip(archive(pickle, SIX))) as opened:
        assert opened.read("w").tolist() == [[[0, 1, 2], [3, 4, 5]]]
