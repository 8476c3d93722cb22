"""Models written as other tools write them: the steps of their converters, told again, without a look at our readers.

Each takes the tensors of a BlinkDL checkpoint in float32 ({name: array in its stored shape}, in the file's order).
"""

# ruff: noqa: PLW2901  (the converters change their loop variables step by step, and so do these)

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Tensors = Mapping[str, np.ndarray]


def save(tensors: Tensors, path: Path) -> Path:
    """A safetensors file by the reference implementation, which sorts."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, {"format": "pt"})
    return path


def write_pth(tensors: Tensors, path: Path) -> Path:
    """As torch.save writes a state_dict; that ours is that is tested with torch."""
    from quant.checkpoints.write import write_pth

    write_pth(path, {name: np.ascontiguousarray(array) for name, array in tensors.items()})
    return path


def web_rwkv(tensors: Tensors, path: Path) -> Path:
    """assets/scripts/convert_safetensors.py of web-rwkv."""
    v51 = any("gate.weight" in name for name in tensors) and tensors["blocks.0.att.time_decay"].ndim == 1
    transposed = (
        "time_mix_w1", "time_mix_w2", "time_decay_w1", "time_decay_w2",
        "w1", "w2", "a1", "a2", "g1", "g2", "v1", "v2", "time_state", "lora.0",
    )  # fmt: skip
    result = {}
    for name, array in tensors.items():
        if v51 and ("time_decay" in name or "time_faaaa" in name):
            array = np.tile(array[:, None], (1, tensors["emb.weight"].shape[1] // array.shape[0]))
        name = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix").lower()
        if any(part in name for part in transposed):
            array = np.swapaxes(array, -2, -1)
        result[name] = array.astype(np.float16)
    return save(result, path)


def transformers(tensors: Tensors, path: Path) -> Path:
    """The conversion scripts of `rwkv` (v4), `rwkv5` and `rwkv6`."""
    result = {}
    for name, array in tensors.items():
        if name.startswith("emb."):
            name = name.replace("emb.", "embeddings.")
        if name.startswith("blocks.0.ln0"):
            name = name.replace("blocks.0.ln0", "blocks.0.pre_ln")
        name = re.sub(r"blocks\.(\d+)\.att", r"blocks.\1.attention", name)
        name = re.sub(r"blocks\.(\d+)\.ffn", r"blocks.\1.feed_forward", name)
        for letter, word in (("k", "key"), ("v", "value"), ("r", "receptance"), ("g", "gate")):
            if name.endswith(f".time_mix_{letter}"):
                name = name.replace(f".time_mix_{letter}", f".time_mix_{word}")
        result[name if name == "head.weight" else f"rwkv.{name}"] = array
    return save(result, path)


def candle_v6(tensors: Tensors, path: Path) -> Path:
    """What candle's rwkv_v6 looks for: `transformers`, with maa called mix."""
    result = {}
    for name, array in tensors.items():
        name = re.sub(r"blocks\.(\d+)\.att\.", r"blocks.\1.attention.", name.replace("emb.", "embeddings."))
        name = re.sub(r"blocks\.(\d+)\.ffn\.", r"blocks.\1.feed_forward.", name.replace(".ln0.", ".pre_ln."))
        name = re.sub(r"time_maa_([xw]|w1|w2)$", r"time_mix_\1", name)
        for letter, word in (("k", "key"), ("v", "value"), ("r", "receptance"), ("g", "gate")):
            name = name.replace(f"time_maa_{letter}", f"time_mix_{word}")
        result[name if name == "head.weight" else f"rwkv.{name}"] = array
    return save(result, path)


