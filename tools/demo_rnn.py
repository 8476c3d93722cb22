"""RWKV-7 in its plain recurrent form: one token at a time, vectors only, written out from the formulas.

The training script uses it to sample text and to check its own fast form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

DECAY_SCALE = math.exp(-0.5)
# Per layer: last input of time mixing [B,C], S [B,H,N,N] (value, key), last input of channel mixing [B,C]
State = list[tuple[Tensor, Tensor, Tensor]]


def wkv_recurrent(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition of the recurrence, one time step after the other. Inputs [B,T,H,N], s [B,H,N,N]."""
    out = []
    for t in range(r.shape[1]):
        sa = s @ a[:, t].unsqueeze(-1)  # what the old state answers to the key that is about to be replaced
        s = s * log_w[:, t].exp().unsqueeze(-2) + sa * b[:, t].unsqueeze(-2)
        s = s + v[:, t].unsqueeze(-1) * k[:, t].unsqueeze(-2)
        out.append((s @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 1), s


def rnn_step(z: dict[str, Tensor], token: int, state: State) -> tuple[Tensor, State]:
    """One token through the network; the state has a batch axis of 1, everything else is a plain vector."""
    heads, n = z["blocks.0.att.r_k"].shape
    width = heads * n
    x = F.layer_norm(z["emb.weight"][token], (width,), z["blocks.0.ln0.weight"], z["blocks.0.ln0.bias"])
    v_first = x
    after: State = []
    for i, (att_last, s, ffn_last) in enumerate(state):
        block = f"blocks.{i}."
        w = {k.removeprefix(block): t.squeeze() for k, t in z.items() if k.startswith(block)}
        h = F.layer_norm(x, (width,), w["ln1.weight"], w["ln1.bias"])
        m = {c: h + (att_last[0] - h) * w[f"att.x_{c}"] for c in "rwkvag"}
        r, k = w["att.receptance.weight"] @ m["r"], w["att.key.weight"] @ m["k"]
        v = w["att.value.weight"] @ m["v"]
        decay = torch.exp(
            -DECAY_SCALE * torch.sigmoid(w["att.w0"] + torch.tanh(m["w"] @ w["att.w1"]) @ w["att.w2"])
        )
        a = torch.sigmoid(w["att.a0"] + m["a"] @ w["att.a1"] @ w["att.a2"])
        g = torch.sigmoid(m["g"] @ w["att.g1"]) @ w["att.g2"]
        if i == 0:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(w["att.v0"] + m["v"] @ w["att.v1"] @ w["att.v2"])
        kk = F.normalize((k * w["att.k_k"]).view(heads, n), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * w["att.k_a"])
        rh, kh, vh, ah = r.view(heads, n), k.view(heads, n), v.view(heads, n), a.view(heads, n)
        new = s[0] * decay.view(heads, 1, n) + (s[0] @ -kk.unsqueeze(-1)) * (kk * ah).unsqueeze(1)
        new = new + vh.unsqueeze(-1) * kh.unsqueeze(1)
        y = (new @ rh.unsqueeze(-1)).view(1, width)
        y = F.group_norm(y, heads, w["att.ln_x.weight"], w["att.ln_x.bias"], eps=n * 1e-5).view(width)
        y = y + ((rh * kh * w["att.r_k"]).sum(-1, keepdim=True) * vh).view(width)
        x = x + w["att.output.weight"] @ (y * g)
        h2 = F.layer_norm(x, (width,), w["ln2.weight"], w["ln2.bias"])
        hidden = w["ffn.key.weight"] @ (h2 + (ffn_last[0] - h2) * w["ffn.x_k"])
        x = x + w["ffn.value.weight"] @ torch.relu(hidden).square()
        after.append((h[None], new[None], h2[None]))
    x = F.layer_norm(x, (width,), z["ln_out.weight"], z["ln_out.bias"])
    return z["head.weight"] @ x, after


@torch.no_grad()
def sample(path: Path, prompt: str, count: int, temperature: float, top_p: float, seed: int) -> Iterator[int]:
    z = {name: t.float() for name, t in load_file(path).items()}
    layers = 1 + max(int(name.split(".")[1]) for name in z if name.startswith("blocks."))
    heads, n = z["blocks.0.att.r_k"].shape
    row, s = torch.zeros(1, heads * n), torch.zeros(1, heads, n, n)
    state: State = [(row, s, row)] * layers
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(z["head.weight"].shape[0])
    for byte in prompt.encode("utf-8"):
        logits, state = rnn_step(z, byte, state)
    for _ in range(count):
        p, order = torch.softmax(logits / max(temperature, 1e-4), -1).sort(descending=True)
        p[p.cumsum(-1) - p >= top_p] = 0  # keep the most probable bytes that together reach top_p
        byte = int(order[torch.multinomial(p, 1, generator=generator)])
        yield byte
        logits, state = rnn_step(z, byte, state)
