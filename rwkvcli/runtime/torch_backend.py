"""RWKV models on any PyTorch device: the plain forward pass that the native engine is tested against.

It also serves `--device torch[:DEVICE]` where no native kernel exists (Apple, AMD and Intel GPUs). It is
optional and must be imported late: torch is imported here and in `torch_blocks`, and nowhere else at run
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rwkvcli.runtime import torch_blocks as blocks

if TYPE_CHECKING:
    from quant.arch import Arch
    from rwkvcli.runtime.backend import Float32

Tensor = torch.Tensor
Tokens = Sequence[int] | NDArray[np.integer[Any]]

GROUP_NORM_EPS = 64e-5
"""Of v5 to v7, with heads of 64 channels; no checkpoint stores it."""
V4_EMPTY = -1e30
"""pp of a v4 state that has seen nothing: any number so small makes exp(pp - x) exactly 0."""
CHUNK = 256
"""Tokens per pass: bounds the memory of activations, changes no result beyond rounding."""


class ModelSource(Protocol):
    """What TorchModel needs of a model file (`quant.container.reader.ModelFile` has it)."""

    @property
    def arch(self) -> Arch: ...

    @property
    def plan(self) -> Mapping[str, Any]:
        """Per logical name, something with `.encoding` and `.layout`."""
        ...

    def parts(self, name: str) -> dict[str, NDArray[Any]]:
        """What a quantized tensor is stored as, by part."""
        ...

    def decode(self, name: str) -> Float32:
        """The tensor in float32, row-major, logical shape: matrices [out, in]."""
        ...


@dataclass
class TorchState:
    """The recurrent state of one sequence, on the model's device and in its dtype.

    `layers` holds, for each block, `att.x_prev` [C], `ffn.x_prev` [C], and `att.state` [H, N value, N key],
    or for v4 `att.aa`, `att.bb` and `att.pp`, each [C].
    """

    layers: list[dict[str, Tensor]]

    def copy(self) -> TorchState:
        """An independent copy: both may go their own ways."""
        return TorchState([{name: tensor.clone() for name, tensor in layer.items()} for layer in self.layers])

    def assign(self, other: TorchState) -> None:
        self.layers = other.copy().layers

    def to_numpy(self) -> dict[str, Float32]:
        """A float32 copy in the canonical form: the tensors above as `blocks.{i}.att.x_prev` and so on."""
        return {
            name: tensor.to("cpu", torch.float32, copy=True).numpy()
            for name, tensor in self._canonical().items()
        }

    def load_numpy(self, arrays: Mapping[str, Any]) -> None:
        """Become the state that `to_numpy` gave. Raises ValueError, and changes nothing, when it does not
        fit.
        """
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        mine = self._canonical()
        if odd := sorted(arrays.keys() ^ mine.keys()):
            raise ValueError(f"not a state of this model: tensor {odd[0]!r} is missing or unexpected")
        for name, tensor in mine.items():
            found, wanted = list(arrays[name].shape), list(tensor.shape)
            if found != wanted:
                raise ValueError(f"not a state of this model: {name} has shape {found}, not {wanted}")
        self.layers = [
            {
                name: torch.tensor(arrays[f"blocks.{i}.{name}"], dtype=tensor.dtype, device=tensor.device)
                for name, tensor in layer.items()
            }
            for i, layer in enumerate(self.layers)
        ]

    def _canonical(self) -> dict[str, Tensor]:
        return {
            f"blocks.{i}.{name}": tensor
            for i, layer in enumerate(self.layers)
            for name, tensor in layer.items()
        }


class TorchModel:
    """A model on a torch device.

    `source` is a model file, or a pair (arch, mapping of logical names to arrays). The weights are
    converted one at a time, so a load needs the device's copy and one tensor more. `group_norm_eps`: None for
    the usual 64e-5 (no checkpoint stores it). `imitate_engine` rounds what goes into every product with a quantized
    matrix as the native engine does: 8 bits per 32 channels, and in layout kn 16 bits per 16 active channels.
    """

    def __init__(
        self,
        source: ModelSource | tuple[Arch, Mapping[str, Any]],
        device: str = "cpu",
        dtype: str = "float32",
        *,
        group_norm_eps: float | None = None,
        imitate_engine: bool = False,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; float32 and float64 are known")
        self.device = torch.device(best_device() if device == "auto" else device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._integer: dict[str, Callable[[Tensor], Tensor]] = {}
        names: Mapping[str, Any]
        decode: Callable[[str], Any]
        if isinstance(source, tuple):
            self.arch, names = source
            decode = names.__getitem__
            if imitate_engine:
                raise ValueError("imitate_engine needs a model file: it says which matrices are integers")
        else:
            self.arch, names = source.arch, source.plan
            decode = source.decode
        # a copy: what a file decodes to may be a view of its read-only mapping
        self.weights = {
            name: torch.tensor(decode(name), dtype=self.dtype, device=self.device) for name in names
        }
        if imitate_engine and not isinstance(source, tuple):
            self._integer = {
                name: product
                for name in names
                if (product := self._integer_product(source, name)) is not None
            }
        arch = self.arch
        vector, matrix = (arch.n_embd,), (arch.n_head, arch.head_size, arch.head_size)
        recurrent = (
            {"att.aa": vector, "att.bb": vector, "att.pp": vector}
            if arch.version == "4"
            else {"att.state": matrix}
        )
        self._state_shapes: dict[str, tuple[int, ...]] = {
            "att.x_prev": vector,
            **recurrent,
            "ffn.x_prev": vector,
        }
        eps = GROUP_NORM_EPS if group_norm_eps is None else group_norm_eps
        self._layers = [self._block(f"blocks.{i}.", eps) for i in range(arch.n_layer)]

    @property
    def description(self) -> str:
        """The device in a few words."""
        return f"torch {torch.__version__}, {self.device}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def state_type(self) -> type:
        return TorchState

    def new_state(self) -> TorchState:
        """The state of a sequence that has not begun."""
        return TorchState(
            [
                {
                    name: torch.full(
                        shape, V4_EMPTY if name == "att.pp" else 0.0, dtype=self.dtype, device=self.device
                    )
                    for name, shape in self._state_shapes.items()
                }
                for _ in self._layers
            ]
        )

    def forward(
        self, tokens: Tokens, state: TorchState, all_logits: bool = False, done: list[Any] | None = None
    ) -> Float32:
        """Feed tokens; the state advances in place, or stays as it was when anything is raised.

        Returns the logits after the last token, float32 [V], or after each, float32 [T, V].
        """
        ids = self._checked(tokens)
        current = self._stacked([state])
        logits: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(tokens), CHUNK):
                x, current = self._advance(ids[None, start : start + CHUNK], current)
                if all_logits:
                    logits.append(self._head(x[0]))
            last = torch.cat(logits) if all_logits else self._head(x[0, -1])
            result = _to_numpy(last)
        after = _of_sequence(current, 0)
        state.layers = after
        if done is not None:
            done.append(result)
        return result

    def lookahead(self) -> None:
        return None

    def forward_batch(
        self, tokens: Tokens, states: Sequence[TorchState], done: list[Any] | None = None
    ) -> Float32:
        """One token for each of B states, which all advance; the weights are read once. Logits float32 [B,
        V].
        """
        if len(tokens) != len(states):
            raise ValueError(f"{len(tokens)} tokens for {len(states)} states")
        if len({id(state) for state in states}) != len(states):
            raise ValueError("the same state twice in a batch")
        ids = self._checked(tokens)
        with torch.inference_mode():
            x, after = self._advance(ids[:, None], self._stacked(states))
            result = _to_numpy(self._head(x[:, -1]))
        for b, state in enumerate(states):
            state.layers = _of_sequence(after, b)
        if done is not None:
            done.append(result)
        return result

    def _block(self, prefix: str, group_norm_eps: float) -> blocks.Block:
        mine = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
        }
        integer = {name: self._integer[prefix + name] for name in mine if prefix + name in self._integer}
        return blocks.Block(mine, integer, self.arch.n_head, self.arch.head_size, group_norm_eps)

    def _advance(self, ids: Tensor, state: list[dict[str, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """ids [B, T] and a batched state (tensors [B, ...]) -> the residual stream [B, T, C] and the state
        after it.
        """
        weights, version = self.weights, self.arch.version
        x = weights["emb.weight"][ids]
        if not self.arch.ln0_fused:
            x = blocks.layer_norm(x, weights["blocks.0.ln0.weight"], weights["blocks.0.ln0.bias"])
        after: list[dict[str, Tensor]] = []
        v_first: Tensor | None = None
        for p, before in zip(self._layers, state, strict=True):
            normed = blocks.layer_norm(x, p["ln1.weight"], p["ln1.bias"])
            if version == "4":
                mixed, new_att = blocks.time_mix_v4(p, normed, before)
            elif version == "6":
                mixed, new_att = blocks.time_mix_v6(p, normed, before)
            elif version == "7":
                mixed, new_att, v_first = blocks.time_mix_v7(p, normed, before, v_first)
            else:
                mixed, new_att = blocks.time_mix_v5(version, p, normed, before)
            x = x + mixed
            normed = blocks.layer_norm(x, p["ln2.weight"], p["ln2.bias"])
            mixed, new_ffn = blocks.channel_mix(version, p, normed, before)
            x = x + mixed
            after.append(new_att | new_ffn)
        return x, after

    def _head(self, x: Tensor) -> Tensor:
        """x [..., C] -> logits [..., V]."""
        x = blocks.layer_norm(x, self.weights["ln_out.weight"], self.weights["ln_out.bias"])
        product = self._integer.get("head.weight")
        return product(x) if product is not None else x @ self.weights["head.weight"].T

    def _integer_product(self, source: ModelSource, name: str) -> Callable[[Tensor], Tensor] | None:
        """The engine's way to multiply by a quantized matrix; None where it computes in float32."""
        from quant.formats import ENCODINGS

        entry, weight = source.plan[name], self.weights[name]
        if not ENCODINGS[entry.encoding].quantized or entry.layout == "row":
            return None
        if entry.layout != "kn":
            return lambda x: blocks.round_activations(x) @ weight.T
        from quant.codecs import levels
        from quant.codecs.layouts import unpack

        grouped = unpack(source.parts(name), entry.encoding, entry.layout, entry.shape)
        roots = grouped.scales.astype(np.float32)
        group = grouped.codes.shape[1] // grouped.scales.shape[1]
        scales = np.repeat(roots * np.abs(roots), group, axis=1)[:, : grouped.length]
        codes = levels(grouped, entry.encoding)[grouped.codes[:, : grouped.length]]
        return blocks.ChannelBlocks(
            torch.tensor(grouped.rows, device=self.device),
            torch.tensor(scales, device=self.device),
            torch.tensor(codes, dtype=self.dtype, device=self.device),
        )

    def _checked(self, tokens: Tokens) -> Tensor:
        if not len(tokens):
            raise ValueError("no tokens to feed")
        for token in tokens:
            if not 0 <= token < self.arch.vocab_size:
                raise ValueError(f"token {token} is outside the vocabulary of {self.arch.vocab_size}")
        return torch.tensor([int(token) for token in tokens], dtype=torch.int64, device=self.device)

    def _stacked(self, states: Sequence[TorchState]) -> list[dict[str, Tensor]]:
        """The states as one, with a batch axis in front of every tensor; refuses states of another model's
        shape.
        """
        wanted = self._state_shapes
        for state in states:
            shapes = [{name: tuple(tensor.shape) for name, tensor in layer.items()} for layer in state.layers]
            if shapes != [wanted] * len(self._layers):
                raise ValueError("the state belongs to a model of another shape")
        return [
            {name: torch.stack([state.layers[i][name] for state in states]) for name in wanted}
            for i in range(len(self._layers))
        ]


def _of_sequence(layers: list[dict[str, Tensor]], b: int) -> list[dict[str, Tensor]]:
    """Sequence b of a batched state, in memory of its own."""
    return [{name: layer[name][b].clone() for name in layer} for layer in layers]


def best_device() -> str:
    """The fastest kind of device that this torch can use."""
    if torch.cuda.is_available():  # NVIDIA, and AMD in ROCm builds
        return "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def _to_numpy(logits: Tensor) -> Float32:
    return logits.to("cpu", torch.float32).numpy()