def fla(tensors: Tensors, path: Path, prefix: str = "") -> Path:
    """utils/convert_from_rwkv7.py of flash-linear-attention. Its attention keeps [1, 1, C] for x_*."""
    outer = {
        "emb.weight": "model.embeddings.weight", "ln_out.weight": "model.norm.weight",
        "ln_out.bias": "model.norm.bias", "head.weight": "lm_head.weight",
    }  # fmt: skip
    parts = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
    projections = {
        "receptance": "r_proj", "key": "k_proj", "value": "v_proj", "ln_x": "g_norm", "output": "o_proj",
    }  # fmt: skip
    result = {}
    for name, array in tensors.items():
        if name in outer:
            result[prefix + outer[name]] = array
            continue
        words = name.split(".")
        if words[1] == "0" and words[3] in ("v0", "v1", "v2"):
            continue
        words[0], words[2] = "model.layers", parts[words[2]]
        if re.fullmatch("[wvag][012]", words[3]):
            kind, number = words[3]
            words[3] = f"{kind}_lora.lora." + {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[number]
            array = array.reshape(-1) if number == "0" else array.T
        elif words[2] == "attn":
            if words[3] in projections:
                words[3] = projections[words[3]]
            elif not words[3].startswith("x_") and array.ndim == 3:
                array = array.reshape(-1)
        elif array.ndim == 3:
            array = array.reshape(-1)
        result[prefix + ".".join(words)] = array
    return save(result, path)


def rwkv7_of_2026(tensors: Tensors, path: Path) -> Path:
    """`Rwkv7ForCausalLM` of the transformers: the original names under a prefix."""
    return save({n if n == "head.weight" else f"rwkv7.{n}": a for n, a in tensors.items()}, path)


def vllm_rwkv7(tensors: Tensors, path: Path, fused: bool = False) -> Path:
    """A community layout: blocks of the original names, low-rank factors as linear layers, ln0 perhaps in the embedding."""
    result = {}
    for name, array in tensors.items():
        if fused and ".ln0." in name:
            continue
        if name == "emb.weight" and fused:
            wide = array.astype(np.float64)
            centred = wide - wide.mean(1, keepdims=True)
            normed = centred / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
            array = normed * tensors["blocks.0.ln0.weight"] + tensors["blocks.0.ln0.bias"]
            array = array.astype(np.float32)
        if re.search(r"\.att\.[wavg][12]$", name):
            name, array = name + ".weight", array.T
        name = name.replace("emb.weight", "embeddings.weight")
        result[name if name == "head.weight" else f"model.{name}"] = array
    return save(result, path)


GGMF_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 7, "q5_1": 8, "q8_0": 9}


def rwkv_cpp(tensors: Tensors, path: Path, kind: str = "f32", version: int = 101) -> Path:
    """python/convert_pytorch_to_ggml.py and the quantizer of rwkv.cpp; blocks by the package gguf."""
    names = list(tensors)
    v7, v6 = "blocks.0.att.k_k" in names, "blocks.0.att.time_maa_x" in names
    gate, v5 = "blocks.0.att.gate.weight" in names, "blocks.0.att.ln_x.weight" in names
    n_layer = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks."))
    listed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if v7 and "att.x_" in name:
            key = name[: name.index("x_")] + "x_rwkvag"
            listed[key] = np.concatenate([listed[key], array]) if key in listed else array
        else:
            listed[name] = array
    vocab, width = tensors["emb.weight"].shape
    out = struct.pack("=6i", 0x67676D66, version, vocab, width, n_layer, GGMF_TYPES[kind])
    small = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")
    unquantized = ("emb.weight", "head.weight", *(f"att.{x}{i}" for x in "vgaw" for i in "12"), "att.r_k")
    for name, array in listed.items():
        if ".time_" in name:
            array = array.squeeze()
        if v7:
            if any(part in name for part in (".w1", ".w2", ".a1", ".a2", ".v1", ".v2", ".g1", ".g2")):
                array = array.T
        elif v6:
            if ".time_faaaa" in name:
                array = array[..., None]
            if ".time_maa_w1" in name or ".time_decay_w" in name:
                array = array.T
            if ".time_maa_w2" in name:
                array = array.transpose(0, 2, 1)
            if ".time_decay" in name and "_w" not in name:
                array = array.reshape(tensors["blocks.0.att.time_faaaa"].shape[0], -1, 1)
        elif v5:
            if ".time_decay" in name:
                decay = np.exp(-np.exp(array))
                array = decay[..., None] if gate else decay.reshape(-1, 1, 1)
            if ".time_first" in name:
                array = np.exp(array).reshape(-1, 1, 1)
            if ".time_faaaa" in name:
                array = array[..., None]
        elif ".time_decay" in name:
            array = -np.exp(array)
        stored = kind if kind in ("f32", "f16") else "f16"
        if array.ndim <= 1 or any(part in name for part in small):
            stored = "f32"
        if kind not in ("f32", "f16") and array.ndim == 2 and not any(part in name for part in unquantized):
            stored = kind
        out += struct.pack("=3i", array.ndim, len(name), GGMF_TYPES[stored])
        out += struct.pack(f"={array.ndim}i", *reversed(array.shape)) + name.encode()
        out += ggml_bytes(array, stored)
    path.write_bytes(out)
    return path


