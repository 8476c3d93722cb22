"""The file of a state: safetensors with the canonical arrays, what they belong to, and a checksum over all of it.

Metadata (strings): `format`, `format_version`, `fingerprint` of the model file, `model` (JSON: version and sizes),
`source` (name of the checkpoint), `tokens_seen`, `pause` (JSON, see `Pause`; may be missing), what else its writer says of it
(`kept`: `services/kept_states.py`), `sha256`. Tensors are float32: those of `State.to_numpy`, and with a pause perhaps `logits` [V]. The same state gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quant.container.header import arch_fields
from quant.errors import SourceNotFound, quoted
from quant.paths import is_there
from quant.safetensors_file import SafetensorsFile
from rwkvcli.errors import FormatError, ModelNotFound, StateMismatch

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from quant.arch import Arch
    from rwkvcli.runtime.backend import Float32, Logits

FORMAT = "rwkvcli-state"
FORMAT_VERSION = "1"
LOGITS = "logits"
_NOT_ONE = "not a state file, or a damaged one"


@dataclass(frozen=True)
class Origin:
    """The model that a state belongs to."""

    fingerprint: str
    """Of the model file's content."""
    sizes: Mapping[str, Any]
    """`version` and the sizes, as in `Model.config`."""
    source: str
    """Name of the checkpoint that the model file was made of; may be empty."""

    @classmethod
    def of(cls, fingerprint: str, arch: Arch, source: object) -> Origin:
        """That of a model file; `source` is what it says of its checkpoint's name."""
        return cls(fingerprint, arch_fields(arch), source if isinstance(source, str) else "")

    def __str__(self) -> str:
        sizes = f"{self.sizes.get('n_layer')} layers of {self.sizes.get('n_embd')}"
        name = f"{quoted(self.source)}, " if self.source else ""
        return f"{name}RWKV-{self.sizes.get('version')}, {sizes}"


@dataclass(frozen=True)
class Pause:
    """What a run needs beside the state to go on as if it had not been interrupted."""

    logits: Logits | None = None
    """float32 [V] after the last token. None when nothing can be drawn before some text is fed."""
    sampler: Mapping[str, Any] | None = None
    """`Sampler.state()`; None: nothing was drawn. Of a text that conforms to something it has the tokens."""
    text: Mapping[str, Any] | None = None
    """`TextStream.state()`: half a character, what may become a stop string; of an answer also `answer`,
    `ThoughtSplitter.state()`."""
    ended: bool = False
    """Whether the model, or a stop string, ended the text."""

    def to_json(self) -> dict[str, Any]:
        """All but the logits."""
        return {"sampler": self.sampler, "text": self.text, "ended": self.ended}


class StateFile:
    """An open state file whose header is sound; whose it is, is not looked at.

    Use it as a context manager. Making one raises ModelNotFound (no such file) and FormatError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._file.size

    @property
    def metadata(self) -> Mapping[str, str]:
        """All that the file says of itself."""
        return self._file.metadata

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of the state's arrays, in the file's order."""
        return {name: info.shape for name, info in self._file.header.items() if name != LOGITS}

    @property
    def pause(self) -> Pause | None:
        """What a run needs to go on; its logits are a copy."""
        said = self._pause
        if said is None:
            return None
        logits: memoryview[float] | None = None
        if LOGITS in self._file.header:
            if len(self._file.header[LOGITS].shape) != 1:
                raise FormatError(f"{self.path}: {LOGITS} is not one row of numbers")
            logits = memoryview(bytearray(self._file.buffer(LOGITS))).cast("f")
        return Pause(logits, said["sampler"], said["text"], said["ended"])

    def arrays(self) -> dict[str, Float32]:
        """The state's arrays as read-only views of the file. FormatError: a value that is NaN or infinite."""
        self.values()
        return {name: self._file.array(name) for name in self.shapes}

    def values(self) -> dict[str, memoryview[float]]:
        """The same without importing numpy, each [elements]: `shapes` tells the rest."""
        from rwkvcli import _kernels

        found = {name: self._file.buffer(name).cast("f") for name in self.shapes}
        for name, values in found.items():
            if not _kernels.all_finite(values):
                raise FormatError(f"{self.path}: {quoted(name)} has values that are NaN or infinite")
        return found

    def verify(self) -> None:
        """Raise FormatError if the checksum does not hold: something in the file is not as it was written."""
        header = self._file.header
        metadata = dict(self._file.metadata)
        said = metadata.pop("sha256", None)
        found = _digest(
            metadata,
            {name: info.shape for name, info in header.items()},
            {name: self._file.buffer(name) for name in header},
        )
        if said != found:
            raise FormatError(f"{self.path}: its checksum is wrong: the state file is damaged")

    def check_belongs_to(self, origin: Origin) -> None:
        """Raise StateMismatch if another model made the state."""
        own = self.origin
        if own.fingerprint == origin.fingerprint:
            return
        if own.sizes == origin.sizes:
            hint = (
                "the sizes are the same, the weights or their format are not: use the model file that made it"
            )
        else:
            hint = f"the model in use is {origin}"
        raise StateMismatch(f"{self.path}: the state of another model ({own})", hint=hint)

    def close(self) -> None:
        """Give the mapping back once no array refers to it."""
        self._file.close()

    def __enter__(self) -> StateFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_header(self) -> None:
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise _not_a_state(self.path, self._file)
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{self.path}: state format {quoted(str(version))} is not read by this version",
                hint="make the state again with this version",
            )
        if any(info.dtype != "F32" for info in self._file.header.values()):
            raise FormatError(f"{self.path}: {_NOT_ONE}")
        try:
            sizes = json.loads(metadata["model"])
            if not isinstance(sizes, dict):
                raise ValueError
            self.origin = Origin(metadata["fingerprint"], sizes, metadata["source"])
            self.tokens_seen = int(metadata["tokens_seen"])
            self._pause = json.loads(metadata["pause"]) if "pause" in metadata else None
        except (KeyError, ValueError, RecursionError):
            raise FormatError(f"{self.path}: {_NOT_ONE}") from None
        if self.tokens_seen < 0:
            raise FormatError(f"{self.path}: a state that has seen {self.tokens_seen} tokens")
        if self._pause is not None and not _is_pause(self._pause):
            raise FormatError(f"{self.path}: {_NOT_ONE}")


