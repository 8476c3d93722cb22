"""States as files: what `rwkv state` does, without the printing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvcli.errors import FormatError, StateMismatch, UsageError

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Float32
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State

TUNED = re.compile(r"blocks\.(\d{1,4})\.att\.time_state")
"""What tuned states call a layer's matrices."""
TRANSPOSED = (".st", ".state")
"""Files of web-rwkv and Ai00, whose matrices are [head, key, value]; elsewhere they are [head, value, key]."""
_VERSION_IN_NAME = re.compile(r"(?:rwkv-?|\bv|x0)([4-7])", re.IGNORECASE)


@dataclass
class Building:
    """A state in the making: `run` reads the text, piece by piece and in bounded memory.

    Making one raises UsageError if there is nothing to read.
    """

    model: Model
    text: bytes
    state: State
    """What the text continues; it is advanced."""
    on_text: Callable[[int, int], None] = lambda done, total: None
    """Called with (bytes read, all of them)."""
    check: Callable[[], None] = lambda: None
    """Called between calls of the engine; what it raises ends the reading there, with `state` as far as `read`."""
    read: int = 0
    """Bytes of the text that the state has seen."""

    def __post_init__(self) -> None:
        if not self.text:
            raise UsageError("the text is empty: there is nothing to build a state of")

    def run(self) -> State:
        """Read it all. The state can then be continued with or without further text."""
        from rwkvcli.runtime.long_text import in_pieces
        from rwkvcli.runtime.prefill import feed
        from rwkvcli.runtime.state_file import Pause

        def fed(_tokens: int, done: int) -> None:
            self.read = done
            self.on_text(done, len(self.text))
            if done < len(self.text):
                self.check()

        self.check()
        logits = feed(self.model, self.model.tokenizer, self.state, in_pieces(self.text), [], fed)
        self.state.pause = Pause(logits)
        return self.state


def check_output(out: Path, *, force: bool, source: Path | None = None) -> None:
    """Refuse an OUT that would replace what is to be kept, before any work. Raises UsageError."""
    from quant.atomic import new_file

    new_file(out, force=force, kept={} if source is None else {"the source itself": source})


def info(path: Path) -> dict[str, Any]:
    """What the state file says of itself. Raises ModelNotFound, FormatError.

    Keys: `path`, `bytes`, `model` {version and sizes}, `source`, `fingerprint`, `tokens_seen`, `goes_on` (whether it
    can be continued without new text), `ended`, `seed`, `draws`, `penalized` (tokens with a count), `held_back` (text).
    """
    from rwkvcli.runtime.state_file import StateFile

    with StateFile(path) as file:
        pause = file.pause
        sampler: Mapping[str, Any] = (pause.sampler if pause is not None else None) or {}
        text: Mapping[str, Any] = (pause.text if pause is not None else None) or {}
        counts = sampler.get("counts")
        return {
            "path": str(path),
            "bytes": file.nbytes,
            "model": {name: value for name, value in file.origin.sizes.items() if value},
            "source": file.origin.source,
            "fingerprint": file.origin.fingerprint,
            "tokens_seen": file.tokens_seen,
            "goes_on": pause is not None and pause.logits is not None and not pause.ended,
            "ended": pause is not None and pause.ended,
            "seed": sampler.get("seed"),
            "draws": sampler.get("draws", 0),
            "penalized": len(counts) if isinstance(counts, list) else 0,
            "held_back": _held_back(text),
        }


def verify(path: Path, model: Path | None = None) -> dict[str, Any]:
    """Check all of a state file, and that it belongs to the model file `model`. Returns `info`.

    Raises ModelNotFound, FormatError (damaged), StateMismatch (another model's), and what opening a model does.
    """
    from quant.container.reader import ModelFile
    from rwkvcli.runtime.model import origin_of
    from rwkvcli.runtime.state_file import StateFile

    with StateFile(path) as file:
        file.verify()
        file.arrays()
        if model is not None:
            with ModelFile.open(model) as opened:
                file.check_belongs_to(origin_of(opened))
    return info(path)


def diff(first: Path, second: Path) -> dict[str, Any]:
    """How far two states are apart. Raises ModelNotFound, FormatError, StateMismatch (sizes that differ).

    A relative difference is the norm of the difference over the root mean square of both norms: 0 for equal arrays,
    about 1.4 for unrelated ones. Keys: `equal`, `same_model`, `tokens_seen` [2], `relative` (of all), and `layers`, a
    list of {part of the state: relative difference}.
    """
    from rwkvcli.runtime.state_file import StateFile

    with StateFile(first) as a, StateFile(second) as b:
        if a.shapes != b.shapes:
            raise StateMismatch(
                f"{first} and {second} are states of other sizes ({a.origin}; {b.origin})",
                hint="states can be compared when their models have the same version and sizes",
            )
        x, y = a.arrays(), b.arrays()
        layers: dict[str, dict[str, float]] = {}
        for name in sorted(x, key=_layer_of):
            _, layer, part = name.split(".", 2)
            layers.setdefault(layer, {})[part] = _relative([(x[name], y[name])])
        return {
            "equal": all(np.array_equal(x[name], y[name]) for name in x),
            "same_model": a.origin.fingerprint == b.origin.fingerprint,
            "tokens_seen": [a.tokens_seen, b.tokens_seen],
            "relative": _relative([(x[name], y[name]) for name in x]),
            "layers": list(layers.values()),
        }