def ggml_bytes(array: np.ndarray, kind: str) -> bytes:
    """Rows as ggml stores them."""
    if kind in ("f32", "f16"):
        return np.ascontiguousarray(array, "<f4" if kind == "f32" else "<f2").tobytes()
    return ggml_codes(array, kind).tobytes()


def ggml_codes(array: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of the package gguf: uint8 [rows, bytes]."""
    from gguf import GGMLQuantizationType, quants

    return quants.quantize(np.ascontiguousarray(array, np.float32), GGMLQuantizationType[kind.upper()])


def ggml_values(array: np.ndarray, kind: str) -> np.ndarray:
    """What is left of float32 values after a round through blocks of `kind`, as the package gguf decodes them."""
    from gguf import GGMLQuantizationType, quants

    return quants.dequantize(ggml_codes(array, kind), GGMLQuantizationType[kind.upper()])


def llama_cpp(
    tensors: Tensors, path: Path, *, kind: str = "f32", rescale: int = 0, fused: bool = True
) -> Path:
    """conversion/rwkv.py of llama.cpp, written by the package gguf. `fused`: mixes in one tensor, as since 2025."""
    from gguf import GGMLQuantizationType, GGUFWriter

    v7 = "blocks.0.att.k_k" in tensors
    arch = "rwkv7" if v7 else "rwkv6"
    writer = GGUFWriter(path, arch)
    vocab, width = tensors["emb.weight"].shape
    heads = tensors["blocks.0.att.r_k" if v7 else "blocks.0.att.time_faaaa"].shape[0]
    writer.add_context_length(1048576)
    writer.add_embedding_length(width)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(width // heads)
    writer.add_head_count(0)
    writer.add_block_count(1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")))
    writer.add_feed_forward_length(tensors["blocks.0.ffn.key.weight"].shape[0])
    if v7:
        writer.add_decay_lora_rank(tensors["blocks.0.att.w1"].shape[1])
        writer.add_iclr_lora_rank(tensors["blocks.0.att.a1"].shape[1])
        writer.add_gate_lora_rank(tensors["blocks.0.att.g1"].shape[1])
    else:
        writer.add_rescale_every_n_layers(rescale)
        writer.add_time_mix_extra_dim(tensors["blocks.0.att.time_maa_w2"].shape[1])
        writer.add_time_decay_extra_dim(tensors["blocks.0.att.time_decay_w1"].shape[1])
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([b"<s>", *(f"[{i}]".encode() for i in range(1, vocab))])
    outer = {"emb": "token_embd", "ln_out": "output_norm", "head": "output"}
    parts = {"ln0": "token_embd_norm", "ln1": "attn_norm", "ln2": "attn_norm_2"}
    v6_leaves = {"time_faaaa": "time_mix_first", "time_decay": "time_mix_decay"}
    mixes: dict[str, dict[str, np.ndarray]] = {}

    def add(name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array, np.float32)
        wide = array.ndim <= 1 or re.search(r"lerp_fused|first|time_mix_(decay_)?w[12]\.", name)
        if kind == "f32" or wide:
            writer.add_tensor(name, array)
        elif kind == "f16" or array.shape[-1] % 32 or re.search(r"time_mix_[wavg][012]\.", name):
            writer.add_tensor(name, array.astype(np.float16))
        else:
            codes = ggml_codes(array, kind)
            writer.add_tensor(name, codes, raw_dtype=GGMLQuantizationType[kind.upper()])

    for name, array in tensors.items():
        words = name.split(".")
        if words[0] != "blocks":
            add(f"{outer[words[0]]}.{words[1]}", array)
            continue
        layer, part = words[1], words[2]
        if part in parts:
            prefix = "" if part == "ln0" else f"blk.{layer}."
            add(f"{prefix}{parts[part]}.{words[3]}", array)
            continue
        block, leaf = f"blk.{layer}.", words[3]
        kind_of = "time_mix" if part == "att" else "channel_mix"
        if rescale and f"{part}.{leaf}" in ("att.output", "ffn.value"):
            array = array / 2 ** (int(layer) // rescale)
        if leaf in v6_leaves:
            add(f"{block}{v6_leaves[leaf]}.weight", array.squeeze() if leaf == "time_decay" else array)
        elif leaf.startswith("time_maa_w") and leaf[-1] in "12":
            add(f"{block}time_mix_{leaf[-2:]}.weight", np.swapaxes(array, -1, -2))
        elif leaf.startswith("time_decay_w"):
            add(f"{block}time_mix_decay_{leaf[-2:]}.weight", array.T)
        elif leaf.startswith(("x_", "time_maa_")):
            letter = leaf[-1]
            if part == "ffn" or letter == "x" or not (fused or v7):
                add(f"{block}{kind_of}_lerp_{letter}.weight", array.squeeze())
            else:
                mixes.setdefault(block, {})[letter] = array.squeeze()
        elif leaf == "ln_x":
            add(f"{block}time_mix_ln.{words[4]}", array)
        elif len(words) == 5:
            add(f"{block}{kind_of}_{leaf}.weight", array)
        elif re.fullmatch("[wavg][12]", leaf):
            if not (layer == "0" and leaf[0] == "v"):
                add(f"{block}time_mix_{leaf}.weight", array.T)
            if layer == "0" and leaf[0] == "a":
                add(f"{block}time_mix_v{leaf[1]}.weight", array.T)
        elif not (layer == "0" and leaf[0] == "v"):
            add(f"{block}time_mix_{leaf}.weight", array.reshape(-1))
            if layer == "0" and leaf == "a0":
                add(f"{block}time_mix_v0.weight", array.reshape(-1))
    for block, vectors in mixes.items():
        order = "rwkvag" if v7 else "wkvrg"
        stacked = np.stack([vectors[letter] for letter in order])
        add(f"{block}time_mix_lerp_fused.weight", stacked.reshape(len(order), 1, 1, -1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_of_one_tensor(path: Path, architecture: str, kind: str, random: np.random.Generator) -> np.ndarray:
    """A GGUF file with three rows of 256 weights as `token_embd.weight`: codes of random bytes, which are returned."""
    import gguf

    quantization = gguf.GGMLQuantizationType[kind]
    block, nbytes = gguf.constants.GGML_QUANT_SIZES[quantization]
    codes = random.integers(0, 64, (3, 256 // block * nbytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", codes, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return codes


def sharded(
    tensors: Tensors,
    folder: Path,
    count: int = 3,
    config: Mapping[str, Any] | None = None,
    *,
    torch: bool = False,
) -> Path:
    """A folder as `save_pretrained` leaves it: parts, their index, config.json; `torch`: with safe_serialization=False."""
    folder.mkdir(exist_ok=True)
    stem, ending = ("pytorch_model", "bin") if torch else ("model", "safetensors")
    names = sorted(tensors)
    places = {}
    for part in range(count):
        file = f"{stem}-{part + 1:05}-of-{count:05}.{ending}"
        mine = names[part::count]
        (write_pth if torch else save)({name: tensors[name] for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": places}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
