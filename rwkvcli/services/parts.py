"""Models of the Hub that are several files: weights in parts with their index, and the config.json beside weights.

Names and contents only: where the files lie is not known here. The index stands for the model that it lists. Older
repositories have the same as `pytorch_model.bin`, in torch's format.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from rwkvcli.services.names import SUFFIXES

CONFIG = "config.json"
_LONE = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, as Hugging Face calls it: the names for which a config.json counts; the first is preferred."""
_INDEX = ".index.json"
_SHARD = re.compile(r"(model)-\d+-of-\d+(\.safetensors)|(pytorch_model)-\d+-of-\d+(\.bin)")


def is_index(file: str) -> bool:
    """Whether a file lists the parts of a model, by its name."""
    return PurePosixPath(file).name.removesuffix(_INDEX) in _LONE and file.endswith(_INDEX)


def is_shard(file: str) -> bool:
    """Whether a file is a part of a model, by its name."""
    return _SHARD.fullmatch(PurePosixPath(file).name) is not None


def may_have_more(file: str) -> bool:
    """Whether other files may belong to a model file, by its name."""
    return is_index(file) or PurePosixPath(file).name in _LONE


def is_weights(file: str) -> bool:
    """Whether a file holds weights, by its name. Of files that end with .bin most hold something else."""
    return file.endswith(SUFFIXES) or _whole(file) is not None


def beside(file: str, name: str) -> str:
    """The file `name` in the folder of `file`."""
    return str(PurePosixPath(file).with_name(name))


def models(files: Sequence[str]) -> list[str]:
    """Those of the files of a repository that are models: parts with an index beside them are one, the index; of the same
    weights in both formats the newer format's file is the one.
    """
    listed = {file.removesuffix(_INDEX) for file in files if is_index(file)}
    return preferred(
        [
            file
            for file in files
            if is_index(file) or (is_weights(file) and not (is_shard(file) and _whole(file) in listed))
        ]
    )


def preferred(files: Sequence[str]) -> list[str]:
    """The files without those in torch's format that have the same weights as safetensors beside them."""
    new, old = _LONE
    whole = [file for file in files if not is_shard(file)]
    folders = {PurePosixPath(file).parent for file in whole if PurePosixPath(_whole(file) or "").name == new}
    return [
        file
        for file in files
        if PurePosixPath(_whole(file) or "").name != old or PurePosixPath(file).parent not in folders
    ]


def shards_beside(index: str, files: Iterable[str]) -> list[str]:
    """Those of the files that are parts of a model by their names, in the folder of its index; none where it is no index."""
    return [file for file in files if is_index(index) and is_shard(file) and _whole(file) == _whole(index)]


def shards_of(index: str, data: bytes) -> list[str]:
    """The parts that the content of `index` names, by name. Raises FormatError."""
    from quant.checkpoints.shards import weight_map

    return [beside(index, name) for name in sorted(set(weight_map(data, index).values()))]


def speaks_of_rwkv(data: bytes) -> bool:
    """Whether the content of a config.json describes an RWKV model."""
    if b"rwkv" not in data.lower():  # of other programs' models: no import for them
        return False
    from quant.checkpoints.hf_config import is_rwkv

    try:
        return is_rwkv(json.loads(data))
    except (ValueError, RecursionError):
        return False


def _whole(file: str) -> str | None:
    """The name in _LONE, in its folder, of the weights that a file is, or is a part or the index of; None for others."""
    name = PurePosixPath(file).name.removesuffix(_INDEX)
    part = _SHARD.fullmatch(name)
    name = "".join(group or "" for group in part.groups()) if part is not None else name
    return beside(file, name) if name in _LONE else None


def stem(repo: str, file: str) -> str:
    """What files made of a model are called: its name without ending; for one in parts its repository's."""
    return repo.rpartition("/")[2] if is_index(file) else PurePosixPath(file).stem


def combined(etags: Iterable[tuple[str, str]]) -> str:
    """One checksum for (file, checksum) of all files of a model: that of a single one as it is; "" if one has none."""
    known = sorted((PurePosixPath(file).name, etag) for file, etag in etags)
    if len(known) == 1:
        return known[0][1]
    if not all(etag for _, etag in known):
        return ""
    return hashlib.sha256("".join(f"{file} {etag}\n" for file, etag in known).encode()).hexdigest()
