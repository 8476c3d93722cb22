"""What is inside a model file or a checkpoint: what `rwkv show` tells, as plain data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvcli.services.store import LocalModel, Reference


def inspect(path: Path, *, tensors: bool = False, header_only: bool = False) -> dict[str, Any]:
    """Describe the file `path`; reads its header, not its weights (`header_only`: nothing else at all).

    Keys: `kind` ("model" or "checkpoint"), for checkpoints `container` ("pth", "safetensors", "gguf", "ggmf") and `names`
    (the tool whose layout it is), `path`, `bytes`, `version`, `dimensions`, `parameters` (a head that is the embedding counts once),
    `state_bytes`, `bits_per_weight`, `formats` {encoding: bytes}, and for models `tokenizer`, `template` (as the file
    says), `family` (the template in force; None: unknown), `recipe`,
    `method`, `calibration`, `source`, `report`, `group_norm_eps`. With `tensors` also `tensors`: a list of
    {name, shape, encoding, layout, bytes}. Raises SourceNotFound, FormatError, UnsupportedModel.
    """
    from dataclasses import asdict

    from quant.container.reader import ModelFile
    from quant.orient import logical_tensors
    from quant.sources import open_model
    from rwkvcli.services.fitting import state_bytes

    with open_model(path, check_values=not header_only) as opened:
        if isinstance(opened, ModelFile):
            listed: list[dict[str, Any]] = [
                {
                    "name": name,
                    "shape": list(plan.shape),
                    "encoding": plan.encoding,
                    "layout": plan.layout,
                    "bytes": sum(part.nbytes for part in plan.parts),
                }
                for name, plan in opened.plan.items()
            ]
            more: dict[str, Any] = {
                "tokenizer": opened.tokenizer,
                "template": opened.template,
                "family": _family(opened),
                "recipe": opened.recipe,
                "method": opened.method,
                "calibration": opened.calibration,
                "group_norm_eps": opened.group_norm_eps,
                "source": opened.source,
                "report": opened.report,
            }
            kind, size = "model", opened.size
            repeated: frozenset[str] = frozenset()
        else:
            listed = []
            for name in opened.names:
                form, nbytes = opened.stored(name)
                listed.append(
                    {
                        "name": name,
                        "shape": list(opened.shape(name)),
                        "encoding": form,
                        "layout": "row",
                        "bytes": round(nbytes),
                    }
                )
            more = {"container": opened.format, "names": opened.layout}
            kind, size = "checkpoint", opened.file_size
            repeated = opened.repeated
        memory = state_bytes(opened.arch)
        # what the model computes with: some RWKV-7 checkpoints hold tensors of block 0 that nothing reads
        parameters = sum(
            math.prod(item.shape)
            for item in logical_tensors(opened.arch).values()
            if item.source not in repeated
        )
        arch = asdict(opened.arch)
        version = arch.pop("version")
    weights = sum(math.prod(item["shape"]) for item in listed if item["name"] not in repeated)
    stored = sum(item["bytes"] for item in listed)
    formats: dict[str, int] = {}
    for item in listed:
        formats[item["encoding"]] = formats.get(item["encoding"], 0) + item["bytes"]
    result = {
        "kind": kind,
        "path": str(path),
        "bytes": size,
        "version": version,
        "dimensions": {name: value for name, value in arch.items() if value},
        "parameters": parameters,
        "state_bytes": memory,
        "bits_per_weight": round(8 * stored / weights, 3),
        "formats": dict(sorted(formats.items(), key=lambda item: -item[1])),
        **more,
    }
    if tensors:
        result["tensors"] = listed
    return result


def inspect_remote(reference: Reference, *, tensors: bool = False) -> dict[str, Any]:
    """The same for a safetensors file on the Hub: its header alone is fetched. Raises what the Hub raises too."""
    from rwkvcli.services.hub import header_only

    with header_only(reference) as path:
        return {**inspect(path, tensors=tensors, header_only=True), "path": str(reference)}


def _family(file: Any) -> str | None:
    from rwkvcli.errors import FormatError
    from rwkvcli.runtime.templates import template_of

    try:
        return template_of(file).name
    except FormatError:
        return None


def refuse_checkpoint(found: LocalModel) -> None:
    """Raise FormatError if the file is no model file because nothing has been made of it yet, or nothing can be: a state, a
    checkpoint of another kind, or one that is refused.
    """
    from quant.container.reader import ModelFile
    from quant.sources import open_model
    from rwkvcli.errors import FormatError, RwkvError, UnsafePickle, UnsupportedModel
    from rwkvcli.runtime.state_file import is_state_file

    try:
        if is_state_file(found.path):
            raise UnsupportedModel(
                f"{found.name} is a state, not a model",
                hint="--state takes it; -m takes the model that made it",
            )
    except UnsupportedModel:
        raise
    except RwkvError:  # of another format
        pass
    try:
        with open_model(found.path) as opened:
            if isinstance(opened, ModelFile):
                return
            opened.arch  # noqa: B018  (raises when it is no model)
    except (UnsafePickle, UnsupportedModel):
        raise
    except RwkvError:
        return
    raise FormatError(
        f"{found.name} is a checkpoint, not a model file",
        hint=f"make one with `rwkv quantize {found.name} --to int8`",
    )
