"""The blocks of RWKV-4 to RWKV-7 in plain PyTorch, written to be read beside the papers.

Papers: RWKV-4 is arXiv 2305.13048, RWKV-5 and 6 ("Eagle", "Finch") 2404.05892, RWKV-7 ("Goose") 2503.14456;
functions name the part of the paper that they compute. Where paper and released code differ (the papers'
order of factors, the scale inside the group norm), the released code is followed: the trained weights mean
what it computes.

Shapes: B sequences that advance together, T tokens each, C channels, H heads of N channels, F ffn channels.
Everything is [B, T, C] and of the model's dtype, so that one token (T = 1), a prompt (B = 1) and a batch run
the same lines: matrix products take all tokens at once, and only the recurrences loop over T. States are read
and replaced, never written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

Tensor = torch.Tensor
LN_EPS = 1e-5
KK_NORM_FLOOR = 1e-12
ACTIVATION_GROUP = 32
"""Channels that share a scale when activations are rounded to 8 bits."""
LARGEST_MULTIPLIER = 127 * 257
"""Of a block's activations times scales, rounded to integers, in products with layout kn; two signed bytes hold it."""


@dataclass(frozen=True)
class Block:
    """One layer's tensors by short name (`att.key.weight`); matrices are [out, in], vectors [C]."""

    weights: Mapping[str, Tensor]
    integer: Mapping[str, Callable[[Tensor], Tensor]]
    """Products that are to be computed as the native engine computes integer ones: x [..., in] -> [..., out]."""
    n_head: int
    head_size: int
    group_norm_eps: float

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x [B, T, in] times the transposed matrix `name` [out, in] -> [B, T, out]."""
        return self.integer[name](x) if name in self.integer else x @ self.weights[name].T


State = Mapping[str, Tensor]
"""One layer's state by short name: `att.x_prev` [B, C], `att.state` [B, H, N value, N key], ..."""


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the last axis [..., C], biased variance."""
    return functional.layer_norm(x, weight.shape, weight, bias, LN_EPS)


def previous(x: Tensor, x_prev: Tensor) -> Tensor:
    """Token shift: each token's predecessor; x [B, T, C], x_prev [B, C] (before the first) -> [B, T, C]."""
    return torch.cat((x_prev[:, None], x[:, :-1]), dim=1)


def lerp_current(x: Tensor, prev: Tensor, mix: Tensor) -> Tensor:
    """v4 and v5: `mix` weighs the *current* token (2305.13048, time mixing, the r, k, v projections)."""
    return x * mix + prev * (1 - mix)


def lerp_previous(x: Tensor, prev: Tensor, mix: Tensor) -> Tensor:
    """v6 and v7: `mix` weighs the *previous* token (2404.05892 "lerp", "ddlerp"; 2503.14456 token shift)."""
    return x + (prev - x) * mix


def round_activations(x: Tensor) -> Tensor:
    """x [..., K] rounded as the native engine does before an integer product: 8 bits per 32 channels along K.

    Of each group, in float32: scale = absmax / 127 and codes = round-half-even(x / scale) within -127..127.
    """
    k = x.shape[-1]
    padded = functional.pad(x.to(torch.float32), (0, -k % ACTIVATION_GROUP))
    groups = padded.reshape(*x.shape[:-1], -1, ACTIVATION_GROUP)
    scale = groups.abs().amax(dim=-1, keepdim=True) / 127
    codes = torch.round(groups / torch.where(scale > 0, scale, 1)).clamp(-127, 127)
    return (codes.to(x.dtype) * scale.to(x.dtype)).flatten(-2)[..., :k]


