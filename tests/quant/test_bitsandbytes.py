"""Tensors quantized by the real bitsandbytes on the CPU, saved as the transformers save them, against its own decoder."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import other_tools
import pytest

from quant.checkpoints import open_checkpoint
from quant.errors import FormatError, UnsupportedModel
from quant.synthetic import make_checkpoint

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes.functional")

LINEAR = ("att.key.weight", "att.output.weight", "ffn.key.weight", "ffn.value.weight")


@pytest.fixture(scope="module")
def model() -> Mapping[str, np.ndarray]:
    return make_checkpoint("7", 2, 48, 20, 8, n_ffn=104, ranks=(5, 7, 3, 9))


def saved(tensors: Mapping[str, np.ndarray], path: Path, made: Mapping[str, Mapping[str, Any]]) -> Path:
    """`tensors` in the layout of `Rwkv7ForCausalLM`, some of them as `made` has them."""
    flat = {name: array for name, array in tensors.items() if name not in made}
    flat |= {name + part: array for name, parts in made.items() for part, array in parts.items()}
    return other_tools.rwkv7_of_2026(flat, path)


def four_bits(
    array: np.ndarray, kind: str, nested: bool, dtype: Any
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a 4-bit layer leaves in a state dict, and bitsandbytes' own values of it in float32."""
    weight = torch.from_numpy(array.copy()).to(dtype)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
    parts = {"": codes.numpy()}
    parts |= {f".{name}": value.numpy() for name, value in state.as_dict(packed=True).items()}
    state.dtype = torch.float32  # the products are in float32; the layer's own dtype would only round them
    # As one row: with AVX-512, bitsandbytes 0.50 mistakes blocks that cross the rows of a matrix.
    state.shape = torch.Size([1, array.size])
    return parts, bnb.dequantize_4bit(codes, state).numpy()


@pytest.mark.parametrize(("kind", "nested"), [("nf4", False), ("nf4", True), ("fp4", True)])
def test_four_bits(model: Mapping[str, np.ndarray], tmp_path: Path, kind: str, nested: bool) -> None:
    made, wanted = {}, {}
    for name in (n for n in model if n.endswith(LINEAR)):
        made[name], wanted[name] = four_bits(model[name], kind, nested, torch.bfloat16)
    with open_checkpoint(saved(model, tmp_path / "m.safetensors", made)) as opened:
        assert opened.arch.version == "7" and opened.quantized == kind
        assert len(opened.names) == len(model)
        for name, array in model.items():
            values = opened.read(name)
            assert np.array_equal(values, wanted.get(name, array).reshape(values.shape)), name
        assert opened.stored("blocks.1.att.key.weight") == (kind, 48 * 48 // 2)


def test_eight_bits(model: Mapping[str, np.ndarray], tmp_path: Path) -> None:
    made, wanted = {}, {}
    for name in (n for n in model if n.endswith(LINEAR)):
        codes, scale, _ = bnb.int8_vectorwise_quant(torch.from_numpy(model[name]).half())
        wanted[name] = bnb.int8_vectorwise_dequant(codes, scale).numpy()
        stem = name.removesuffix("weight")
        made[name] = {"": codes.numpy()}
        made[stem] = {"SCB": scale.numpy(), "weight_format": np.uint8(0)[None]}
    path = saved(model, tmp_path / "m.safetensors", made)
    with open_checkpoint(path) as opened:
        assert opened.quantized == "int8 (bitsandbytes)" and len(opened.names) == len(model)
        for name, array in model.items():
            values = opened.read(name)
            assert np.array_equal(values, wanted.get(name, array).reshape(values.shape)), name
    made["blocks.0.att.key."]["weight_format"] = np.uint8(2)[None]
    with pytest.raises(UnsupportedModel, match="tiled for a processor"):
        open_checkpoint(saved(model, path, made))
    made["blocks.0.att.key."]["weight_format"] = np.empty(0, np.uint8)
    with open_checkpoint(saved(model, path, made)) as opened:  # which says nothing
        assert opened.quantized == "int8 (bitsandbytes)"


def test_damaged_states(model: Mapping[str, np.ndarray], tmp_path: Path) -> None:
    name = "blocks.0.ffn.key.weight"
    parts, _ = four_bits(model[name], "nf4", True, torch.float32)
    state = ".quant_state.bitsandbytes__nf4"
    said = json.loads(parts[state].tobytes())

    def refused(changed: Mapping[str, Any], words: str) -> None:
        good = {part: array for part, array in {**parts, **changed}.items() if array is not None}
        with pytest.raises(FormatError, match=words):
            open_checkpoint(saved(model, tmp_path / "m.safetensors", {name: good}))

    for key in ("absmax", "quant_map", "nested_absmax", "nested_quant_map"):
        refused({f".{key}": None}, f"its {key} is missing")
        refused({f".{key}": parts[f".{key}"][:-1]}, f"its {key} is missing or not")
    refused({"": parts[""][:-1]}, "its bytes do not hold")
    for change in ({"blocksize": 0}, {"shape": [2**40, 2**40]}, {"shape": None}, {"nested_offset": "x"},
                   {"nested_offset": 10**400}):  # fmt: skip
        data = np.frombuffer(json.dumps(said | change).encode(), np.uint8)
        refused({state: data}, "quantization state")


def test_one_large_nested_block_takes_no_more_memory(model: Mapping[str, np.ndarray], tmp_path: Path) -> None:
    """A file of a few kB may not ask for the gigabytes that its block sizes speak of."""
    name = "blocks.0.ffn.key.weight"
    parts, _ = four_bits(model[name], "nf4", True, torch.float32)
    state = ".quant_state.bitsandbytes__nf4"
    said = json.loads(parts[state].tobytes())
    with open_checkpoint(saved(model, tmp_path / "a.safetensors", {name: parts})) as opened:
        wanted = opened.read(name)
    assert parts[".nested_absmax"].shape == (1,)
    parts[state] = np.frombuffer(json.dumps(said | {"nested_blocksize": 2**32 - 1}).encode(), np.uint8)
    with open_checkpoint(saved(model, tmp_path / "b.safetensors", {name: parts})) as opened:
        tracemalloc.start()
        values = opened.read(name)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert np.array_equal(values, wanted) and most < 1 << 20
