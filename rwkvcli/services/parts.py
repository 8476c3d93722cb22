"""Models of the Hub that are several files: weights in parts with their index, and the config.json beside weights.

Names and contents only: where the files lie is not known here. The index stands for the model that it lists.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from rwkvcli.services.names import SUFFIXES

CONFIG = "config.json"
LONE = "model.safetensors"
"""Weights in one file, as Hugging Face calls it: the one name for which a config.json counts."""
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def is_index(file: str) -> bool:
    """Whether a file lists the parts of a model, by its name."""
    return PurePosixPath(file).name == _INDEX


def is_shard(file: str) -> bool:
    """Whether a file is a part of a model, by its name."""
    return _SHARD.fullmatch(PurePosixPath(file).name) is not None


def may_have_more(file: str) -> bool:
    """Whether other files may belong to a model file, by its name."""
    return is_index(file) or PurePosixPath(file).name == LONE


def beside(file: str, name: str) -> str:
    """The file `name` in the folder of `file`."""
    return str(PurePosixPath(file).with_name(name))


def models(files: Sequence[str]) -> list[str]:
    """Those of the files of a repository that are models: parts with an index beside them are one, the index."""
    whole = {PurePosixPath(file).parent for file in files if is_index(file)}
    return [
        file
        for file in files
        if is_index(file)
        or (file.endswith(SUFFIXES) and not (is_shard(file) and PurePosixPath(file).parent in whole))
    ]


def shards_beside(index: str, files: Iterable[str]) -> list[str]:
    """Those of the files that are parts of a model by their names, in the folder of its index; none where it is no index."""
    folder = PurePosixPath(index).parent
    return [
        file for file in files if is_index(index) and is_shard(file) and PurePosixPath(file).parent == folder
    ]


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
