"""The original form: BlinkDL's names and shapes, as a .pth or a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from quant.arch import stored_shape
from quant.checkpoints.write import write_pth, write_safetensors
from quant.errors import InvalidRequest
from quant.export.outgoing import Outgoing, OutgoingStream
from quant.export.weights import Weights


def tensors(weights: Weights, dtype: str | None) -> list[Outgoing]:
    """See `quant.export.formats`. InvalidRequest: a model without ln0, which no other reader would understand."""
    if weights.arch.ln0_fused:
        raise InvalidRequest(
            f"{weights.path} has its first layer norm in the embedding, which this format cannot tell",
            hint="use --to hf" if weights.arch.version == "7" else None,
        )
    return [
        Outgoing(
            name,
            stored_shape(weights.arch, name, shape),
            dtype or weights.dtype(name),
            partial(weights.read, name),
        )
        for name, shape in weights.shapes.items()
    ]


def save_pth(weights: Weights, stream: OutgoingStream, out: Path, vocabulary: Sequence[bytes] | None) -> None:
    """A file that `torch.load(weights_only=True)` and the package `rwkv` read."""
    write_pth(out, stream, stream.dtypes)


def save_safetensors(
    weights: Weights, stream: OutgoingStream, out: Path, vocabulary: Sequence[bytes] | None
) -> None:
    """The same tensors as safetensors."""
    write_safetensors(out, stream, stream.dtypes, metadata={"format": "pt"})
