"""`rwkv doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import with_settings
from rwkvcli.cli.settings import Settings
from rwkvcli.errors import RwkvError

EXAMPLES = """
  rwkv doctor
  rwkv doctor model-int4.safetensors
  rwkv doctor g1-7.2b
  rwkv doctor --json | jq .cpu.level
"""


@with_settings(tells_of_stored=True)
def doctor(
    settings: Settings,
    *,
    file: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model to judge too.", show_default=False)
    ] = None,
) -> None:
    """Tell what this machine can do, and whether a model fits.

    Processor features and the kernels that are chosen, threads, memory, GPUs, optional packages, folders;
    and why. With MODEL also whether it fits into memory, and the speed to expect: the memory's bandwidth,
    which is measured, over the bytes that a token needs; how much of it fits into a GPU; and what --device
    auto chooses. A checkpoint, here or on the Hub, is judged by what can be made of it; nothing is downloaded
    for that. Without MODEL the default is judged, if one is set; that it is not here is told then, as it is of
    a default device, and of defaults that cannot be read.
    """
    from rwkvcli.cli.render import table
    from rwkvcli.services import diagnosis, fitting

    console = Console(settings)
    problem = _device_problem(settings)
    found = diagnosis.examine(settings.threads)
    if settings.stored_problem is not None:
        error = settings.stored_problem
        found["defaults"] = {"problem": str(error), "hint": error.hint}
    if problem is not None:
        found["device"] = problem
    model = file if file is not None else settings.model
    if model is not None:
        try:
            threads = found["threads"]["count"]
            devices = [device for device in found["gpu"]["devices"] if device["usable"]]
            found["model"] = fitting.prospects(model, threads, offline=settings.offline, devices=devices)
        except RwkvError as error:
            if file is not None or "model" in settings.typed:
                raise
            found["model"] = {"name": model, "problem": str(error), "hint": error.hint}
    if settings.json:
        console.line(json.dumps(found))
    else:
        console.line("\n".join(table(list(_lines(found)))))


def _device_problem(settings: Settings) -> dict[str, Any] | None:
    """Why the default device cannot be used, if it cannot. Raises what says so of one that was typed."""
    from rwkvcli.services.loading import check_device

    try:
        check_device(settings.device)
    except RwkvError as error:
        if "device" in settings.typed:
            raise
        return {"name": settings.device, "problem": str(error), "hint": error.hint}
    return None


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was found, a line each: what it is about, and what there is to say."""
    from rwkvcli.cli.render import size

    cpu, threads, memory = found["cpu"], found["threads"], found["memory"]
    yield "rwkv", f"{found['version']}, Python {found['python']}, {found['system']}"
    yield "processor", cpu["features"]
    yield "kernels", f"{cpu['level'] or 'none'}: {cpu['why']}"
    quota = f", quota {threads['quota']:g}" if threads["quota"] is not None else ", no quota"
    limits = f"processors: {threads['allowed']}, cores: {threads['cores']}{quota}"
    yield "threads", f"{threads['count']}: {threads['why']} ({limits})"
    if memory["available_bytes"] is not None and memory["total_bytes"] is not None:
        yield "memory", f"{size(memory['available_bytes'])} free of {size(memory['total_bytes'])}"
    else:
        yield "memory", "the system does not tell"
    yield from _gpu_lines(found["gpu"])
    for extra, packages in found["extras"].items():
        have = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        missing = ", ".join(name for name, version in packages.items() if not version)
        told = [have] if have else []
        if missing:
            told.append(f'{missing} not installed: pip install "rwkvcli[{extra}]"')
        yield f"extra {extra}", "; ".join(told)
    yield from found["folders"].items()
    if "defaults" in found:
        yield from _problem_lines("defaults", found["defaults"])
    if "device" in found:
        yield from _problem_lines("default device", found["device"])
    if "model" in found:
        model = found["model"]
        if "problem" in model:
            yield from _problem_lines("default model", model)
        else:
            yield from (_choice_lines if "choices" in model else _model_lines)(model)


def _gpu_lines(gpu: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from rwkvcli.cli.render import size

    yield "GPU", f"{', '.join(gpu['found']) or 'none found'}; {gpu['why']}"
    for device in gpu["devices"]:
        memory = f"{size(device['free_memory'])} free of {size(device['memory'])}"
        yield (
            f"cuda:{device['number']}",
            f"{device['name']}, compute capability {device['capability']}, {memory}",
        )


_VERDICT = {
    True: "it fits",
    False: "it does not fit: expect it to be slow",
    None: "free memory is unknown",
}


def _problem_lines(what: str, told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Why a default cannot be used, and what helps."""
    yield "", ""
    yield what, told["problem"]
    if told["hint"]:
        yield "hint", told["hint"]


def _choice_lines(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What can be made of a checkpoint."""
    from rwkvcli.cli.render import size

    missing, free = model["download_bytes"], model["disk_bytes"]
    yield "", ""
    yield "checkpoint", f"{model['name']}, {size(model['source_bytes'])}"
    if missing:
        largest = max(choice["bytes"] for choice in model["choices"])
        enough = "there is room" if missing + largest <= free else "there is no room for it"
        yield "download", f"{size(missing)}, {size(free)} of disk are free: {enough}"
    about = "" if model["exact"] else "at most "
    for choice in model["choices"]:
        yield (
            choice["kind"],
            f"needs {about}{size(choice['needed_bytes'])}; {_VERDICT[choice['fits']]}; up to about "
            f"{choice['tokens_per_s']:g} tokens/s ({model['gb_per_s']:g} GB/s measured)",
        )
        for device in choice["devices"]:
            yield f"{choice['kind']}, {device['device']}", _on_gpu(device, about)
        if choice["devices"]:
            yield f"{choice['kind']}, auto", choice["auto"]["why"]


def _on_gpu(device: dict[str, Any], about: str = "") -> str:
    """Whether a model fits into a GPU, and else how much of it."""
    from rwkvcli.cli.render import size

    needs = f"needs {about}{size(device['needed_bytes'])} of {size(device['free_bytes'])} that are free"
    if device["fits"]:
        return f"{needs}; it fits"
    if not device["layers"]:
        return f"{needs}; it does not fit"
    return f"{needs}; {'about ' if about else ''}{device['layers']} of {device['n_layer']} layers fit"


def _model_lines(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from rwkvcli.cli.render import size

    parts = (
        f"{size(model['bytes'])} of weights + {size(model['state_bytes'])} of state "
        f"+ {size(model['working_bytes'])} to work in = {size(model['needed_bytes'])}"
    )
    yield "", ""
    yield "model", model["path"]
    if "download_bytes" in model:
        yield "download", size(model["download_bytes"])
    yield "needs", f"{parts}; {_VERDICT[model['fits']]}"
    for device in model["devices"]:
        yield device["device"], _on_gpu(device)
    yield "auto", f"{model['auto']['device']}: {model['auto']['why']}"
    yield (
        "speed",
        (
            f"up to {model['tokens_per_s']:g} tokens/s: {model['gb_per_s']:g} GB/s measured, "
            f"{size(model['bytes_per_token'])} per token with every weight read"
        ),
    )
