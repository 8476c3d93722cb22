"""A model in several files, listed by an index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable
from pathlib import Path, PurePosixPath, PureWindowsPath

from quant.arrays import Array
from quant.checkpoints.tensor_file import RawTensor, TensorFile
from quant.errors import FormatError, SourceNotFound, quoted

_MAX_INDEX = 1 << 26
_MOST_FILES = 4096


class Shards(TensorFile):
    """The tensors of all files that an index names."""

    def __init__(self, index: Path, told: Path, opened: Callable[[Path], TensorFile]) -> None:
        """`told`: what messages call the whole. `opened` opens one file.

        Raises SourceNotFound (a file is missing), FormatError (a damaged index, tensors that are not where it says), and
        what `opened` raises.
        """
        self.path, self._index = told, index
        places = weight_map(_read(index), str(index))
        self._files: dict[str, TensorFile] = {}
        try:
            for name in sorted(set(places.values())):
                if not (index.parent / name).is_file():
                    raise SourceNotFound(f"{index.parent / name} is missing", hint=f"{index.name} names it")
                self._files[name] = opened(index.parent / name)
        except BaseException:
            self.close()
            raise
        self._place = {name: self._files[file] for name, file in places.items()}
        self.tensors = {name: self._described(name, file) for name, file in places.items()}
        first = next(iter(self._files.values()))
        self.format = first.format  # type: ignore[misc]
        self.metadata, self.numbers = first.metadata, {}
        self.size = sum(file.size for file in self._files.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """See `TensorFile.files`."""
        return (self._index, *(path for file in self._files.values() for path in file.files))

    def place(self, name: str) -> Hashable:
        """See `TensorFile.place`."""
        return self._place[name].path, self._place[name].place(name)

    def array(self, name: str) -> Array:
        """See `TensorFile.array`."""
        return self._place[name].array(name)

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """The hash of the files' hashes (64 hex digits each), in the order of their names."""
        digest, before = hashlib.sha256(), 0
        for file in self._files.values():

            def watch(done: int, total: int, begin: int = before) -> None:
                if progress is not None:
                    progress(begin + done, self.size)

            digest.update(file.sha256(watch).encode())
            before += file.size
        return digest.hexdigest()

    def close(self) -> None:
        """See `TensorFile.close`."""
        for file in self._files.values():
            file.close()

    def _described(self, name: str, file: str) -> RawTensor:
        raw = self._files[file].tensors.get(name)
        if raw is None:
            raise FormatError(f"{self.path}: {file} has no tensor {quoted(name)}, but the index says so")
        return raw


def _read(index: Path) -> bytes:
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise FormatError(f"{index} is too large for an index")
        return index.read_bytes()
    except OSError as error:
        raise SourceNotFound(f"{index} cannot be read: {error.strerror or error}") from None


def weight_map(data: bytes, index: str) -> dict[str, str]:
    """{tensor: file name} of the content of an index, checked; `index`: its name. Raises FormatError."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError(f"{index} is not valid JSON", hint="download it again") from None
    places = said.get("weight_map") if isinstance(said, dict) else None
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(file, str) for file in places.values())
    ):
        raise FormatError(f"{index} has no weight_map")
    files = set(places.values())
    for file in files:
        if PurePosixPath(file).name != file or PureWindowsPath(file).name != file or file in ("", "..", "."):
            raise FormatError(f"{index} names a file outside of its folder: {quoted(file)}")
    if len(files) > _MOST_FILES:
        raise FormatError(f"{index} names {len(files)} files")
    return places
