"""Reading model checkpoints: `open_checkpoint` looks at the content, not at the file's name."""

from __future__ import annotations

import os
from pathlib import Path

from quant.checkpoints.base import Checkpoint
from quant.errors import FormatError, SourceNotFound, UnsupportedModel

__all__ = ["Checkpoint", "open_checkpoint"]

_SUFFIXES = (".pth", ".safetensors")
_LEGACY_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""How torch's pickled magic number 0x1950a86a20f9469cfc6c begins files of torch < 1.6, after the protocol."""
_GGML = {b"fmgg": "ggmf (rwkv.cpp)", b"lmgg": "ggml (rwkv.cpp or older)", b"tjgg": "ggjt (older llama.cpp)"}
_ORIGINAL = "Use the original .pth or .safetensors file."


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the checkpoint in the file `path`, whatever its name; close it when done (it is a context
    manager).

    Raises SourceNotFound (missing, a folder, unreadable), UnsupportedModel (a recognised format that is not
    supported), UnsafePickle, and FormatError (empty, truncated, corrupt, or no checkpoint at all).
    """
    path = Path(path)
    head, size = _read_head(path)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        from quant.checkpoints.pth import PthCheckpoint

        return PthCheckpoint(path)
    _refuse_other_formats(path, head)
    if size >= 9 and (head[8:9] == b"{" or path.suffix == ".safetensors"):
        from quant.checkpoints.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    if size < 9:
        raise FormatError(f"{path} is {size} bytes long: truncated, or not a checkpoint")
    raise FormatError(
        f"{path} is not a checkpoint", hint="Pass a torch zip file (.pth) or a safetensors file."
    )


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
        raise FormatError(f"{path} is empty", hint="Download the file again.")
    return head, size


def _folder_hint(folder: Path) -> str:
    """Which file to pass instead, when it is clear."""
    try:
        inside = sorted(item for item in folder.iterdir() if item.suffix in _SUFFIXES and item.is_file())
    except OSError:
        inside = []
    if len(inside) == 1:
        return f"Pass {inside[0]} instead."
    return (
        f"Pass one of its {len(inside)} .pth or .safetensors files." if inside else "Pass a checkpoint file."
    )


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Name what the file is, if its first bytes tell."""
    if head[:4] == b"GGUF":
        raise UnsupportedModel(f"{path} is a GGUF file: not supported yet", hint=_ORIGINAL)
    if head[:4] in _GGML:
        raise UnsupportedModel(f"{path} is a {_GGML[head[:4]]} file: not supported yet", hint=_ORIGINAL)
    if head[2:14] == _LEGACY_TORCH:
        raise UnsupportedModel(
            f"{path} is in the format of torch before 1.6: not supported",
            hint="Load it with a trusted torch and torch.save it again.",
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[8:9] != b"{":
        raise FormatError(f"{path} is a bare pickle, not a torch zip file")
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise FormatError(f"{path} is a Git LFS pointer", hint="Download the file that it stands for.")
    if text.startswith((b"<!doctype", b"<html")):
        raise FormatError(f"{path} is a web page, not a checkpoint", hint="Download the file again.")
    if (text.startswith(b"{") and b'"weight_map"' in text) or path.name.endswith(".index.json"):
        raise UnsupportedModel(f"{path} is the index of a model in several files: not supported yet")
