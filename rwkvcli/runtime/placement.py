"""Where a model is to run, and why there: what `auto` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rwkvcli.errors import DeviceUnavailable, UsageError
from rwkvcli.runtime.device import parse_device

if TYPE_CHECKING:
    from quant.container.reader import ModelFile
    from rwkvcli.runtime.cuda import CudaDevice, Required

ALL = -1
"""Of layers on a GPU."""


class Placement(NamedTuple):
    """A device for a model."""

    kind: str
    """`cpu`, `cuda` or `torch`."""
    which: str = ""
    """The number of a GPU; a device of PyTorch."""
    layers: int = ALL
    """How many of the last layers are on the GPU; the others are the CPU's."""
    why: str = ""
    """What decided, if that was not a person."""


def place(file: ModelFile, device: str = "auto", gpu_layers: int | None = None) -> Placement:
    """Where the model in `file` goes. `gpu_layers` counts for `cuda`, and for `auto` at most so many; None or -1: all.

    Raises UsageError, also for a number of layers on a device that takes none of them. `auto` raises nothing for the device's sake.
    """
    wanted = ALL if gpu_layers is None else gpu_layers
    if wanted < ALL:
        raise UsageError(f"gpu_layers must be at least 0, or -1 for all, not {wanted}")
    kind, which = parse_device(device)
    if kind == "auto":
        return _automatic(file, wanted)
    if kind == "cuda":
        if wanted == 0:
            return Placement("cpu", why="no layer is to be on a GPU")
        return Placement(kind, which, ALL if wanted >= file.arch.n_layer else wanted)
    if wanted > 0:
        raise UsageError(
            f"gpu_layers {wanted} and device {device} do not go together",
            hint="layers go on a GPU with device auto or cuda",
        )
    return Placement(kind, which)


def _automatic(file: ModelFile, most: int) -> Placement:
    from rwkvcli.runtime import cuda

    if most == 0:
        return Placement("cpu", why="no layer is to be on a GPU")
    library = cuda.automatic_library()
    if library is None:
        named = cuda.library_beside() is not None  # or it would not make the difference
        why = f"{cuda.LIBRARY} is set" if named else "this build has no CUDA kernels"
        return Placement("cpu", why=why)
    try:
        found = [device for device in cuda.devices(library) if device.is_usable]
        if not found:
            return Placement("cpu", why="there is no GPU that the CUDA kernels run on")
        required = cuda.required(file, library)
    except DeviceUnavailable as error:
        return Placement("cpu", why=str(error))
    return choose(found, required, most)


def choose(devices: list[CudaDevice], required: Required, most: int = ALL) -> Placement:
    """The first of `devices` that takes all of a model (or `most` layers), or else the one that takes the most."""
    layers = len(required.model)
    wanted = layers if most == ALL else min(most, layers)
    device = max(devices, key=lambda each: min(wanted, required.layers_within(each.free_memory)))
    fits = min(wanted, required.layers_within(device.free_memory))
    if fits == 0:
        return Placement("cpu", why=f"not one layer fits into {_room(device, required.needed(1))}")
    number = str(device.number)
    room = _room(device, required.needed(wanted))
    if fits < wanted:
        return Placement("cuda", number, fits, f"{fits} of {layers} layers fit; {wanted} do not into {room}")
    if wanted < layers:
        return Placement("cuda", number, wanted, f"{wanted} of {layers} layers, as asked, fit into {room}")
    return Placement("cuda", number, ALL, f"all {layers} layers fit into {room}")


def _room(device: CudaDevice, needed: int) -> str:
    free = f"{needed / 1e9:.2f} GB of {device.free_memory / 1e9:.2f} GB that are free"
    return f"cuda:{device.number} ({device.name}): {free}"
