"""What goes into each matrix of a model that is quantized layer by layer: the second moments that GPTQ needs.

One block's weights are on the device at a time, beside the residual streams of all calibration tokens. A half block is
run again whenever a matrix in it was replaced, so that what comes after sees what the quantized model will see.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from rwkvcli.runtime import torch_blocks as blocks
from rwkvcli.runtime.torch_backend import V4_EMPTY, best_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quant.sources import Source
    from rwkvcli.runtime.backend import Float32

Tensor = torch.Tensor
_AFTER = {"att": ("att.output.weight",), "ffn": ("ffn.value.weight",)}
"""Matrices whose inputs depend on the other ones of their half of a block."""


class TorchHessians:
    """`quant.methods.gptq.Hessians` from the weights of `source` and windows of tokens, all equally long.

    `wanted`: names of matrices that will be asked for. `device`: a torch device, or "auto". `threads`: of the CPU, 0 for
    as many as torch likes. `check` is called before each run and may raise.
    """

    def __init__(
        self,
        source: Source,
        windows: Sequence[NDArray[np.int32]],
        wanted: Collection[str],
        *,
        device: str = "auto",
        threads: int = 0,
        group_norm_eps: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._source, self._wanted, self._check = source, frozenset(wanted), check
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device(best_device() if device == "auto" else device)
        self._eps = group_norm_eps
        self._weights: dict[str, Tensor] = {}
        self._found: dict[str, Float32] = {}
        self._v_first: Tensor | None = None
        self._place: tuple[int, str] = (-1, "ffn")
        self._ids = np.stack(windows)
        self._x = self._embedded(self._rows("emb.weight"))

    def of(self, name: str) -> Float32 | None:
        """See `Hessians.of`."""
        if name not in self._wanted:
            return None
        with torch.inference_mode():
            if name == "head.weight":
                self._go_to((self._source.arch.n_layer, "att"))
                weight, bias = self._vector("ln_out.weight"), self._vector("ln_out.bias")
                moments: dict[str, Tensor] = {}
                _add(moments, name, blocks.layer_norm(self._x, weight, bias))
                return _mean(moments[name], self._x)
            layer, half, leaf = _parsed(name)
            self._go_to((layer, half))
            if name not in self._found:
                after = leaf in _AFTER[half]
                names = {
                    n for n in self._weights if n in self._wanted and (_parsed(n)[2] in _AFTER[half]) == after
                }
                self._run(frozenset(names))
            return self._found.pop(name)

    def replace(self, name: str, values: Float32) -> None:
        """See `Hessians.replace`."""
        if name == "head.weight":
            return
        if name == "emb.weight":
            self._x = self._embedded(values)
            return
        layer, half, _ = _parsed(name)
        with torch.inference_mode():
            self._go_to((layer, half))
        self._weights[name] = torch.tensor(values, device=self._device)

    def _embedded(self, table: Float32) -> Tensor:
        """The stream [B, T, C] before the first block."""
        rows = torch.from_numpy(table[self._ids]).to(self._device)
        ln0 = [self._vector(f"blocks.0.ln0.{part}") for part in ("weight", "bias")]
        return blocks.layer_norm(rows, *ln0)

    def _go_to(self, place: tuple[int, str]) -> None:
        """Finish half blocks until `place` is the one at hand."""
        while self._place != place:
            layer, half = self._place
            if layer >= 0:
                self._x = self._x + self._run(frozenset())
            self._place = (layer, "ffn") if half == "att" else (layer + 1, "att")
            if self._place[0] == self._source.arch.n_layer:
                self._weights = {}
                return
            prefix = f"blocks.{self._place[0]}."
            self._weights = {
                name: self._vector(name)
                for name in self._source.shapes
                if name.startswith((f"{prefix}{self._place[1]}.", f"{prefix}ln"))
            }

    def _run(self, names: frozenset[str]) -> Tensor:
        """What the half block at hand adds to the stream; meanwhile moments of the inputs of `names` are added up."""
        self._check()
        layer, half = self._place
        prefix = f"blocks.{layer}."
        moments: dict[str, Tensor] = {}

        def product(name: str) -> Callable[[Tensor], Tensor]:
            def multiply(x: Tensor) -> Tensor:
                _add(moments, name, x)
                return x @ self._weights[name].T

            return multiply

        arch = self._source.arch
        local = {name.removeprefix(prefix): tensor for name, tensor in self._weights.items()}
        p = blocks.Block(
            local,
            {name.removeprefix(prefix): product(name) for name in names},
            arch.n_head,
            arch.head_size,
            self._eps,
        )
        norm = "ln1" if half == "att" else "ln2"
        normed = blocks.layer_norm(self._x, p[f"{norm}.weight"], p[f"{norm}.bias"])
        state = self._empty_state()
        if half == "ffn":
            out, _ = blocks.channel_mix(arch.version, p, normed, state)
        elif arch.version == "4":
            out, _ = blocks.time_mix_v4(p, normed, state)
        elif arch.version == "6":
            out, _ = blocks.time_mix_v6(p, normed, state)
        elif arch.version == "7":
            out, _, v_first = blocks.time_mix_v7(p, normed, state, self._v_first if layer else None)
            if not layer:
                self._v_first = v_first
        else:
            out, _ = blocks.time_mix_v5(arch.version, p, normed, state)
        self._found |= {name: _mean(moment, self._x) for name, moment in moments.items()}
        return out

    def _empty_state(self) -> Mapping[str, Tensor]:
        arch = self._source.arch
        count, channels = self._x.shape[0], arch.n_embd

        def full(value: float, *shape: int) -> Tensor:
            return torch.full((count, *shape), value, device=self._device)

        shifts = {"att.x_prev": full(0.0, channels), "ffn.x_prev": full(0.0, channels)}
        if arch.version == "4":
            empty = {"att.aa": full(0.0, channels), "att.bb": full(0.0, channels)}
            return {**shifts, **empty, "att.pp": full(V4_EMPTY, channels)}
        return {**shifts, "att.state": full(0.0, arch.n_head, arch.head_size, arch.head_size)}

    def _rows(self, name: str) -> Float32:
        return self._source.rows(name, 0, self._source.shapes[name][0])

    def _vector(self, name: str) -> Tensor:
        return torch.tensor(self._rows(name), device=self._device)


def _parsed(name: str) -> tuple[int, str, str]:
    """(layer, "att" or "ffn", leaf with its half) of a block's matrix."""
    _, layer, leaf = name.split(".", 2)
    return int(layer), leaf.partition(".")[0], leaf


def _add(moments: dict[str, Tensor], name: str, x: Tensor) -> None:
    """Take the inputs x [B, T, K] in, one window at a time."""
    for window in x:
        product = window.T @ window
        moments[name] = moments[name] + product if name in moments else product


def _mean(moment: Tensor, x: Tensor) -> Float32:
    return (moment / (x.shape[0] * x.shape[1])).to("cpu", torch.float32).numpy()