@dataclass(frozen=True)
class ChannelBlocks:
    """A product with a matrix in layout kn, as the native engine computes it: sixteen active channels at a time.

    In float32, activation times record scale, over the block's largest, times a group's scale is rounded to an
    integer (LARGEST_MULTIPLIER at the largest scale of 127 squared); what follows is exact up to one rounding a block.
    """

    record_scales: Tensor
    """[in], float32"""
    group_scales: Tensor
    """[in, out]: s |s| of each weight's group, float32"""
    codes: Tensor
    """[in, out], without the zero point, in the dtype of the computation"""

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        rows = [self._row(row) for row in x.reshape(-1, x.shape[-1])]
        return torch.stack(rows).reshape(*x.shape[:-1], -1)

    def _row(self, x: Tensor) -> Tensor:
        out = x.new_zeros(self.codes.shape[1])
        for channels in torch.split(torch.nonzero(x)[:, 0], 16):
            scaled = x[channels].to(torch.float32) * self.record_scales[channels]
            largest = scaled.abs().max()
            if largest > 1e-30:
                factor = scaled * (torch.tensor(LARGEST_MULTIPLIER / 127**2, dtype=torch.float32) / largest)
                codes = torch.round(factor[:, None] * self.group_scales[channels]).to(x.dtype)
                out += (codes * self.codes[channels]).sum(0) * (
                    largest.to(x.dtype) * 127**2 / LARGEST_MULTIPLIER
                )
        return out


def relu_squared(x: Tensor) -> Tensor:
    return torch.relu(x) ** 2


# ------------------------------ channel mixing


