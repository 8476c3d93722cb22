"""The config.json beside a Hugging Face checkpoint: what names and shapes do not tell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.arch import Arch
from quant.errors import FormatError, UnsupportedModel, quoted

LAYER_NORM_EPS = 1e-5
"""What every RWKV model computes its layer norms with."""
_LARGEST_DIVISOR = 300
"""Of heads before a norm: its square times 1e-5 is below 1."""
_MAX_BYTES = 1 << 20
_SIZES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
"""What has to agree with the tensors. Others are wrong in some repositories, and the tensors tell them."""


@dataclass(frozen=True)
class HfConfig:
    """A configuration, or none (`values` is empty)."""

    where: str
    values: Mapping[str, Any]

    @classmethod
    def none(cls) -> HfConfig:
        """No configuration."""
        return cls("", {})

    @classmethod
    def beside(cls, folder: Path) -> HfConfig:
        """The config.json in `folder`, if there is one that speaks of RWKV. FormatError: it is damaged."""
        path = folder / "config.json"
        try:
            if not path.is_file() or path.stat().st_size > _MAX_BYTES:
                return cls.none()
            values = json.loads(path.read_bytes())
        except OSError:
            return cls.none()
        except (ValueError, RecursionError):
            raise FormatError(f"{path} is not valid JSON", hint="download it again") from None
        return cls(str(path), values) if is_rwkv(values) else cls.none()

    @property
    def ln0_fused(self) -> bool:
        """Whether the embedding already has the first layer norm in it."""
        return self.values.get("embedding_layer_norm_fused") is True or self.values.get("norm_first") is False

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, and so left out where the transformers save a model."""
        return self.values.get("tie_word_embeddings") is True

    def check(self, arch: Arch) -> None:
        """Raise FormatError if it describes another model, UnsupportedModel for what the engine does otherwise."""
        for key, size in _SIZES.items():
            said, found = self.values.get(key), getattr(arch, size)
            if said is not None and said != found:
                raise FormatError(
                    f"{self.where}: its {key} is {quoted(str(said))}, but the tensors say {found}"
                )
        for key in ("norm_eps", "layer_norm_epsilon"):
            said = self.values.get(key)
            if said is not None and not _near(said, LAYER_NORM_EPS):
                raise UnsupportedModel(
                    f"{self.where}: a {key} of {quoted(str(said))} is not supported, only 1e-5"
                )
        if self.values.get("attn") is not None:
            raise UnsupportedModel(f"{self.where} describes a hybrid with attention layers: not supported")

    def group_norm_eps(self, arch: Arch) -> float | None:
        """The epsilon of the group norm after the time mix, or None where nothing is said.

        In v7's configurations it is `norm_eps` times the size of a head; v5's and v6's say by what (`head_size_divisor`)
        the heads are divided before a norm with 1e-5, which is the same as its square times 1e-5.
        """
        if arch.version == "7" and "norm_eps" in self.values:
            return _tidy(arch.head_size * LAYER_NORM_EPS)
        divisor = self.values.get("head_size_divisor")
        if arch.version in ("5.0", "5.1", "5.2", "6") and divisor is not None:
            if type(divisor) not in (int, float) or not 0.1 < divisor < _LARGEST_DIVISOR:
                raise FormatError(f"{self.where}: its head_size_divisor is {quoted(str(divisor))}")
            return _tidy(LAYER_NORM_EPS * divisor * divisor)
        return None


def is_rwkv(values: object) -> bool:
    """Whether the content of a config.json speaks of an RWKV model."""
    return isinstance(values, dict) and "rwkv" in str(values.get("model_type", "")).lower()


def _near(value: object, wanted: float) -> bool:
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        return False  # also for whole numbers that no float holds
    return math.isclose(value, wanted, rel_tol=1e-3)  # type: ignore[arg-type]


def _tidy(value: float) -> float:
    """Without the last bits of a product, so that 64 * 1e-5 is 64e-5."""
    return float(f"{value:.9g}")
