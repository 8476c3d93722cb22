#!/usr/bin/env python3
"""Train the built-in demo model: a small RWKV-7 ("x070") language model over raw bytes.

Also meant to be read, as a complete RWKV-7 training program. Beside it, demo_text.py prepares the text and
demo_rnn.py is the same network in its plain recurrent form. Needs PyTorch and the safetensors package.

    train_demo.py --self-check                                  compare the fast recurrence with the plain one
    train_demo.py --corpus DIR --run-dir RUN --steps 6496       train; the same command again resumes
    train_demo.py --run-dir RUN --sample --prompt "It was"      generate text from the result

Files in RUN: checkpoint.pt (to resume), log.json (settings and loss curve), demo-weights.safetensors.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_rnn import State, rnn_step, sample, wkv_recurrent
from demo_text import load_corpus, training_batch
from safetensors.torch import load_file, save
from torch import Tensor, nn

CHUNK = 16  # time steps handled by one set of matrix products in the recurrence
DECAY_SCALE = math.exp(-0.5)  # log-decay = -DECAY_SCALE * sigmoid(...): every decay is above 0.545


@dataclass
class Config:
    """Sizes of the model. A token is one byte, so the vocabulary has 256 entries."""

    vocab: int = 256
    n_layer: int = 6
    n_embd: int = 256
    head_size: int = 64
    n_ffn: int = 1024
    rank_w: int = 32
    rank_a: int = 32
    rank_v: int = 32
    rank_g: int = 64

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_size


# ---------------------------------------------------------------------------------------------- recurrence


def wkv_chunked(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """The same values as `wkv_recurrent` in demo_rnn.py, by matrix products over chunks of CHUNK steps.

    With c the running product of decays inside a chunk, all vectors are scaled to the chunk's start (keys by
    1/c, queries by c), which removes the decay from the recurrence. sa_t then depends linearly on sa of the
    earlier steps through a strictly lower triangular matrix L; (I-L)^-1 is a finite product because L^16 = 0.
    Only the short loop over chunks is sequential. 1/c stays below exp(0.6066 * 16) = 16500: safe in float32.
    """
    bsz, length, heads, n = r.shape
    nc = length // CHUNK

    def chunks(x: Tensor) -> Tensor:  # [B,T,H,N] -> [chunks, B*H, CHUNK, N]
        x = x.view(bsz, nc, CHUNK, heads, n).permute(1, 0, 3, 2, 4)
        return x.reshape(nc, bsz * heads, CHUNK, n)

    log_w, v = chunks(log_w), chunks(v)
    log_c = log_w.cumsum(-2)
    c, inv_c = log_c.exp(), (-log_c).exp()
    # a reads the state before this step's decay, r the state after it
    queries = torch.cat([chunks(a) * (log_c - log_w).exp(), chunks(r) * c], -2)
    keys = torch.cat([chunks(b), chunks(k)], -2) * torch.cat([inv_c, inv_c], -2)

    low = torch.ones(CHUNK, CHUNK, device=r.device, dtype=r.dtype).tril()
    strict = low.tril(-1)
    mask = torch.cat([torch.cat([strict, strict], 1), torch.cat([low, low], 1)], 0)
    scores = (queries @ keys.transpose(-1, -2)) * mask  # all four triangular matrices in one product
    ab, ak = scores[..., :CHUNK, :CHUNK], scores[..., :CHUNK, CHUNK:]

    eye = torch.eye(CHUNK, device=r.device, dtype=r.dtype)
    inverse, power = eye + ab, ab
    for _ in range(CHUNK.bit_length() - 2):  # (I+L)(I+L^2)(I+L^4)(I+L^8)
        power = power @ power
        inverse = inverse + inverse @ power
    # sa = a_hat @ P^T + u0, where P is the state coming into the chunk
    both = inverse @ torch.cat([queries[..., :CHUNK, :], ak @ v], -1)
    a_hat, u0 = both[..., :n].unbind(0), both[..., n:].unbind(0)
    c_end = c[..., -1:, :]
    keys_end = keys * c_end  # the same vectors scaled to the chunk's end, where the new state lives
    b_end = keys_end[..., :CHUNK, :].unbind(0)
    added = (v.transpose(-1, -2) @ keys_end[..., CHUNK:, :]).unbind(0)

    p = s.reshape(bsz * heads, n, n)
    before, u = [], []
    for i, decay in enumerate(c_end.unbind(0)):
        before.append(p)
        u.append(torch.baddbmm(u0[i], a_hat[i], p.transpose(1, 2)))
        p = torch.baddbmm(torch.addcmul(added[i], p, decay), u[i].transpose(1, 2), b_end[i])

    y = queries[..., CHUNK:, :] @ torch.stack(before).transpose(-1, -2)
    y = y + scores[..., CHUNK:, :] @ torch.cat([torch.stack(u), v], -2)
    y = y.view(nc, bsz, heads, CHUNK, n).permute(1, 0, 3, 2, 4).reshape(bsz, length, heads, n)
    return y, p.view(bsz, heads, n, n)


# --------------------------------------------------------------------------------------------------- model


def previous(x: Tensor, last: Tensor) -> Tensor:
    """Token shift: every position sees its predecessor, the first one sees the last of the window before."""
    return torch.cat([last.unsqueeze(1), x[:, :-1]], 1)


def linear(n_in: int, n_out: int, bound: float) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer


class TimeMix(nn.Module):
    """Mixing over time. Parameter names, shapes and initial values are those of published RWKV-7 models."""

    def __init__(self, cfg: Config, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer = cfg, layer
        width, n = cfg.n_embd, cfg.head_size
        r0 = layer / max(1, cfg.n_layer - 1)  # 0 in the first layer ... 1 in the last
        r1 = 1 - layer / cfg.n_layer  # 1 in the first layer ... almost 0 in the last
        c = torch.arange(width, dtype=torch.float32)
        d, h = c / width, c / (width - 1)
        z = ((c % n) - (n - 1) / 2) / ((n - 1) / 2)
        zz, lin = z * z.abs(), h - 0.5

        def vec(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.view(1, 1, width).clone())

        def down(rank: int) -> nn.Parameter:  # zero: at first the vectors w0, a0, v0 alone decide
            return nn.Parameter(torch.zeros(width, rank))

        def up(rank: int) -> nn.Parameter:
            gain = math.sqrt(rank / width) if rank > width else 1.0
            return nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width), gain=gain * 0.1))

        self.x_r, self.x_g = vec(1 - d ** (0.2 * r1)), vec(1 - d ** (0.2 * r1))
        self.x_w, self.x_a = vec(1 - d ** (0.9 * r1)), vec(1 - d ** (0.9 * r1))
        self.x_k, self.x_v = vec(1 - d ** (0.7 * r1)), vec(1 - d ** (0.7 * r1))
        self.w0 = vec(-6 + 6 * h ** (1 + r0**0.3) + 0.5 + 2.5 * zz)  # from slow to fast decay in every head
        self.w1, self.w2 = down(cfg.rank_w), up(cfg.rank_w)
        self.a0 = vec(-0.19 + 0.3 * zz + 0.4 * lin)
        self.a1, self.a2 = down(cfg.rank_a), up(cfg.rank_a)
        if layer > 0:
            self.v0 = vec(0.73 - 0.4 * lin)
            self.v1, self.v2 = down(cfg.rank_v), up(cfg.rank_v)
        self.g1, self.g2 = down(cfg.rank_g), up(cfg.rank_g)
        self.k_k, self.k_a = vec(0.71 - 0.1 * lin), vec(torch.full_like(c, 1.02))
        self.r_k = nn.Parameter(torch.full((cfg.n_head, n), -0.04))
        scale = width**-0.5
        self.receptance = linear(width, width, 0.5 * scale)
        self.key = linear(width, width, 0.05 * scale)
        self.value = linear(width, width, 0.5 * scale)
        self.output = linear(width, width, 0.0)  # zero: every block begins as the identity
        self.ln_x = nn.GroupNorm(cfg.n_head, width, eps=n * 1e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / cfg.n_layer) ** 0.7)

    def forward(
        self, x: Tensor, last: Tensor, s: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        bsz, length, width = x.shape
        heads = (bsz, length, self.cfg.n_head, self.cfg.head_size)
        dx = previous(x, last) - x
        x_r, x_w, x_k = x + dx * self.x_r, x + dx * self.x_w, x + dx * self.x_k
        x_v, x_a, x_g = x + dx * self.x_v, x + dx * self.x_a, x + dx * self.x_g
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        log_w = -DECAY_SCALE * torch.sigmoid(self.w0 + torch.tanh(x_w @ self.w1) @ self.w2)
        a = torch.sigmoid(self.a0 + (x_a @ self.a1) @ self.a2)  # how much of an old value goes
        g = torch.sigmoid(x_g @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:  # deeper layers may fall back on the first layer's value of the same token
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (x_v @ self.v1) @ self.v2)
        kk = F.normalize((k * self.k_k).view(heads), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * self.k_a)
        r4, k4, v4, a4 = r.view(heads), k.view(heads), v.view(heads), a.view(heads)
        y, s = wkv_chunked(r4, log_w.view(heads), k4, v4, -kk, kk * a4, s)
        # GroupNorm over heads, written as a LayerNorm over the last axis (much faster on CPUs)
        y = F.layer_norm(y, (self.cfg.head_size,), eps=self.ln_x.eps).view(bsz, length, width)
        y = y * self.ln_x.weight + self.ln_x.bias
        y = y + ((r4 * k4 * self.r_k).sum(-1, keepdim=True) * v4).view(bsz, length, width)
        return self.output(y * g), s, v_first


class ChannelMix(nn.Module):
    def __init__(self, cfg: Config, layer: int) -> None:
        super().__init__()
        d = torch.arange(cfg.n_embd, dtype=torch.float32) / cfg.n_embd
        r1 = 1 - layer / cfg.n_layer
        self.x_k = nn.Parameter((1 - d ** (r1**4)).view(1, 1, -1))
        self.key = linear(cfg.n_embd, cfg.n_ffn, 0.5 * cfg.n_embd**-0.5)
        self.value = linear(cfg.n_ffn, cfg.n_embd, 0.0)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        hidden: Tensor = self.key(x + (previous(x, last) - x) * self.x_k)
        out: Tensor = self.value(torch.relu(hidden).square())
        return out


class Block(nn.Module):
    def __init__(self, cfg: Config, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(cfg.n_embd)
        self.ln1, self.ln2 = nn.LayerNorm(cfg.n_embd), nn.LayerNorm(cfg.n_embd)
        self.att, self.ffn = TimeMix(cfg, layer), ChannelMix(cfg, layer)


class RWKV7(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.emb = nn.Embedding(cfg.vocab, cfg.n_embd)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)  # tiny, so that it moves fast; ln0 brings it to size
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layer))
        self.ln_out = nn.LayerNorm(cfg.n_embd)
        self.head = nn.Linear(cfg.n_embd, cfg.vocab, bias=False)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def new_state(self, batch: int) -> State:
        cfg, like = self.cfg, self.emb.weight
        row = like.new_zeros(batch, cfg.n_embd)
        s = like.new_zeros(batch, cfg.n_head, cfg.head_size, cfg.head_size)
        return [(row, s, row) for _ in range(cfg.n_layer)]

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B,T,vocab] and the state after the last token; T is a multiple of CHUNK."""
        x = self.blocks[0].ln0(self.emb(tokens))  # type: ignore[operator]
        v_first: Tensor | None = None
        after: State = []
        for block, (att_last, s, ffn_last) in zip(self.blocks, state, strict=True):
            assert isinstance(block, Block)
            h = block.ln1(x)
            dx, s, v_first = block.att(h, att_last, s, v_first)  # noqa: PLW2901
            x = x + dx
            h2 = block.ln2(x)
            x = x + block.ffn(h2, ffn_last)
            after.append((h[:, -1].detach(), s.detach(), h2[:, -1].detach()))
        return self.head(self.ln_out(x)), after


