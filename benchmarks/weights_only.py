"""Formats compared by what they make of the same matrices, all else in float32: part of `benchmarks.quality`.

The attention's and the FFN's matrices are stored in a format, decoded again, and put into a float32 model. So nothing
but the format differs, and formats that no engine here runs can be compared. (Our engine also rounds activations.)
"""

from __future__ import annotations

import io
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import F32, Made, Peer, peers
from quant.budget import Option, choose
from quant.calibration import Calibration
from quant.codecs import decode
from quant.container.reader import ModelFile
from quant.formats import ENCODINGS, TILE, stored_bytes
from quant.methods import gptq
from quant.recipe import class_of
from quant.sampling import losses, rows_of
from quant.sources import source_of
from rwkvcli import Model
from rwkvcli.runtime.machine import default_threads
from rwkvcli.services import evaluation
from rwkvcli.services.calibrating import Windows, gather, read_windows
from rwkvcli.services.encoding import NativeEncoder

Maker = Callable[[str, F32, F32 | None], Made]
"""(name, float32 matrix [N, K], importance [K]) -> what it becomes."""
Weights = Callable[[str], F32 | None]
"""How much errors at each input of a matrix count."""
OURS = ("q4g32", "q4g16", "q5g32", "q5g16", "q6g32", "q6g16", "q8g32")
MIXED = (5.0, 5.5, 6.5625)
"""Bits per weight, the last two those of Q5_K and Q6_K, that mixtures of ours are made for."""
HEAD = "| format | bits per weight | weight error | output error | ratio to f32 | KL mean | KL from the 65th token on |"


def compare(
    base: Path,
    folder: Path,
    text: bytes,
    ctx: int | None,
    calibrate: bytes,
    tokens: int,
    library: Path | None,
    wanted: re.Pattern[str],
) -> list[dict[str, Any]]:
    """Every format on all matrices of attention and FFN of the float32 model `base`; prints a table.

    `wanted`: those whose names it finds. Errors are relative squared ones: of the weights, and of the outputs as far as the sizes of the inputs tell.
    """
    windows = read_windows(io.BytesIO(calibrate or text), "text", Model.load(base).tokenizer, tokens)
    calibration = gather(base, windows, threads=default_threads())
    print(f"\n{HEAD}\n|---|" + "---:|" * (HEAD.count("|") - 2), flush=True)
    found = []
    forms: dict[str, Callable[[], Iterator[tuple[str, F32, Made]]]] = {}
    choices = {encoding: dict.fromkeys(_names(base), encoding) for encoding in OURS}
    for bits in MIXED:
        choices[f"mixed to {bits:.2f}"] = _mixture(base, bits, calibration if calibrate else None)
    for label, chosen in choices.items():
        forms[f"ours, {label}"] = lambda c=chosen: _each(base, _ours(c), None)  # type: ignore[misc]
        if label != "q8g32" and calibrate:
            forms[f"ours, {label}, calibrated"] = lambda c=chosen: _each(
                base, _ours(c), calibration.importance
            )  # type: ignore[misc]
            forms[f"ours, {label}, gptq"] = lambda c=chosen: _by_gptq(base, c, windows)  # type: ignore[misc]
    for name, peer in peers(library).items():
        if "importance" not in name or calibrate:
            forms[name] = lambda p=peer: _each(base, _same(p), lambda n: _squares(calibration, n))  # type: ignore[misc]
    for name, form in forms.items():
        if not wanted.search(name):
            continue
        try:
            row = _measured(base, folder, form(), text, ctx, calibration)
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        found.append({"format": name, **row})
        errors = f"{row['weight_error']:.3g} | {row['output_error']:.3g}"
        print(f"| {name} | {row['bits']:.2f} | {errors} | {_told(row)} |", flush=True)
    return found


def sensitivity(
    base: Path, folder: Path, text: bytes, ctx: int | None, wanted: re.Pattern[str]
) -> list[dict[str, Any]]:
    """What q4g32 costs in one kind of matrix of all blocks, and what giving it 8 bits would save; prints a table."""
    print("\n| matrix | KL mean | KL per MB saved against q8g32 |\n|---|---:|---:|", flush=True)
    found = []
    with ModelFile.open(base) as model:
        leaves = dict.fromkeys(
            _leaf(name) for name in model.plan if class_of(name) in ("att", "ffn", "emb", "head")
        )
        shapes = {name: plan.shape for name, plan in model.plan.items()}
    for leaf in filter(wanted.search, leaves):
        names = [name for name in shapes if _leaf(name) == leaf]
        peer = _ours(dict.fromkeys(names, "q4g32"))
        row = _measured(base, folder, _each(base, peer, None, names), text, ctx, None)
        saved = sum(
            stored_bytes("q8g32", TILE, shapes[n]) - stored_bytes("q4g32", TILE, shapes[n]) for n in names
        )
        kl = row["base"]["kl"]["mean"]
        found.append({"matrix": leaf, "kl": kl, "kl_per_mb": kl / saved * 1e6})
        print(f"| {leaf.removesuffix('.weight')} | {kl:.3g} | {kl / saved * 1e6:.3g} |", flush=True)
    return found


