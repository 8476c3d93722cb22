"""Whether a model fits this machine, and how fast it can be: from sizes and the memory's bandwidth."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from quant.arch import Arch
    from quant.container.reader import ModelFile
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


def bytes_per_token(file: ModelFile) -> int:
    """Bytes read and written for one token when every weight is used: one row of the embedding, all else whole,
    the state twice."""
    arch = file.arch
    sizes = {name: sum(part.nbytes for part in plan.parts) for name, plan in file.plan.items()}
    embedding = sizes.pop("emb.weight")
    return sum(sizes.values()) + embedding // arch.vocab_size + 2 * state_bytes(arch)


def read_bandwidth(threads: int, megabytes: int = 256, rounds: int = 5) -> float:
    """GB/s of sequential reads of memory that no cache holds, by `threads` threads: the median of the rounds."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    parts = [np.ones(megabytes * 1_000_000 // 8 // threads, np.float64) for _ in range(threads)]
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))  # without Python's lock, vectorized
            found.append(sum(part.nbytes for part in parts) / (time.perf_counter() - begin) / 1e9)
    return statistics.median(found)


def forecast(found: LocalModel, threads: int) -> dict[str, Any]:
    """What to expect of the model file `found`: sizes in bytes, `fits` (None: unknown), `gb_per_s`, `tokens_per_s`.

    Reads the header and measures the bandwidth of the memory. Raises what opening a model file raises; a
    checkpoint is refused as one.
    """
    from quant.container.reader import ModelFile
    from rwkvcli.errors import FormatError
    from rwkvcli.runtime.machine import memory
    from rwkvcli.services.inspection import refuse_checkpoint

    try:
        with ModelFile.open(found.path) as file:
            state, per_token, size = state_bytes(file.arch), bytes_per_token(file), file.size
    except FormatError:
        refuse_checkpoint(found)
        raise
    needed = size + state + WORKING_BYTES
    available = memory().available
    bandwidth = read_bandwidth(threads)
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