def export(path: Path, out: Path, *, force: bool = False) -> None:
    """Write a state's matrices as a tuned state: `.pth` or `.safetensors` float32 [head, value, key], `.st` float16
    [head, key, value] as web-rwkv has them. The last token's shift vectors have no place there.

    Raises ModelNotFound, FormatError (damaged, or past the range of float16), UsageError (another suffix, RWKV-4, an OUT that
    may not be written).
    """
    from quant.checkpoints.write import holds, write_pth, write_safetensors
    from rwkvcli.runtime.state_file import StateFile

    if out.suffix not in (".pth", ".safetensors", ".st"):
        raise UsageError(f"{out}: no such format", hint="OUT ends in .pth, .safetensors or .st")
    check_output(out, force=force, source=path)
    with StateFile(path) as file:
        file.verify()
        matrices = {
            name.replace(".att.state", ".att.time_state"): array
            for name, array in file.arrays().items()
            if name.endswith(".att.state")
        }
        if not matrices:
            raise UsageError(
                f"{path}: an RWKV-{file.origin.sizes.get('version')} state has no matrices to export"
            )
        if out.suffix == ".pth":
            write_pth(out, matrices)
            return
        turned = out.suffix == ".st"
        if turned:
            for name, matrix in matrices.items():
                if not holds("f16", matrix):
                    raise FormatError(
                        f"{path}: {name} has values past the range of f16",
                        hint="export it as .pth or .safetensors, which hold float32",
                    )
            matrices = {name: np.ascontiguousarray(m.transpose(0, 2, 1)) for name, m in matrices.items()}
        write_safetensors(out, matrices, "f16" if turned else "f32", metadata={"source": file.origin.source})


@dataclass(frozen=True)
class Imported:
    """A tuned state as a state of a model."""

    state: State
    transposed: bool
    """Whether its matrices were [head, key, value]."""
    doubt: str | None
    """What speaks against its being made for this model."""


def import_tuned(path: Path, model: Model, *, transposed: bool | None = None) -> Imported:
    """Make a state of `model` from a tuned state; its shift vectors are zero, and it has seen no tokens.

    `transposed`: whether matrices are [head, key, value]; None: as files of this name have them. Raises SourceNotFound,
    UnsafePickle, FormatError (no tuned state, damaged), StateMismatch (other sizes).
    """
    from quant.checkpoints import open_checkpoint

    config = model.config
    turned = path.suffix in TRANSPOSED if transposed is None else transposed
    state = model.new_state()
    arrays = state.to_numpy()
    with open_checkpoint(path) as source:
        found = {int(match[1]): name for name in source.names if (match := TUNED.fullmatch(name))}
        if not found:
            raise FormatError(f"{path}: not a tuned state: it has no blocks.N.att.time_state")
        shape = (config.n_head, config.head_size, config.head_size)
        theirs = (len(found), *source.shape(found[min(found)]))
        if sorted(found) != list(range(config.n_layer)) or any(
            _three(source.shape(name)) != shape for name in found.values()
        ):
            ours = "none" if config.version == "4" else f"{config.n_layer} of {list(shape)}"
            raise StateMismatch(
                f"{path}: the tuned state of another model: {theirs[0]} matrices of {list(theirs[1:])}",
                hint=f"the model in use has {ours}",
            )
        for layer, name in found.items():
            values = source.read(name).reshape(shape)
            arrays[f"blocks.{layer}.att.state"] = np.ascontiguousarray(
                values.transpose(0, 2, 1) if turned else values
            )
    state.inner.load_numpy(arrays)
    said = _VERSION_IN_NAME.search(path.stem)
    doubt = None
    if said is not None and said[1] != config.version[0]:
        doubt = f"its name speaks of RWKV-{said[1]}, and the model is RWKV-{config.version}"
    return Imported(state, turned, doubt)


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as it was before a checkpoint's reader took leading ones away."""
    return (1,) * (3 - len(shape)) + shape


def _relative(pairs: list[tuple[Float32, Float32]]) -> float:
    off = size = 0.0
    for x, y in pairs:
        a, b = x.astype(np.float64), y.astype(np.float64)
        off += float(np.square(a - b).sum())
        size += float(np.square(a).sum() + np.square(b).sum())
    return math.sqrt(2 * off / size) if off else 0.0


def _layer_of(name: str) -> tuple[int, str]:
    return int(name.split(".")[1]), name


def _held_back(text: Mapping[str, Any]) -> str:
    """Text that was generated and not shown yet, half a character as U+FFFD."""
    held, data = text.get("text"), text.get("bytes")
    try:
        return str(held or "") + bytes.fromhex(str(data or "")).decode("utf-8", "replace")
    except ValueError:
        return str(held or "")