def _leaf(name: str) -> str:
    """A tensor's name without its block."""
    return name.split(".", 2)[-1] if name.startswith("blocks.") else name


def _squares(calibration: Calibration, name: str) -> F32:
    """The mean square of each input, the mean of all being 1: what llama.cpp's importance is."""
    squares = calibration.inputs[name].squares
    result: F32 = (squares / squares.mean()).astype(np.float32)
    return result


def _names(base: Path) -> list[str]:
    """The matrices that are compared."""
    with ModelFile.open(base) as model:
        return [name for name in model.plan if class_of(name) in ("att", "ffn")]


def _mixture(base: Path, bits: float, calibration: Calibration | None) -> dict[str, str]:
    """{matrix: encoding}, as `rwkv quantize --target-bpw` would choose them if these matrices were all."""
    encoder = NativeEncoder(default_threads())
    options, weights = {}, 0
    with ModelFile.open(base) as model:
        source = source_of(model)
        for name in _names(base):
            shape = model.plan[name].shape
            importance = calibration.importance(name) if calibration is not None else None
            lost = losses(rows_of(source, name), encoder, importance)
            options[name] = [Option(e, stored_bytes(e, TILE, shape), lost[e]) for e in lost]
            weights += math.prod(shape)
    found = choose(options, int(bits * weights / 8))
    return {name: option.encoding for name, option in found.items()}


def _ours(encodings: Mapping[str, str]) -> Maker:
    encoder = NativeEncoder(default_threads())

    def make(name: str, w: F32, importance: F32 | None) -> Made:
        encoding, shape = encodings[name], (w.shape[0], w.shape[1])
        parts = encoder.encode(w, encoding, TILE, importance)
        return Made(decode(parts, encoding, TILE, shape), stored_bytes(encoding, TILE, shape))

    return make


def _same(peer: Peer) -> Maker:
    """Whatever the matrix is called."""
    return lambda name, w, importance: peer(w, importance)


def _each(
    base: Path, make: Maker, weights: Weights | None, names: Iterable[str] | None = None
) -> Iterator[tuple[str, F32, Made]]:
    with ModelFile.open(base) as model:
        for name in names or _names(base):
            w = model.decode(name).copy()
            yield name, w, make(name, w, None if weights is None else weights(name))


def _by_gptq(base: Path, encodings: Mapping[str, str], windows: Windows) -> Iterator[tuple[str, F32, Made]]:
    from rwkvcli.runtime.torch_hessians import TorchHessians

    with ModelFile.open(base) as model:
        names = _names(base)
        view = TorchHessians(
            source_of(model),
            windows.ids,
            names,
            device="cpu",
            group_norm_eps=model.group_norm_eps or 64e-5,
            threads=default_threads(),
        )
        for name in names:
            w = model.decode(name).copy()
            hessian = view.of(name)
            assert hessian is not None
            encoding, shape = encodings[name], (w.shape[0], w.shape[1])
            if ENCODINGS[encoding].weighted:
                parts = gptq.encode(w, hessian, encoding, TILE)
            else:
                parts = NativeEncoder(default_threads()).encode(w, encoding, TILE)
            values = decode(parts, encoding, TILE, shape)
            view.replace(name, values)
            yield name, w, Made(values, stored_bytes(encoding, TILE, shape))


def _measured(
    base: Path,
    folder: Path,
    matrices: Iterator[tuple[str, F32, Made]],
    text: bytes,
    ctx: int | None,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """A copy of `base` with other matrices, against `base`."""
    path = folder / "decoded.safetensors"
    shutil.copyfile(base, path)
    nbytes = weights = 0
    errors: list[float] = []
    outputs: list[float] = []
    with ModelFile.open(base) as model, path.open("r+b") as file:
        for name, w, stored in matrices:
            nbytes, weights = nbytes + stored.nbytes, weights + w.size
            lost, power = np.square(w - stored.values, dtype=np.float64), np.square(w, dtype=np.float64)
            errors.append(lost.sum() / power.sum())
            if calibration is not None:
                squares = _squares(calibration, name)
                outputs.append((lost @ squares).sum() / (power @ squares).sum())
            file.seek(model.plan[name].parts[0].offset)
            file.write(stored.values.astype("<f4").tobytes())
    found = evaluation.measure(Model.load(path), io.BytesIO(text), base=Model.load(base), ctx=ctx).to_json()
    means = {"weight_error": float(np.mean(errors)), "output_error": float(np.mean(outputs or [np.nan]))}
    return {"bits": 8 * nbytes / weights, **means, **found}


def _told(row: dict[str, Any]) -> str:
    base = row["base"]
    later = base["drift"][
        1:
    ]  # what stands at the beginning of a window can differ by chance (docs/quality.md)
    tokens = sum(part["tokens"] for part in later)
    kl = sum(part["tokens"] * part["kl"] for part in later) / tokens if tokens else math.nan
    ratio = f"{base['ratio']:.5f} ± {base['ratio_stderr']:.5f}"
    return f"{ratio} | {base['kl']['mean']:.3g} | {kl:.3g}"
