"""An RWKV-7 checkpoint as GGUF for llama.cpp. Runs in the environment of the peers (gguf, llama-cpp-python).

    python make_gguf.py write CHECKPOINT OUT.gguf F32|F16
    python make_gguf.py quantize IN.gguf OUT.gguf Q8_0|Q4_0|Q4_K_M

What differs from BlinkDL's checkpoint: the low-rank matrices are transposed; the six mixes of a block are one tensor
in the order r, w, k, v, a, g; r_k is flat; block 0 gets copies of its `a` tensors as the `v` tensors that it has no
use for. One-dimensional tensors, the mixes, w1 and w2 stay F32, and the low-rank matrices are never quantized: what
llama.cpp's own converter and quantizer do. The vocabulary is made of numbers: these files are for speed only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType

from quant.checkpoints import open_checkpoint

MIXES = ("r", "w", "k", "v", "a", "g")
ATTENTION = {name: f"time_mix_{name}" for name in ("key", "value", "receptance", "output")}
LOW_RANK = tuple(f"{letter}{n}" for letter in "wavg" for n in (0, 1, 2) if f"{letter}{n}" != "g0")


def write(source: Path, out: Path, kind: str) -> None:
    with open_checkpoint(source) as checkpoint:
        arch = checkpoint.arch
        writer = GGUFWriter(out, "rwkv7")
        writer.add_context_length(1 << 20)
        writer.add_embedding_length(arch.n_embd)
        writer.add_block_count(arch.n_layer)
        writer.add_feed_forward_length(arch.n_ffn)
        writer.add_layer_norm_eps(1e-5)
        writer.add_head_count(0)
        writer.add_wkv_head_size(arch.head_size)
        writer.add_decay_lora_rank(arch.rank_decay)
        writer.add_iclr_lora_rank(arch.rank_iclr)
        writer.add_value_residual_mix_lora_rank(arch.rank_value)
        writer.add_gate_lora_rank(arch.rank_gate)
        writer.add_file_type(LlamaFileType.ALL_F32 if kind == "F32" else LlamaFileType.MOSTLY_F16)
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list([b"<s>", *(f"[{i}]".encode() for i in range(1, arch.vocab_size))])
        writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (arch.vocab_size - 1))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)

        def add(name: str, values: np.ndarray[Any, Any]) -> None:
            wide = values.ndim == 1 or "lerp" in name or "time_mix_w" in name
            dtype = np.float32 if wide or kind == "F32" else np.float16
            writer.add_tensor(name, np.ascontiguousarray(values, dtype))

        add("token_embd.weight", checkpoint.read("emb.weight"))
        for part in ("weight", "bias"):
            add(f"token_embd_norm.{part}", checkpoint.read(f"blocks.0.ln0.{part}"))
            add(f"output_norm.{part}", checkpoint.read(f"ln_out.{part}"))
        add("output.weight", checkpoint.read("head.weight"))
        for layer in range(arch.n_layer):
            for name, values in block(checkpoint, layer):
                add(f"blk.{layer}.{name}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def block(checkpoint: Any, layer: int) -> Any:
    """(name, array as llama.cpp wants it) of a block's tensors."""

    def read(name: str) -> np.ndarray[Any, Any]:
        return checkpoint.read(f"blocks.{layer}.{name}").squeeze()  # type: ignore[no-any-return]

    for part in ("weight", "bias"):
        yield f"attn_norm.{part}", read(f"ln1.{part}")
        yield f"attn_norm_2.{part}", read(f"ln2.{part}")
        yield f"time_mix_ln.{part}", read(f"att.ln_x.{part}")
    for theirs, ours in ATTENTION.items():
        yield f"{ours}.weight", read(f"att.{theirs}.weight")
    mixes = np.stack([read(f"att.x_{mix}") for mix in MIXES])
    yield "time_mix_lerp_fused.weight", mixes.reshape(len(MIXES), 1, 1, -1)
    for name in LOW_RANK:
        source = name.replace("v", "a") if layer == 0 else name
        values = read(f"att.{source}")
        yield f"time_mix_{name}.weight", values.T if values.ndim == 2 else values
    for name in ("k_k", "k_a", "r_k"):
        yield f"time_mix_{name}.weight", read(f"att.{name}").reshape(-1)
    yield "channel_mix_lerp_k.weight", read("ffn.x_k").reshape(1, 1, -1)
    yield "channel_mix_key.weight", read("ffn.key.weight")
    yield "channel_mix_value.weight", read("ffn.value.weight")


def quantize(source: Path, out: Path, kind: str) -> None:
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    part = out.with_suffix(".part")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params))
    if code != 0:
        raise SystemExit(f"llama_model_quantize: {code}")
    part.replace(out)


if __name__ == "__main__":
    action, source, out, kind = sys.argv[1:]
    {"write": write, "quantize": quantize}[action](Path(source), Path(out), kind)
