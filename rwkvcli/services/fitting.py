"""Whether a model fits this machine, and how fast it can be: from sizes and the memory's bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from quant.arch import Arch
    from quant.container.reader import ModelFile
    from rwkvcli.runtime.cuda import Required
    from rwkvcli.services.store import LocalModel

_WORKING = ((2 * 10**9, 64 * 10**6), (float("inf"), 96 * 10**6))
"""(parameters below which it holds, what the engine uses beside weights and state at most): models that are called 1.5B
have up to 1.6 billion, the next larger ones 2.9 billion.
"""
GPU_WORKING_BYTES = 128 * 10**6
"""The same on a GPU, where only the size of a model is known: activations of a prompt's chunk, and logits."""
Devices = Sequence[Mapping[str, Any]]
"""GPUs, as `diagnosis.examine` tells of them: each with `number` and `free_memory`."""


class Shortage(NamedTuple):
    """A file that is larger than the memory that is free; bytes."""

    needed: int
    available: int


def shortage(path: Path, device: str | None = None, gpu_layers: int | None = None) -> Shortage | None:
    """Whether what the CPU keeps of the model file `path` will not stay in memory, where the system tells. What a GPU takes
    of it is read once. Only a file that is too large as a whole is opened.
    """
    from rwkvcli.runtime.machine import memory

    available = memory().available
    try:
        needed = path.stat().st_size
    except OSError:
        return None
    if available is None or needed <= available:
        return None
    needed = int(needed * _share_of_the_cpu(path, device or "auto", gpu_layers))
    return Shortage(needed, available) if needed > available else None


def _share_of_the_cpu(path: Path, device: str, gpu_layers: int | None) -> float:
    from quant.container.reader import ModelFile
    from rwkvcli.errors import RwkvError
    from rwkvcli.runtime.placement import ALL, place

    try:
        with ModelFile.open(path, check_values=False) as file:
            where, layers = place(file, device, gpu_layers), file.arch.n_layer
    except RwkvError:  # which loading it will tell
        return 1.0
    if where.kind != "cuda":
        return 1.0
    return 0.0 if where.layers == ALL else 1 - where.layers / layers


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
    `fits`, `tokens_per_s`, and estimates for GPUs: `devices` and `auto`, as of `forecast`. Nothing is downloaded but headers; sizes
    of what is only known by its own size are upper bounds (`exact` false).
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
            judged = _choices(name, found, threads, offline, devices)
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


def _choices(
    name: str, found: LocalModel | None, threads: int, offline: bool, devices: Devices
) -> dict[str, Any]:
    from quant.arch import parameter_count
    from rwkvcli.services import hub_cache, names, pulling, store
    from rwkvcli.services.benchmarking import read_bandwidth

    sizes, download, exact, layers = {}, 0, found is not None, None
    if found is not None:
        from rwkvcli.services import quantization

        nbytes = found.nbytes
        with quantization.open_source(found.path) as source:
            state, parameters = state_bytes(source.arch), parameter_count(source.arch)
            layers = source.arch.n_layer
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
        on_gpus = [_estimated(device, size, state, layers) for device in devices]
        needed = size + state + working_bytes(parameters)
        choices.append(
            {
                "kind": kind,
                "bytes": size,
                "needed_bytes": needed,
                "fits": None if available is None else needed <= available,
                "tokens_per_s": round(bandwidth * 1e9 / size, 1),
                "devices": on_gpus,
                "auto": _estimated_choice(on_gpus),
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


def _estimated(device: Mapping[str, Any], size: int, state: int, layers: int | None) -> dict[str, Any]:
    """Whether a file of `size` bytes that is yet to be made will fit into a GPU."""
    from rwkvcli.runtime.cuda import RESERVE, STATES

    working, weights = GPU_WORKING_BYTES + RESERVE, size + STATES * state
    free = device["free_memory"]
    fitting = max(0, min(layers, (free - working) * layers // weights)) if layers is not None else None
    return {
        "device": f"cuda:{device['number']}",
        "needed_bytes": weights + working,
        "free_bytes": free,
        "fits": weights + working <= free,
        "layers": fitting,
        "n_layer": layers,
    }


def _estimated_choice(on_gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """What `auto` will choose for such a file, as `forecast` tells of one that is there. `layers` None: not known yet."""
    from rwkvcli.runtime.cuda import automatic_library

    if not on_gpus or automatic_library() is None:
        return {"device": "cpu", "layers": 0, "why": "cpu: there is no GPU that `auto` uses"}
    best = max(on_gpus, key=lambda each: (each["fits"], each["layers"] or 0))
    device, layers, n_layer = best["device"], best["layers"], best["n_layer"]
    if best["fits"]:
        return {"device": device, "layers": n_layer, "why": f"{device}: all of it"}
    if layers is None:
        return {
            "device": device,
            "layers": None,
            "why": f"{device}: as many layers as fit, the rest on the CPU",
        }
    if layers == 0:
        return {"device": "cpu", "layers": 0, "why": "cpu: not one layer fits"}
    why = f"{device}: about {layers} of {n_layer} layers, the rest on the CPU"
    return {"device": device, "layers": layers, "why": why}


def forecast(found: LocalModel, threads: int, devices: Devices = ()) -> dict[str, Any]:
    """What to expect of the model file `found`: sizes in bytes, `fits` (None: unknown), `gb_per_s`, `tokens_per_s`; of
    each GPU `device`, `needed_bytes`, `free_bytes`, `fits`, `layers` (how many fit) and `n_layer`, as `devices`; and what
    `--device auto` chooses, as `auto`: `device`, `layers` on a GPU, `why`.

    Reads the header and measures the bandwidth of the memory. Raises what opening a model file raises; a
    checkpoint is refused as one.
    """
    from quant.arch import parameter_count
    from quant.container.reader import ModelFile
    from rwkvcli.errors import FormatError
    from rwkvcli.runtime import cuda
    from rwkvcli.runtime.machine import memory
    from rwkvcli.services.benchmarking import bytes_per_token, read_bandwidth
    from rwkvcli.services.inspection import refuse_checkpoint

    try:
        with ModelFile.open(found.path, check_values=False) as file:
            state, size = state_bytes(file.arch), file.size
            working = working_bytes(parameter_count(file.arch))
            per_token = bytes_per_token(file, state, None)
            on_gpus = [_measured(device, cuda.required(file)) for device in devices]
            auto = _automatic(file)
    except FormatError:
        refuse_checkpoint(found)
        raise
    needed = size + state + working
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
        "devices": on_gpus,
        "auto": auto,
    }


def _measured(device: Mapping[str, Any], required: Required) -> dict[str, Any]:
    """Whether a model file fits into a GPU."""
    free, layers = device["free_memory"], len(required.model)
    return {
        "device": f"cuda:{device['number']}",
        "needed_bytes": required.needed(layers),
        "free_bytes": free,
        "fits": required.needed(layers) <= free,
        "layers": required.layers_within(free),
        "n_layer": layers,
    }


def _automatic(file: ModelFile) -> dict[str, Any]:
    from rwkvcli.runtime.placement import ALL, place

    where = place(file)
    layers = {"cpu": 0, "cuda": file.arch.n_layer if where.layers == ALL else where.layers}[where.kind]
    device = f"cuda:{where.which}" if where.kind == "cuda" else "cpu"
    return {"device": device, "layers": layers, "why": where.why}
