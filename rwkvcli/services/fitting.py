"""Whether a model fits this machine, and how fast it can be: from sizes and the memory's bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from quant.arch import Arch
    from rwkvcli.services.store import LocalModel

_WORKING = ((2 * 10**9, 64 * 10**6), (float("inf"), 96 * 10**6))
"""(parameters below which it holds, what the engine uses beside weights and state at most): models that are called 1.5B
have up to 1.6 billion, the next larger ones 2.9 billion.
"""
GPU_WORKING_BYTES = 128 * 10**6
"""The same on a GPU: activations of a prompt's chunk, and logits. A state is held twice while a prompt is read."""
Devices = Sequence[Mapping[str, Any]]
"""GPUs, as `diagnosis.examine` tells of them: each with `number` and `free_memory`."""


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


def free_memory() -> int | None:
    """Bytes of memory that are free; None where the system does not tell."""
    from rwkvcli.runtime.machine import memory

    return memory().available


def state_bytes(arch: Arch) -> int:
    """Size of a model's whole memory of a text."""
    if arch.version == "4":
        return 4 * arch.n_layer * 5 * arch.n_embd
    return 4 * arch.n_layer * (arch.n_head * arch.head_size**2 + 2 * arch.n_embd)


def working_bytes(parameters: int) -> int:
    """Bytes that the engine uses beside weights and state, at most, for a model of so many parameters."""
    return next(nbytes for below, nbytes in _WORKING if parameters < below)


def prospects(name: str, threads: int, *, offline: bool = False, devices: Devices = ()) -> dict[str, Any]:
    """What to expect of MODEL `name`, whatever it is: `forecast` of a model file, with `download_bytes` if it is on the Hub.

    Of a checkpoint, here or on the Hub, `name`, `source_bytes`, `download_bytes` (what is missing), `disk_bytes` (free where it would go),
    `available_bytes`, `gb_per_s`, and `choices`: what could be made of it, each with `kind`, `bytes`, `needed_bytes`,
    `fits` and `tokens_per_s`. Nothing is downloaded but headers; sizes of what is only known by its own size are
    upper bounds (`exact` false).
    """
    import contextlib

    from rwkvcli.services import store

    found = store.find(name)
    remote = store.remote_safetensors(name, offline=offline) if found is None else None
    with contextlib.ExitStack() as stack:
        if remote is not None:
            from rwkvcli.services.hub import header_only

            found = store.LocalModel(stack.enter_context(header_only(remote)), name, remote)
        if found is None or found.is_checkpoint or _is_checkpoint(found.path):
            judged = _choices(name, found, threads, offline)
        else:
            judged = forecast(found, threads, devices)
        if remote is not None and found is not None:
            judged |= {"path": str(remote), "download_bytes": found.path.stat().st_size}
        return judged


def _is_checkpoint(path: Path) -> bool:
    """Whether the file is a sound checkpoint: something to make a model file of."""
    from quant.container.reader import ModelFile
    from quant.sources import open_model
    from rwkvcli.errors import RwkvError

    try:
        with open_model(path) as opened:
            return not isinstance(opened, ModelFile) and opened.arch.n_layer > 0
    except RwkvError:
        return False


def _choices(name: str, found: LocalModel | None, threads: int, offline: bool) -> dict[str, Any]:
    from quant.arch import parameter_count
    from rwkvcli.services import hub_cache, names, pulling, store
    from rwkvcli.services.benchmarking import read_bandwidth

    sizes, download, exact = {}, 0, found is not None
    if found is not None:
        from rwkvcli.services import quantization

        nbytes = found.nbytes
        with quantization.open_source(found.path) as source:
            state, parameters = state_bytes(source.arch), parameter_count(source.arch)
            sizes = {
                kind: quantization.forecast(
                    source, quantization.default_output(found.path, kind), kind
                ).nbytes
                for kind in names.KINDS
            }
    else:
        if offline or hub_cache.is_offline():
            raise store.missing(name, offline=offline)
        planned = pulling.plan(name)
        nbytes, download, state = planned.size, planned.to_download, 0
        parameters = nbytes // 2  # nearly all are stored as bf16
        sizes = {kind: pulling.estimated(nbytes, kind) for kind in names.KINDS}
    available = free_memory()
    bandwidth = statistics.median(read_bandwidth(threads)) / 1e9
    choices = []
    for kind, size in sizes.items():
        needed = size + state + working_bytes(parameters)
        choices.append(
            {
                "kind": kind,
                "bytes": size,
                "needed_bytes": needed,
                "fits": None if available is None else needed <= available,
                "tokens_per_s": round(bandwidth * 1e9 / size, 1),
            }
        )
    return {
        "name": name,
        "source_bytes": nbytes,
        "download_bytes": download,
        "disk_bytes": hub_cache.free_disk(),
        "exact": exact,
        "available_bytes": available,
        "gb_per_s": round(bandwidth, 2),
        "choices": choices,
    }


def forecast(found: LocalModel, threads: int, devices: Devices = ()) -> dict[str, Any]:
    """What to expect of the model file `found`: sizes in bytes, `fits` (None: unknown), `gb_per_s`, `tokens_per_s`; of
    each GPU `device`, `needed_bytes`, `free_bytes` and `fits`, as `devices`.

    Reads the header and measures the bandwidth of the memory. Raises what opening a model file raises; a
    checkpoint is refused as one.
    """
    from quant.arch import parameter_count
    from quant.container.reader import ModelFile
    from rwkvcli.errors import FormatError
    from rwkvcli.runtime.machine import memory
    from rwkvcli.services.benchmarking import bytes_per_token, read_bandwidth
    from rwkvcli.services.inspection import refuse_checkpoint

    try:
        with ModelFile.open(found.path, check_values=False) as file:
            state, size = state_bytes(file.arch), file.size
            working = working_bytes(parameter_count(file.arch))
            per_token = bytes_per_token(file, state, None)
    except FormatError:
        refuse_checkpoint(found)
        raise
    needed = size + state + working
    on_gpu = size + 2 * state + GPU_WORKING_BYTES
    available = memory().available
    bandwidth = statistics.median(read_bandwidth(threads)) / 1e9
    return {
        "path": str(found.path),
        "bytes": size,
        "state_bytes": state,
        "working_bytes": working,
        "needed_bytes": needed,
        "available_bytes": available,
        "fits": None if available is None else needed <= available,
        "bytes_per_token": per_token,
        "gb_per_s": round(bandwidth, 2),
        "tokens_per_s": round(bandwidth * 1e9 / per_token, 1),
        "devices": [
            {
                "device": f"cuda:{device['number']}",
                "needed_bytes": on_gpu,
                "free_bytes": device["free_memory"],
                "fits": on_gpu <= device["free_memory"],
            }
            for device in devices
        ],
    }
