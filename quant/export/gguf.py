"""RWKV-6 and 7 for llama.cpp. What its converter does, without the rescaling of v6: weights stay what they are.

Vectors, mixes and v6's and v7's first two low-rank factors are float32 as in its converter; the other matrices are what
is asked for. Names and orientations are those of `quant.checkpoints.layouts.llama_cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from quant.arrays import F32
from quant.checkpoints.hf_config import LAYER_NORM_EPS
from quant.checkpoints.layouts import llama_cpp
from quant.checkpoints.layouts.piece import suffix_of
from quant.errors import InvalidRequest
from quant.export.gguf_file import Value, write_gguf
from quant.export.outgoing import Outgoing, OutgoingStream
from quant.export.weights import Weights
from quant.orient import LOW_RANK, MIX_ORDER
from quant.sources import GROUP_NORM_EPS

_CONTEXT = 1 << 20
"""Tokens of context: RWKV has no limit, and the key is not optional."""
_WIDE = (
    "att.time_maa_w1",
    "att.time_maa_w2",
    "att.time_decay_w1",
    "att.time_decay_w2",
    "att.w1",
    "att.w2",
    "att.time_faaaa",
)
"""Tensors of more than one dimension that llama.cpp keeps in float32."""
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
_BLANK_LINE = 261
"""The World vocabulary's id of two line ends, which llama.cpp's converter makes the end of a turn."""
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def tensors(weights: Weights, dtype: str | None) -> list[Outgoing]:
    """See `quant.export.formats`. InvalidRequest: what llama.cpp does not compute."""
    _check(weights)
    v7 = weights.arch.version == "7"
    names = llama_cpp.NAMES["rwkv7" if v7 else "rwkv6"]
    outer = {ours: theirs for theirs, ours in names.outer.items()}
    inner = {ours: theirs for theirs, ours in names.inner.items()}
    letters, prefix = (llama_cpp.V7_MIXES, "att.x_") if v7 else (MIX_ORDER, "att.time_maa_")
    fused = {f"{prefix}{letter}" for letter in letters}
    result = []
    for name, shape in weights.shapes.items():
        suffix = suffix_of(name)
        if name in outer:
            theirs = outer[name]
        elif suffix in fused:
            if suffix[-1] == letters[0]:
                stem = name[: -len(suffix)]
                block = f"blk.{stem.split('.')[1]}.{llama_cpp.FUSED}"
                sources = [f"{stem}{prefix}{letter}" for letter in letters]
                result.append(
                    Outgoing(block, (len(letters), 1, 1, *shape), "f32", partial(_stacked, weights, sources))
                )
            continue
        else:
            theirs = f"blk.{name.split('.')[1]}.{inner[suffix]}"
        wide = len(shape) == 1 or suffix in _WIDE or suffix == "att.r_k"
        kind = "f32" if wide else dtype or weights.dtype(name)
        if suffix in LOW_RANK:
            shape = (*shape[:-2], shape[-1], shape[-2])  # noqa: PLW2901
            make = partial(_turned, weights, name)
        else:
            make = partial(weights.read, name)
        if suffix == "att.r_k":
            shape = (math.prod(shape),)  # noqa: PLW2901
        result.append(Outgoing(theirs, shape, kind, make))
        if v7 and name.startswith("blocks.0.") and suffix in ("att.a0", "att.a1", "att.a2"):
            # llama.cpp asks for a value residual in block 0 too, and never reads it
            result.append(Outgoing(theirs.replace("time_mix_a", "time_mix_v"), shape, kind, make))
    return result


def save(weights: Weights, stream: OutgoingStream, out: Path, vocabulary: Sequence[bytes] | None) -> None:
    """The file, with `vocabulary`: the bytes of every token, by id. InvalidRequest: it is not known."""
    if vocabulary is None:
        raise InvalidRequest(
            f"{weights.path}: a GGUF file of RWKV holds the World vocabulary or bytes, and this model has another",
            hint="use --to pth, safetensors or hf",
        )
    write_gguf(out, {**_metadata(weights, stream), **_tokenizer(weights, vocabulary)}, stream)


def _check(weights: Weights) -> None:
    arch, eps = weights.arch, weights.group_norm_eps
    if arch.version not in ("6", "7"):
        others = "pth or safetensors" if arch.version in ("5.0", "5.1") else "pth, safetensors or hf"
        raise InvalidRequest(
            f"llama.cpp computes RWKV-6 and 7; {weights.path} is RWKV-{arch.version}",
            hint=f"use --to {others}",
        )
    if arch.ln0_fused:
        raise InvalidRequest(
            f"{weights.path} has its first layer norm in the embedding, which this format cannot tell"
        )
    if eps is not None and not math.isclose(eps, GROUP_NORM_EPS, rel_tol=1e-6):
        raise InvalidRequest(
            f"{weights.path}: its group norm's epsilon is {eps:g}, and llama.cpp always takes {GROUP_NORM_EPS:g}",
            hint="use --to pth or --to safetensors",
        )


def _metadata(weights: Weights, stream: OutgoingStream) -> dict[str, Value]:
    arch = weights.arch
    kind = "rwkv7" if arch.version == "7" else "rwkv6"
    matrices = next(item.dtype for item in stream.tensors if item.name == "blk.0.time_mix_key.weight")
    result: dict[str, Value] = {
        "general.architecture": kind,
        "general.name": weights.path.stem.encode("utf-8", "replace").decode("utf-8", "replace"),
        "general.file_type": _FILE_TYPES[matrices],
        f"{kind}.context_length": _CONTEXT,
        f"{kind}.embedding_length": arch.n_embd,
        f"{kind}.block_count": arch.n_layer,
        f"{kind}.feed_forward_length": arch.n_ffn,
        f"{kind}.attention.layer_norm_epsilon": LAYER_NORM_EPS,
        f"{kind}.attention.head_count": 0,
        f"{kind}.wkv.head_size": arch.head_size,
    }
    if kind == "rwkv6":
        return result | {
            f"{kind}.rescale_every_n_layers": 0,
            f"{kind}.time_mix_extra_dim": arch.rank_mix,
            f"{kind}.time_decay_extra_dim": arch.rank_decay,
        }
    return result | {
        f"{kind}.attention.decay_lora_rank": arch.rank_decay,
        f"{kind}.attention.iclr_lora_rank": arch.rank_iclr,
        f"{kind}.attention.value_residual_mix_lora_rank": arch.rank_value or arch.rank_iclr,
        f"{kind}.attention.gate_lora_rank": arch.rank_gate,
    }


def _tokenizer(weights: Weights, vocabulary: Sequence[bytes]) -> dict[str, Value]:
    """Tokens escaped as Python writes bytes; rows of the embedding past the vocabulary are filled up."""
    rows = weights.arch.vocab_size
    tokens = [b"<s>", *(repr(token)[2:-1].encode() for token in vocabulary[1:rows])]
    missing = range(len(tokens), rows)
    kinds = [_CONTROL] + [_NORMAL] * (len(tokens) - 1) + [_UNUSED] * len(missing)
    result: dict[str, Value] = {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{i}]".encode() for i in missing],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }
    if weights.tokenizer == "world":
        result |= {"tokenizer.ggml.eot_token_id": _BLANK_LINE, "tokenizer.chat_template": "rwkv-world"}
    return result


def _stacked(weights: Weights, names: Sequence[str]) -> F32:
    return np.stack([weights.read(name) for name in names])


def _turned(weights: Weights, name: str) -> F32:
    return np.ascontiguousarray(np.swapaxes(weights.read(name), -1, -2))