def channel_mix(version: str, p: Block, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
    """The feed-forward half of a block: squared ReLU, gated up to v6. x is the output of ln2.

    2305.13048 "channel mixing", unchanged in 2404.05892 but for the shift of v6; 2503.14456 drops the gate.
    """
    prev = previous(x, state["ffn.x_prev"])
    after = {"ffn.x_prev": x[:, -1]}
    if version == "7":
        k = relu_squared(p.linear(lerp_previous(x, prev, p["ffn.x_k"]), "ffn.key.weight"))
        return p.linear(k, "ffn.value.weight"), after
    if version == "6":
        xk = lerp_previous(x, prev, p["ffn.time_maa_k"])
        xr = lerp_previous(x, prev, p["ffn.time_maa_r"])
    else:
        xk = lerp_current(x, prev, p["ffn.time_mix_k"])
        xr = lerp_current(x, prev, p["ffn.time_mix_r"])
    k = relu_squared(p.linear(xk, "ffn.key.weight"))
    r = torch.sigmoid(p.linear(xr, "ffn.receptance.weight"))
    return r * p.linear(k, "ffn.value.weight"), after


# ------------------------------ time mixing


def time_mix_v4(p: Block, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
    """RWKV-4: a running weighted average per channel. x is the output of ln1.

    2305.13048, "WKV operator", in the form of its appendix on numerical stability: numerator `aa` and
    denominator `bb` are kept divided by exp(pp), where pp is the largest exponent so far: nothing overflows.
    """
    prev = previous(x, state["att.x_prev"])
    r = torch.sigmoid(p.linear(lerp_current(x, prev, p["att.time_mix_r"]), "att.receptance.weight"))
    k = p.linear(lerp_current(x, prev, p["att.time_mix_k"]), "att.key.weight")
    v = p.linear(lerp_current(x, prev, p["att.time_mix_v"]), "att.value.weight")

    w = -torch.exp(p["att.time_decay"])  # log of the decay per token
    u = p["att.time_first"]  # bonus of the current token
    aa, bb, pp = state["att.aa"], state["att.bb"], state["att.pp"]
    outputs = []
    for t in range(x.shape[1]):
        k_t, v_t = k[:, t], v[:, t]
        # the output sees the past and the current token with its bonus
        top = torch.maximum(pp, u + k_t)
        past, now = torch.exp(pp - top), torch.exp(u + k_t - top)
        outputs.append((past * aa + now * v_t) / (past * bb + now))
        # the state decays and takes the current token in, without the bonus
        top = torch.maximum(pp + w, k_t)
        past, now = torch.exp(pp + w - top), torch.exp(k_t - top)
        aa, bb, pp = past * aa + now * v_t, past * bb + now, top

    out = p.linear(r * torch.stack(outputs, dim=1), "att.output.weight")
    return out, {"att.x_prev": x[:, -1], "att.aa": aa, "att.bb": bb, "att.pp": pp}


def time_mix_v5(version: str, p: Block, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
    """RWKV-5.0, 5.1 and 5.2 "Eagle" (2404.05892, Eagle time mixing): a matrix state per head.

    x is the output of ln1. 5.0 has no gate; in 5.0 and 5.1 decay and bonus are one number per head [H], in
    5.2 one per key channel [H, N]. The first 5.0 models store the bonus's logarithm and call it time_first.
    """
    prev = previous(x, state["att.x_prev"])
    r = p.linear(lerp_current(x, prev, p["att.time_mix_r"]), "att.receptance.weight")
    k = p.linear(lerp_current(x, prev, p["att.time_mix_k"]), "att.key.weight")
    v = p.linear(lerp_current(x, prev, p["att.time_mix_v"]), "att.value.weight")

    w = torch.exp(-torch.exp(p["att.time_decay"])).reshape(p.n_head, -1)  # [H, N] or [H, 1]
    u = p["att.time_faaaa"] if "att.time_faaaa" in p.weights else torch.exp(p["att.time_first"])
    u = u.reshape(p.n_head, -1)  # the same shape
    steady = w.expand(x.shape[0], x.shape[1], *w.shape)  # the same decay for every token
    y, after = eagle_recurrence(p, r, k, v, w=steady, u=u, s=state["att.state"])

    y = group_norm(p, y)
    if version != "5.0":
        y = y * functional.silu(p.linear(lerp_current(x, prev, p["att.time_mix_g"]), "att.gate.weight"))
    return p.linear(y, "att.output.weight"), {"att.x_prev": x[:, -1], "att.state": after}


def time_mix_v6(p: Block, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
    """RWKV-6 "Finch" (2404.05892, Finch): token shift and decay depend on the data. x is the output of ln1.

    The low-rank factors: time_maa_w1 [5 * Dm, C], for w, k, v, r, g in this order; time_maa_w2.w to .g, each
    [C, Dm]; time_decay_w1 [Dd, C]; time_decay_w2 [C, Dd].
    """
    prev = previous(x, state["att.x_prev"])
    low = torch.tanh(p.linear(lerp_previous(x, prev, p["att.time_maa_x"]), "att.time_maa_w1"))
    shifted = {}
    for name, part in zip("wkvrg", low.chunk(5, dim=-1), strict=True):
        mix = p[f"att.time_maa_{name}"] + p.linear(part, f"att.time_maa_w2.{name}")
        shifted[name] = lerp_previous(x, prev, mix)
    r = p.linear(shifted["r"], "att.receptance.weight")
    k = p.linear(shifted["k"], "att.key.weight")
    v = p.linear(shifted["v"], "att.value.weight")
    g = functional.silu(p.linear(shifted["g"], "att.gate.weight"))

    change = p.linear(torch.tanh(p.linear(shifted["w"], "att.time_decay_w1")), "att.time_decay_w2")
    w = heads(p, torch.exp(-torch.exp(p["att.time_decay"] + change)))
    y, after = eagle_recurrence(p, r, k, v, w=w, u=p["att.time_faaaa"], s=state["att.state"])
    return p.linear(group_norm(p, y) * g, "att.output.weight"), {"att.x_prev": x[:, -1], "att.state": after}


def time_mix_v7(
    p: Block, x: Tensor, state: State, v_first: Tensor | None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """RWKV-7 "Goose" (2503.14456): the generalized delta rule. x is the output of ln1.

    Returns the output, the new state and v_first [B, T, C]: the values of layer 0 (itself given None), mixed
    into those of the later layers ("value residual"). It belongs to these tokens alone and is no state.
    """
    prev = previous(x, state["att.x_prev"])
    xr, xw, xk, xv, xa, xg = (lerp_previous(x, prev, p[f"att.x_{name}"]) for name in "rwkvag")
    r = p.linear(xr, "att.receptance.weight")
    k = p.linear(xk, "att.key.weight")
    v = p.linear(xv, "att.value.weight")

    # weight preparation: decay w in (exp(-exp(-1/2)), 1), in-context learning rate a, gate g
    w = p["att.w0"] + p.linear(torch.tanh(p.linear(xw, "att.w1")), "att.w2")
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(w))
    a = torch.sigmoid(p["att.a0"] + p.linear(p.linear(xa, "att.a1"), "att.a2"))
    g = p.linear(torch.sigmoid(p.linear(xg, "att.g1")), "att.g2")

    # the removal key kk comes from the unchanged k; the replacement key is k scaled by a
    kk = heads(p, k * p["att.k_k"])
    kk = kk / torch.linalg.vector_norm(kk, dim=-1, keepdim=True).clamp_min(KK_NORM_FLOOR)
    k = k * (1 + (a - 1) * p["att.k_a"])
    if v_first is None:  # layer 0
        v_first = v
    else:
        amount = torch.sigmoid(p["att.v0"] + p.linear(p.linear(xv, "att.v1"), "att.v2"))
        v = v + (v_first - v) * amount

    r, w, k, v, a = (heads(p, each) for each in (r, w, k, v, a))
    s = state["att.state"]  # [B, H, N value, N key]
    outputs = []
    for t in range(x.shape[1]):
        removed = s @ -kk[:, t, ..., None]  # [B, H, N, 1]: what the state holds under kk, negated
        s = (
            s * w[:, t, :, None, :]
            + removed * (kk[:, t] * a[:, t])[:, :, None, :]
            + v[:, t, ..., None] * k[:, t, :, None, :]
        )
        outputs.append((s @ r[:, t, ..., None]).flatten(1))
    y = group_norm(p, torch.stack(outputs, dim=1))
    bonus = (r * k * p["att.r_k"]).sum(dim=-1, keepdim=True) * v
    out = p.linear((y + bonus.flatten(2)) * g, "att.output.weight")
    return out, {"att.x_prev": x[:, -1], "att.state": s}, v_first


# ------------------------------ parts of v5 to v7


def heads(p: Block, x: Tensor) -> Tensor:
    """[B, T, C] -> [B, T, H, N]."""
    return x.reshape(*x.shape[:2], p.n_head, p.head_size)


def group_norm(p: Block, y: Tensor) -> Tensor:
    """Each head's N values normalised, then att.ln_x; [B, T, C].

    Training normalises y / 8 with eps 1e-5 (heads of 64); the same without the division is eps = 64e-5, the
    default.
    """
    normed = functional.layer_norm(heads(p, y), (p.head_size,), None, None, p.group_norm_eps)
    return normed.flatten(2) * p["att.ln_x.weight"] + p["att.ln_x.bias"]


def eagle_recurrence(
    p: Block, r: Tensor, k: Tensor, v: Tensor, *, w: Tensor, u: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """2404.05892, the recurrent form of wkv: y_t = (S + (u k_t) v_t) r_t; then S <- S w_t + k_t v_t.

    r, k, v: [B, T, C]; w: [B, T, H, N or 1]; u: [H, N or 1], both along the key axis; s: [B, H, N value, N
    key]. Returns y [B, T, C] and the state after the last token.
    """
    r, k, v = (heads(p, each) for each in (r, k, v))
    now = v * (r * u * k).sum(dim=-1, keepdim=True)  # what the current token adds to its own output
    outputs = []
    for t in range(r.shape[1]):
        outputs.append((s @ r[:, t, ..., None])[..., 0] + now[:, t])
        s = s * w[:, t, :, None, :] + v[:, t, ..., None] * k[:, t, :, None, :]
    return torch.stack(outputs, dim=1).flatten(2), s
