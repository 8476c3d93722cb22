"""Checkpoints written by torch.save: a zip archive of one pickle and the storages it refers to.

The pickle is interpreted by `torch_pickle` (nothing in it is run) and the storages stay mapped in the file.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from quant.arrays import Array
from quant.checkpoints.tensor_file import OneMappedFile, RawTensor
from quant.checkpoints.torch_pickle import MAX_PICKLE, TensorRef, load
from quant.checkpoints.torch_zip import DOWNLOAD_AGAIN, Entry, read_directory
from quant.errors import FormatError, UnsupportedModel, quoted
from quant.mapped_file import HASH_CHUNK, MappedFile

_ITEM_BYTES = {
    "f32": 4, "f16": 2, "bf16": 2, "f64": 8, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1,
    "c64": 8, "c128": 16,
}  # fmt: skip
_NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
_NESTED = ("state_dict", "model", "module")
"""Keys under which training checkpoints keep the weights."""
_CONVERTED = {"_strategy", "_version", "_rescale_layer"}
"""Keys that ChatRWKV's converter adds."""


class PthTensors(OneMappedFile):
    """The tensors of a torch zip file (.pth, .pt, .ckpt, .bin)."""

    format = "pth"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and validate `path`.

        Raises SourceNotFound, UnsafePickle (the pickle would run code), UnsupportedModel (a converted file,
        TorchScript, big-endian data) and FormatError (anything else that is wrong).
        """
        file = MappedFile(path)
        try:
            where = str(file.path)
            entries = self._entries = read_directory(file)
            root = _root(entries, where)
            if _read_small(file, entries.get(f"{root}/byteorder"), b"little") != b"little":
                raise UnsupportedModel(f"{where} holds big-endian tensors: not supported")
            found, extras = _weights(load(_read_pickle(file, entries[f"{root}/data.pkl"]), where), where)
            self._refs: dict[str, tuple[TensorRef, Entry]] = {}
            tensors: dict[str, RawTensor] = {}
            for name, ref in found.items():
                entry = entries.get(f"{root}/data/{ref.storage.key}")
                _check_view(ref, entry, f"{where}: tensor {quoted(name)}")
                assert entry is not None
                self._refs[name] = ref, entry
                dtype = ref.storage.dtype
                nbytes = math.prod(ref.shape) * _ITEM_BYTES[dtype]
                tensors[name] = RawTensor(dtype, ref.shape, dtype, nbytes)
            super().__init__(file)
            self.tensors, self.metadata = tensors, extras
        except BaseException:
            file.close()
            raise

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """See `TensorFile.sha256`. Checks the archive's checksums on the way: FormatError names the first member
        that is damaged. Writers may leave checksums out.
        """
        digest = hashlib.sha256()
        for begin, end, member in self._spans():
            crc = 0
            for at in range(begin, end, HASH_CHUNK):
                data = self._file.view(at, min(at + HASH_CHUNK, end))
                digest.update(data)
                if member and self._entries[member].crc:
                    crc = zlib.crc32(data, crc)
                if progress is not None:
                    progress(at + len(data), self.size)
            if member and crc != self._entries[member].crc:
                raise FormatError(
                    f"{self.path}: the checksum of member {quoted(member)} is wrong", hint=DOWNLOAD_AGAIN
                )
        return digest.hexdigest()

    def _spans(self) -> Iterator[tuple[int, int, str]]:
        """(begin, end, name) of all of the file: members, and what lies between them under no name."""
        at = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1]):
            yield at, entry.begin, ""
            yield entry.begin, entry.end, name
            at = entry.end
        yield at, self.size, ""

    def place(self, name: str) -> Hashable:
        """See `TensorFile.place`."""
        return self._refs[name]

    def array(self, name: str) -> Array:
        """See `TensorFile.array`."""
        ref, entry = self._refs[name]
        storage = self._file.array(_NUMPY[ref.storage.dtype], ref.storage.numel, entry.begin)
        if math.prod(ref.shape) == 0:
            return np.empty(ref.shape, storage.dtype)
        # of an axis of length 1 the stride may be any number, also one that is too large for numpy
        strides = [
            step * storage.itemsize if dim > 1 else 0 for dim, step in zip(ref.shape, ref.stride, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(storage[ref.offset :], ref.shape, strides, writeable=False)


def _root(entries: dict[str, Entry], where: str) -> str:
    """The one folder in which torch keeps everything."""
    roots = [
        name.partition("/")[0] for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise FormatError(f"{where} is a zip archive, but not one written by torch.save")
    if f"{roots[0]}/constants.pkl" in entries:
        raise UnsupportedModel(f"{where} is a TorchScript program, not a checkpoint")
    return roots[0]


def _read_small(file: MappedFile, entry: Entry | None, default: bytes) -> bytes:
    return default if entry is None else file.read(entry.begin, min(entry.end, entry.begin + 64)).strip()


def _read_pickle(file: MappedFile, entry: Entry) -> bytes:
    size = entry.end - entry.begin
    if size > MAX_PICKLE:
        raise FormatError(f"{file.path}: the pickle is {size} bytes long; the limit is {MAX_PICKLE}")
    data = file.read(entry.begin, entry.end)
    if entry.crc and zlib.crc32(data) != entry.crc:
        raise FormatError(f"{file.path}: the pickle's checksum is wrong", hint=DOWNLOAD_AGAIN)
    return data


def _weights(loaded: Any, where: str) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """The tensors by name, and the plain values beside them as strings.

    Descends into `state_dict` and the like.
    """
    extras: dict[str, str] = {}
    for _ in range(4):
        if not isinstance(loaded, dict):
            raise FormatError(f"{where} does not hold a dict of tensors")
        if _CONVERTED & loaded.keys():
            raise UnsupportedModel(
                f"{where} was converted by ChatRWKV: its weights are rescaled and transposed",
                hint="use the original .pth file",
            )
        tensors = {str(name): value for name, value in loaded.items() if isinstance(value, TensorRef)}
        for name, value in loaded.items():
            if isinstance(value, str) or (type(value) in (int, float, bool) and abs(value) < 1 << 63):
                extras[str(name)] = str(value)
        inner = [loaded[key] for key in _NESTED if isinstance(loaded.get(key), dict)]
        if len(inner) == 1 and (not tensors or _has_tensors(inner[0])):
            loaded = inner[0]  # tensors beside it belong to the training: the state of a random generator
        elif tensors:
            return tensors, extras
        else:
            break
    raise FormatError(f"{where} holds no tensors")


def _has_tensors(loaded: dict[Any, Any]) -> bool:
    return any(isinstance(value, TensorRef) for value in loaded.values())


def _check_view(ref: TensorRef, entry: Entry | None, where: str) -> None:
    """The storage exists with the size it claims, and the view stays inside it without repeating elements."""
    storage = ref.storage
    if entry is None:
        raise FormatError(f"{where}: its storage {quoted(storage.key)} is missing", hint=DOWNLOAD_AGAIN)
    size = entry.end - entry.begin
    if size != storage.numel * _ITEM_BYTES[storage.dtype]:
        raise FormatError(
            f"{where}: its storage of {size} bytes does not hold {storage.numel} {storage.dtype}"
        )
    elements = math.prod(ref.shape)
    if elements == 0:
        return
    last = ref.offset + sum((dim - 1) * step for dim, step in zip(ref.shape, ref.stride, strict=True))
    if last >= storage.numel:
        raise FormatError(f"{where}: it reaches element {last} of a storage of {storage.numel}")
    if elements > storage.numel:
        raise FormatError(f"{where}: it repeats the elements of its storage")
