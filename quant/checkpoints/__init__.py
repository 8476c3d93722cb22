"""Reading model checkpoints: `open_checkpoint` looks at the content, not at the file's name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from quant.checkpoints.base import Checkpoint
from quant.checkpoints.tensor_file import TensorFile
from quant.errors import FormatError, SourceNotFound, UnsupportedModel

__all__ = ["Checkpoint", "is_checkpoint_folder", "open_checkpoint"]

_SUFFIXES = (".pth", ".safetensors", ".st", ".gguf", ".bin")
_STANDARD = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"
)  # fmt: skip
"""What a model's folder is opened by, the best first; a file alone only beside a config.json."""
_HF_NAME = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
"""Files that a config.json in the same folder speaks of; of others it may know nothing."""
_LEGACY_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""How torch's pickled magic number 0x1950a86a20f9469cfc6c begins files of torch < 1.6, after the protocol."""
_GGML = {b"lmgg": "ggml (rwkv.cpp before 2023-04, or older)", b"tjgg": "ggjt (older llama.cpp)"}
_ORIGINAL = "use the original .pth or .safetensors file"


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the checkpoint in the file `path`, whatever its name; close it when done (it is a context
    manager).

    `path` may also be a folder with a config.json, as on the Hugging Face Hub, or the index of several files; the
    config.json counts there, and beside files that are called as the transformers call theirs.
    Raises SourceNotFound (missing, a folder without a model, unreadable), UnsupportedModel (a recognised format that is
    not supported), UnsafePickle, and FormatError (empty, truncated, corrupt, or no checkpoint at all).
    """
    from quant.checkpoints.hf_config import HfConfig

    told = Path(path)
    found = _inside(told) if told.is_dir() else told
    if found.name.endswith(".index.json"):
        _read_head(found)
        from quant.checkpoints.shards import Shards

        file: TensorFile = Shards(found, told, _open_file)
    else:
        file = _open_file(found)
        file.path = told
    try:
        if file.format == "safetensors":
            from quant.checkpoints.bitsandbytes import DequantizedTensors

            if DequantizedTensors.needed(file):
                file = DequantizedTensors(file)
        config = HfConfig.beside(found.parent) if told.is_dir() or _HF_NAME.fullmatch(found.name) else None
        return Checkpoint(file, config)
    except BaseException:
        file.close()
        raise


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether `open_checkpoint` takes the folder: it has a config.json or an index, and weights."""
    return folder.is_dir() and _candidate(folder) is not None


def _open_file(path: Path) -> TensorFile:
    """The tensors of one file, by its content."""
    head, size = _read_head(path)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        from quant.checkpoints.pth import PthTensors

        return PthTensors(path)
    if head[:4] == b"GGUF":
        from quant.checkpoints.gguf import GgufTensors

        return GgufTensors(path)
    if head[:4] == b"fmgg":
        from quant.checkpoints.ggmf import GgmfTensors

        return GgmfTensors(path)
    _refuse_other_formats(path, head)
    if size >= 9 and (head[8:9] == b"{" or path.suffix == ".safetensors"):
        from quant.checkpoints.safetensors import SafetensorsTensors

        return SafetensorsTensors(path)
    if size < 9:
        raise FormatError(f"{path} is {size} bytes long: truncated, or not a checkpoint")
    raise FormatError(f"{path} is not a checkpoint", hint="pass a .pth, .safetensors, .gguf or rwkv.cpp file")


def _inside(folder: Path) -> Path:
    """The index or the one weights file of a model's folder."""
    found = _candidate(folder)
    if found is None:
        raise SourceNotFound(f"{folder} is a folder, not a file", hint=_folder_hint(folder))
    return found


def _candidate(folder: Path) -> Path | None:
    """What to open in a folder; None if that is not clear."""
    described = (folder / "config.json").is_file()
    for name in _STANDARD:
        if (described or name.endswith(".index.json")) and (folder / name).is_file():
            return folder / name
    weights = _weights_in(folder) if described else []
    return weights[0] if len(weights) == 1 else None


def _weights_in(folder: Path) -> list[Path]:
    """Files in `folder` that look like weights, by name."""
    try:
        return sorted(
            (item for item in folder.iterdir() if item.suffix in _SUFFIXES and item.is_file()),
            key=lambda item: (item.suffix != ".safetensors", item.name),
        )
    except OSError:
        return []


def _read_head(path: Path) -> tuple[bytes, int]:
    """The first bytes of a regular file, and its size."""
    try:
        if path.is_dir():
            raise SourceNotFound(f"{path} is a folder, not a file", hint=_folder_hint(path))
        if path.exists() and not path.is_file():
            raise FormatError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            head = file.read(256)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise SourceNotFound(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceNotFound(f"{path} cannot be read: {reason}") from None
    if size == 0:
        raise FormatError(f"{path} is empty", hint="download the file again")
    return head, size


def _folder_hint(folder: Path) -> str:
    """Which file to pass instead, when it is clear."""
    inside = [item for item in _weights_in(folder) if item.suffix != ".bin"]
    if len(inside) == 1:
        return f"pass {inside[0]} instead"
    return f"pass one of its {len(inside)} model files" if inside else "pass a checkpoint file"


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Name what the file is, if its first bytes tell."""
    if head[:4] in _GGML:
        raise UnsupportedModel(f"{path} is a {_GGML[head[:4]]} file: not supported", hint=_ORIGINAL)
    if head[2:14] == _LEGACY_TORCH:
        raise UnsupportedModel(
            f"{path} is in the format of torch before 1.6: not supported",
            hint="load it with a trusted torch and torch.save it again",
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[8:9] != b"{":
        raise FormatError(f"{path} is a bare pickle, not a torch zip file")
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise FormatError(f"{path} is a Git LFS pointer", hint="download the file that it stands for")
    if text.startswith((b"<!doctype", b"<html")):
        raise FormatError(f"{path} is a web page, not a checkpoint", hint="download the file again")
    if text.startswith(b"{") and b'"weight_map"' in text:
        raise FormatError(f"{path} is the index of several files", hint="its name has to end in .index.json")