def opening_state(state: State, fresh: Tensor) -> State:
    """The state a step begins with: emptied in the rows that begin a new piece."""
    keep = (~fresh).float()
    return [(p * keep[:, None], s * keep[:, None, None, None], f * keep[:, None]) for p, s, f in state]


# ------------------------------------------------------------------------------------------------ training


def learning_rate(step: int, progress: float, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """A cosine down to `floor` * peak while progress runs from 0 to 1; a linear warm-up over some steps."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * cosine)


def make_optimizer(model: RWKV7, weight_decay: float) -> torch.optim.AdamW:
    """Weight decay for matrices except the low-rank pairs. w0 has a wide range and moves twice as fast."""
    decay, plain, fast = [], [], []
    for name, p in model.named_parameters():
        if name.endswith("att.w0"):
            fast.append(p)
        elif p.ndim >= 2 and name.endswith(".weight"):
            decay.append(p)
        else:
            plain.append(p)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": fast, "weight_decay": 0.0, "lr_scale": 2.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-12, fused=True)


@torch.no_grad()
def bits_per_byte(model: RWKV7, pieces: Tensor, device: torch.device, window: int = 256) -> float:
    """Mean over all target bytes. Every piece begins with the empty state and keeps its state to its end."""
    total, count = 0.0, 0
    for first in range(0, pieces.shape[0], 16):
        rows = pieces[first : first + 16].long().to(device)
        state = model.new_state(rows.shape[0])
        for i in range(0, rows.shape[1] - 1, window):
            logits, state = model(rows[:, i : i + window], state)
            target = rows[:, i + 1 : i + window + 1]
            total += float(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
            count += target.numel()
    return total / count / math.log(2)


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target and rename, so that an interruption never leaves half a file."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def export(model: RWKV7) -> dict[str, Tensor]:
    """Matrices in bfloat16; vectors (and r_k, a matrix only in shape) in float32: they are small anyway."""
    tensors = {}
    for name, p in model.state_dict().items():
        vector = p.numel() == p.shape[-1] or name.endswith("att.r_k")
        tensors[name] = p.detach().cpu().to(torch.float32 if vector else torch.bfloat16).contiguous()
    return tensors


def train(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    cfg = Config(n_layer=args.layers)
    corpus = load_corpus(args.corpus, args.segment, args.valid_share)
    model = RWKV7(cfg).to(device)
    optimizer = make_optimizer(model, args.weight_decay)
    state = model.new_state(args.batch)
    step, spent, curve = 0, 0.0, []
    args.run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = args.run_dir / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent, curve, state = saved["step"], saved["seconds"], saved["curve"], saved["state"]
        print(f"resumed at step {step}, {spent:.0f} s", flush=True)
    settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float))}
    log: dict[str, Any] = {"config": asdict(cfg), "settings": settings, "corpus": corpus.facts}
    log["parameters"] = sum(p.numel() for p in model.parameters())
    print(json.dumps(log), flush=True)
    log["curve"] = curve
    probe = corpus.valid[:: max(1, corpus.valid.shape[0] // 32)]  # a part of it is enough for the curve
    run = torch.compile(model) if args.compile else model

    began, mark, running, seen = time.monotonic() - spent, spent, 0.0, 0
    while True:
        progress = step / args.steps if args.steps is not None else spent / (60 * args.minutes)
        finished = progress >= 1
        if seen and (finished or spent - mark >= args.report_seconds):
            row = {"step": step, "seconds": round(spent, 1), "train_loss": round(running / seen, 4)}
            row["valid_bpb"] = round(bits_per_byte(model, probe, device), 4)
            curve.append(row)
            print(json.dumps(row), flush=True)
            spent = time.monotonic() - began
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
            buffer = io.BytesIO()
            torch.save(content | {"step": step, "seconds": spent, "curve": curve}, buffer)
            write_atomic(checkpoint, buffer.getvalue())
            write_atomic(args.run_dir / "log.json", json.dumps(log, indent=1).encode())
            mark, running, seen = spent, 0.0, 0
        if finished:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args.lr) * group["lr_scale"]
        data, fresh = training_batch(corpus.train, step, args.batch, args.window, args.seed)
        data, fresh = data.to(device), fresh.to(device)
        logits, state = run(data[:, :-1], opening_state(state, fresh))
        loss = F.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen, running = step + 1, seen + 1, running + loss.item()
        spent = time.monotonic() - began

    weights = args.run_dir / "demo-weights.safetensors"
    write_atomic(weights, save(export(model)))
    model.load_state_dict(load_file(weights))  # judge what was written, with its rounding
    log["valid_bpb"] = round(bits_per_byte(model, corpus.valid, device), 4)
    log |= {"steps": step, "seconds": round(spent), "train_bytes_seen": step * args.batch * args.window}
    write_atomic(args.run_dir / "log.json", json.dumps(log, indent=1).encode())
    print(f"{weights}: {weights.stat().st_size} bytes, {log['valid_bpb']} bits per byte", flush=True)


# -------------------------------------------------------------------------------- self-check, command line


def self_check() -> None:
    """The chunked form against the definition (values, gradients), the whole model against its RNN form."""
    torch.manual_seed(1)
    shape = (2, 5 * CHUNK, 3, 8)
    kk = F.normalize(torch.randn(shape, dtype=torch.float64), dim=-1)
    rate = torch.rand(shape, dtype=torch.float64)
    log_w = -DECAY_SCALE * torch.sigmoid(4 * torch.randn(shape, dtype=torch.float64))
    r, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    inputs = [r, log_w, k, v, -kk, kk * rate, torch.randn(2, 3, 8, 8, dtype=torch.float64)]
    weight_y, weight_s = torch.randn(shape, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = []
    for form in (wkv_recurrent, wkv_chunked):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y, s = form(*leaves)
        grads = torch.autograd.grad((y * weight_y).sum() + (s * weight_s).sum(), leaves)
        results.append([y, s, *grads])
    names = ["y", "state", "grad r", "grad log_w", "grad k", "grad v", "grad a", "grad b", "grad state"]
    worst = 0.0
    for name, plain, fast in zip(names, *results, strict=True):
        error = float(((plain - fast).abs().max() / plain.abs().max()).detach())
        worst = max(worst, error)
        print(f"{name:10s} relative difference {error:.1e}")
    model = RWKV7(Config(n_layer=2)).double()
    with torch.no_grad():
        for p in model.parameters():  # zero initial values would hide errors
            p.add_(0.05 * torch.randn_like(p))
        tokens = torch.randint(0, 256, (1, 3 * CHUNK))
        state = model.new_state(1)
        first, state = model(tokens[:, :CHUNK], state)
        rest, _ = model(tokens[:, CHUNK:], state)
        logits, state = torch.cat([first, rest], 1)[0], model.new_state(1)
        for t, token in enumerate(tokens[0].tolist()):
            one, state = rnn_step(model.state_dict(), token, state)
            worst = max(worst, float((one - logits[t]).abs().max() / logits.abs().max()))
    print(f"worst, with the whole model against its RNN form: {worst:.1e}")
    if worst > 1e-9:
        raise SystemExit("self-check failed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train or sample the RWKV-7 demo model over bytes.")
    parser.add_argument("--corpus", type=Path, help="folder of .txt files")
    parser.add_argument("--run-dir", type=Path, default=Path("out/demo"), help="for checkpoint, log, result")
    parser.add_argument("--minutes", type=float, default=30.0, help="training time, summed over resumed runs")
    parser.add_argument("--steps", type=int, help="train for a number of steps instead")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=256, help="bytes per step and row (multiple of 16)")
    parser.add_argument("--segment", type=int, default=2048, help="bytes over which a row keeps its state")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--valid-share", type=float, default=0.05, help="last part of every book")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--report-seconds", type=float, default=60.0, help="between checkpoints")
    parser.add_argument("--self-check", action="store_true")
    parser.add_argument("--sample", action="store_true", help="generate text from --weights")
    parser.add_argument("--weights", type=Path, help="default: demo-weights.safetensors in --run-dir")
    parser.add_argument("--prompt", default="It was ")
    parser.add_argument("--count", type=int, default=400, help="bytes to sample")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.self_check:
        self_check()
    elif args.sample:
        path = args.weights or args.run_dir / "demo-weights.safetensors"
        drawn = bytes(sample(path, args.prompt, args.count, args.temperature, args.top_p, args.seed))
        print(args.prompt + drawn.decode("utf-8", errors="replace"))
    elif args.steps is not None and args.steps < 1:
        parser.error("--steps is at least 1")
    elif args.corpus is not None and not args.corpus.is_dir():
        parser.error(f"there is no folder {args.corpus}")
    elif args.corpus is None or args.segment % args.window or args.window % CHUNK:
        parser.error("training needs --corpus, --segment divisible by --window, --window divisible by 16")
    else:
        train(args)


if __name__ == "__main__":
    main()
