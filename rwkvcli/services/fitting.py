"""Whether a model fits this machine, and how fast it can be: from sizes and the memory's bandwidth."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from quant.arch import Arch
    from rwkvcli.services.store import LocalModel

WORKING_BYTES = 64 * 10**6
"""What the engine uses beside weights and state, at most, up to models of 1.5B."""


class Shortage(NamedTuple):
    """A file that is larger than the memory that is free; bytes."""

    needed: int
    available: int


def shortage(path: Path) -> Shortage | None:
    """Whether the model file `path` will not stay in memory, where the system tells; it is not opened."""
    from rwkvcli.runtime.machine import memory

    available = memory().available
    try:
        needed = path.stat().st_size
    except OSError:
        return None
    return Shortage(needed, available) if available is not None and needed > available else None


def state_bytes(arch: Arch) -> int:
    """Size of a model's whole memory of a text."""
    if arch.version == "4":
        return 4 * arch.n_layer * 5 * arch.n_embd
    return 4 * arch.n_layer * (arch.n_head * arch.head_size**2 + 2 * arch.n_embd)


def forecast(found: LocalModel, threads: int) -> dict[str, Any]:
    """What to expect of the model file `found`: sizes in bytes, `fits` (None: unknown), `gb_per_s`, `tokens_per_s`.

    Reads the header and measures the bandwidth of the memory. Raises what opening a model file raises; a
    checkpoint is refused as one.
    """
    from quant.container.reader import ModelFile
    from rwkvcli.errors import FormatError
    from rwkvcli.runtime.machine import memory
    from rwkvcli.services.benchmarking import bytes_per_token, read_bandwidth
    from rwkvcli.services.inspection import refuse_checkpoint

    try:
        with ModelFile.open(found.path) as file:
            state, size = state_bytes(file.arch), file.size
            per_token = bytes_per_token(file, state, None)
    except FormatError:
        refuse_checkpoint(found)
        raise
    needed = size + state + WORKING_BYTES
    available = memory().available
    bandwidth = statistics.median(read_bandwidth(threads)) / 1e9
    return {
        "path": str(found.path),
        "bytes": size,
        "state_bytes": state,
        "working_bytes": WORKING_BYTES,
        "needed_bytes": needed,
        "available_bytes": available,
        "fits": None if available is None else needed <= available,
        "bytes_per_token": per_token,
        "gb_per_s": round(bandwidth, 2),
        "tokens_per_s": round(bandwidth * 1e9 / per_token, 1),
    }
