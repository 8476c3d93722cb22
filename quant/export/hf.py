"""A folder for the Hugging Face transformers: model.safetensors and config.json.

v7 as flash-linear-attention has it, v4 as the transformers do, 5.2 and 6 as the remote code of the `RWKV` organisation. The
code itself and the tokenizer's are not written: v4 is part of the transformers, fla is a package, and repositories of
5.2 and 6 carry their own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quant.arch import Arch, stored_shape
from quant.arrays import F32
from quant.atomic import whole_file
from quant.checkpoints.hf_config import LAYER_NORM_EPS
from quant.checkpoints.layouts import fla
from quant.checkpoints.layouts.piece import suffix_of
from quant.checkpoints.write import write_safetensors
from quant.errors import InvalidRequest
from quant.export.outgoing import Outgoing, OutgoingStream
from quant.export.weights import Weights
from quant.orient import LOW_RANK

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FILES = (WEIGHTS, CONFIG)
_MIXES = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_LORA_OF_ONE_LAYER = 32
"""The rank of a value residual that a model of one layer does not have: fla wants a number."""
_RESCALED_EVERY = 6
"""Layers after which float16 activations are halved at run time."""
_FLA_OUTER = {ours: theirs for theirs, ours in fla.NAMES.outer.items()}
_FLA_INNER = {ours: theirs for theirs, ours in fla.NAMES.inner.items()}


def tensors(weights: Weights, dtype: str | None) -> list[Outgoing]:
    """See `quant.export.formats`. InvalidRequest: a version or an epsilon that no Hugging Face code computes with."""
    _check(weights)
    v7 = weights.arch.version == "7"
    result = []
    for name, shape in weights.shapes.items():
        theirs = _fla_name(name) if v7 else _transformers_name(name)
        stored = stored_shape(weights.arch, name, shape)
        make: Callable[[], F32] = partial(weights.read, name)
        if v7:
            stored = stored if ".att.x_" in name else shape  # only these stay [1, 1, C]
            if suffix_of(name) in LOW_RANK:
                stored, make = shape[::-1], partial(_turned, weights, name)
        result.append(Outgoing(theirs, stored, dtype or weights.dtype(name), make))
    return result


def save(weights: Weights, stream: OutgoingStream, out: Path, vocabulary: Sequence[bytes] | None) -> None:
    """See `write_folder`."""
    dtype = next(item.dtype for item in stream.tensors if item.name.endswith("key.weight"))
    write_folder(weights, stream, out, config(weights, dtype))


def write_folder(weights: Weights, stream: OutgoingStream, out: Path, contents: Mapping[str, Any]) -> None:
    """Both files into the folder `out`, which is made if need be; the configuration, of `contents`, last."""
    made = not out.is_dir()
    out.mkdir(exist_ok=True)
    try:
        write_safetensors(out / WEIGHTS, stream, stream.dtypes, metadata={"format": "pt"})
        if weights.tokenizer_json is not None:
            _write(out / TOKENIZER, weights.tokenizer_json)
        _write(out / CONFIG, (json.dumps(contents, indent=2, sort_keys=True) + "\n").encode())
    except BaseException:
        if made and not any(out.iterdir()):
            out.rmdir()
        raise


def config(weights: Weights, dtype: str) -> dict[str, Any]:
    """The contents of config.json. The World vocabulary ends a text with id 0, whatever other files say."""
    arch = weights.arch
    common = {
        "hidden_size": arch.n_embd,
        "num_hidden_layers": arch.n_layer,
        "intermediate_size": arch.n_ffn,
        "vocab_size": arch.vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": DTYPES[dtype],
    }
    if arch.version == "7":
        return common | _fla_config(arch)
    number = arch.version[0]
    kind = "" if number == "4" else number
    common |= {
        "architectures": [f"Rwkv{kind}ForCausalLM"],
        "model_type": f"rwkv{kind}",
        "attention_hidden_size": arch.n_embd,
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "rescale_every": _RESCALED_EVERY if dtype == "f16" else 0,
    }
    if number == "4":
        return common | {"context_length": 1024}
    return common | {"head_size": arch.head_size, "head_size_divisor": _divisor(weights)}


def _fla_config(arch: Arch) -> dict[str, Any]:
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "attn": None,
        "attn_mode": "chunk",
        "head_dim": arch.head_size,
        "num_heads": arch.n_head,
        "hidden_ratio": arch.n_ffn / arch.n_embd,
        "hidden_act": "sqrelu",
        "decay_low_rank_dim": arch.rank_decay,
        "gate_low_rank_dim": arch.rank_gate,
        "a_low_rank_dim": arch.rank_iclr,
        "v_low_rank_dim": arch.rank_value or _LORA_OF_ONE_LAYER,
        "value_dim": [arch.n_embd] * arch.n_layer,
        "norm_first": not arch.ln0_fused,
        "norm_bias": True,
        "norm_eps": LAYER_NORM_EPS,
        "fuse_norm": False,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
    }


def _check(weights: Weights) -> None:
    arch, eps = weights.arch, weights.group_norm_eps
    if arch.version in ("5.0", "5.1"):
        raise InvalidRequest(
            f"no Hugging Face code computes RWKV-{arch.version}", hint="use --to pth or --to safetensors"
        )
    if arch.version != "7" and arch.ln0_fused:
        raise InvalidRequest(
            f"{weights.path} has its first layer norm in the embedding, which this format cannot tell"
        )
    if (
        arch.version == "7"
        and eps is not None
        and not math.isclose(eps, arch.head_size * LAYER_NORM_EPS, rel_tol=1e-6)
    ):
        raise InvalidRequest(
            f"{weights.path}: its group norm's epsilon is {eps:g}, and fla always takes the size of a head times 1e-5",
            hint="use --to pth or --to safetensors",
        )


def _divisor(weights: Weights) -> float | int:
    assert weights.group_norm_eps is not None
    value = math.sqrt(weights.group_norm_eps / LAYER_NORM_EPS)
    return round(value) if math.isclose(value, round(value), rel_tol=1e-6) else value


def _fla_name(name: str) -> str:
    if name in _FLA_OUTER:
        return _FLA_OUTER[name]
    layer, suffix = name.split(".", 2)[1:]
    return f"model.layers.{layer}.{_FLA_INNER[suffix]}"


def _transformers_name(name: str) -> str:
    if name == "head.weight":
        return name
    name = re.sub(r"^emb\.", "embeddings.", name).replace(".ln0.", ".pre_ln.")
    name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
    return "rwkv." + re.sub(r"time_mix_([kvrg])$", lambda match: f"time_mix_{_MIXES[match[1]]}", name)


def _turned(weights: Weights, name: str) -> F32:
    return np.ascontiguousarray(weights.read(name).T)


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)