def is_state_file(path: str | Path) -> bool:
    """Whether the file is a state of any model and version. Raises SourceNotFound and FormatError."""
    with SafetensorsFile(path) as file:
        return file.metadata.get("format") == FORMAT


def write_state(
    path: str | Path, arrays: Mapping[str, Logits], origin: Origin, tokens_seen: int, pause: Pause | None
) -> None:
    """Write a state file of float32 arrays in C order. An interrupted write leaves what was there before.

    Raises OSError when the folder cannot be written, and UsageError for a path that is no regular file.
    """
    from quant.atomic import whole_file

    parts = state_parts(arrays, origin, tokens_seen, pause)
    try:
        with whole_file(path) as file:
            for part in parts:
                file.write(part)
    except OSError as error:
        if error.filename is None:  # of a full disk: say what did not fit
            error.filename = str(path)
        raise


def state_parts(
    arrays: Mapping[str, Logits],
    origin: Origin,
    tokens_seen: int,
    pause: Pause | None,
    more: Mapping[str, str] | None = None,
) -> list[bytes | memoryview]:
    """The bytes of a state file, one part after the other; `more` is metadata beside that of all."""
    from quant.safetensors_file import header_bytes

    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": origin.fingerprint,
        "model": _json(dict(origin.sizes)),
        "source": origin.source,
        "tokens_seen": str(tokens_seen),
        **(more or {}),
    }
    arrays = dict(arrays)
    if pause is not None:
        metadata["pause"] = _json(pause.to_json())
        if pause.logits is not None:
            arrays[LOGITS] = pause.logits
    shapes = {name: tuple(array.shape or ()) for name, array in arrays.items()}
    bytes_of = {name: memoryview(cast("Buffer", array)).cast("B") for name, array in arrays.items()}
    metadata["sha256"] = _digest(metadata, shapes, bytes_of)
    places = {name: ("F32", shape, len(bytes_of[name])) for name, shape in shapes.items()}
    return [header_bytes(places, metadata), *bytes_of.values()]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(
    metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], data: Mapping[str, memoryview]
) -> str:
    """SHA-256 of everything that the file says, wherever it stands; `data` are the arrays' bytes."""
    sizes = {name: list(shape) for name, shape in shapes.items()}
    digest = hashlib.sha256(_json([dict(metadata), sizes]).encode())
    for name in sorted(data):
        digest.update(data[name])
    return digest.hexdigest()


def _open(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(path)
    except SourceNotFound as error:
        if not is_there(path) and not path.is_symlink():
            raise ModelNotFound(
                f"{path}: no such state file", hint="`rwkv state build` and `--save-state` make one"
            ) from None
        raise ModelNotFound(str(error)) from None
    except FormatError:
        if not path.is_file():  # a pipe would be waited for
            raise
        raise _not_a_state(path) from None


def _not_a_state(path: Path, file: SafetensorsFile | None = None) -> FormatError:
    """Say what the file is instead, where that is clear."""
    hint = None
    if file is None:
        with open(path, "rb") as stream:
            if stream.read(2) == b"PK":
                hint = "a tuned state in a .pth file becomes one by `rwkv state import`"
    elif any(name.endswith(".att.time_state") for name in file.header):
        hint = "a tuned state becomes one by `rwkv state import`"
    elif "emb.weight" in file.header or "format" in file.metadata:
        hint = "it is a model: -m takes it"
    return FormatError(f"{path}: {_NOT_ONE}", hint=hint)


def _is_pause(value: Any) -> bool:
    """Whether it has the kinds of values that `Pause.to_json` gives; what is inside is checked where it is used."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("ended"), bool)
        and all(value.get(key) is None or isinstance(value[key], dict) for key in ("sampler", "text"))
    )
