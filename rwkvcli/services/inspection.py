"""What is inside a model file or a checkpoint: what `rwkv show` tells, as plain data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def inspect(path: Path, *, tensors: bool = False) -> dict[str, Any]:
    """Describe the file `path`; reads its header, not its weights.

    Keys: `kind` ("model" or "checkpoint"), `path`, `bytes`, `version`, `dimensions`, `parameters`,
    `bits_per_weight`, `formats` {encoding: bytes}, and for models `tokenizer`, `template`, `recipe`,
    `method`, `calibration`, `source`, `report`, `group_norm_eps`. With `tensors` also `tensors`: a list of
    {name, shape, encoding, layout, bytes}. Raises SourceNotFound, FormatError, UnsupportedModel.
    """
    from dataclasses import asdict

    from quant.container.reader import ModelFile
    from quant.orient import logical_tensors
    from quant.sources import open_model

    with open_model(path) as opened:
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
                "recipe": opened.recipe,
                "method": opened.method,
                "calibration": opened.calibration,
                "group_norm_eps": opened.group_norm_eps,
                "source": opened.source,
                "report": opened.report,
            }
            kind, size = "model", opened.size
        else:
            width = {"f32": 4, "f16": 2, "bf16": 2}
            listed = []
            for name in opened.names:
                shape, dtype = opened.shape(name), opened.dtype(name)
                listed.append(
                    {
                        "name": name,
                        "shape": list(shape),
                        "encoding": dtype,
                        "layout": "row",
                        "bytes": math.prod(shape) * width.get(dtype, 0),
                    }
                )
            more = {}
            kind, size = "checkpoint", opened.file_size
        # what the model computes with: some RWKV-7 checkpoints hold tensors of block 0 that nothing reads
        parameters = sum(math.prod(item.shape) for item in logical_tensors(opened.arch).values())
        arch = asdict(opened.arch)
        version = arch.pop("version")
    weights = sum(math.prod(item["shape"]) for item in listed)
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
        "bits_per_weight": round(8 * stored / weights, 3),
        "formats": dict(sorted(formats.items(), key=lambda item: -item[1])),
        **more,
    }
    if tensors:
        result["tensors"] = listed
    return result
