"""Reading a model file: everything is checked at the door, then tensors are views of the mapping."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from quant.arch import VERSIONS, Arch
from quant.codebooks import LEAST, NF4, is_codebook
from quant.container.header import (
    ALIGNMENT,
    FORMAT,
    FORMAT_VERSION,
    KEYS,
    LEAST_EPS,
    MOST_EPS,
    OPTIONAL,
    PAD_PREFIX,
    TOKENIZER_TENSOR,
    TOKENIZERS,
)
from quant.container.values import ValueChecks, WithNumpy
from quant.errors import FormatError, InvalidRequest, quoted
from quant.formats import ENCODINGS, LAYOUTS, PartSpec, Shape, parts_of, stored_name
from quant.orient import logical_tensors
from quant.recipe import class_of, is_allowed
from quant.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from quant.arrays import F32, Array

MAX_LAYERS = 1024
MAX_DIM = 1 << 24


class Part(NamedTuple):
    """One stored tensor of a logical one."""

    name: str
    """"" (the tensor itself), "q", "s", "d" or "cb"."""
    offset: int
    """First byte, from the start of the file; a multiple of 64."""
    nbytes: int


class TensorPlan(NamedTuple):
    """How one logical tensor is stored, and where."""

    encoding: str
    layout: str
    shape: Shape
    parts: tuple[Part, ...]


class ModelFile:
    """An open model file. Construct it with `open`; use it as a context manager."""

    path: Path
    arch: Arch
    group_norm_eps: float | None
    """None in v4, which has no group norm."""
    tokenizer: str
    """"world", "bytes", "json" (see `tokenizer_bytes`) or "none"."""
    template: str
    recipe: str
    method: str
    calibration: str
    source: dict[str, Any]
    """file, bytes, sha256 and dtype of the checkpoint that the weights came from; perhaps repo and revision on the Hub."""
    report: dict[str, Any]
    """What the encoding cost; see `quant.metrics`."""
    metadata: dict[str, str]
    """All strings of the header as they stand."""
    plan: dict[str, TensorPlan]
    """{logical name: how and where}, in file order."""
    tensors: dict[str, tuple[str, Shape]]
    """{stored name: (safetensors dtype, shape)} without padding, in file order."""

    def __init__(
        self, file: SafetensorsFile, *, check_values: bool = True, checks: ValueChecks | None = None
    ) -> None:
        """Check `file`, which this object then owns. FormatError for what FORMAT.md does not allow.

        `check_values`: look at scales, codebooks and vectors too, not at the header alone; by `checks`, or by numpy.
        """
        self._file = file
        self.path = file.file.path
        self.metadata = file.metadata
        self._check_kind()
        self.tokenizer = self._choice("tokenizer", TOKENIZERS)
        self.template, self.recipe = file.metadata["template"], file.metadata["recipe"]
        self.method, self.calibration = file.metadata["method"], file.metadata["calibration"]
        self.source, self.report = self._json("source"), self._json("report")
        self.arch, self.group_norm_eps = self._read_arch(self._json("arch"))
        self.plan = self._read_plan(self._json("plan"))
        self.tensors = {
            name: (info.dtype, info.shape)
            for name, info in file.header.items()
            if not name.startswith(PAD_PREFIX)
        }
        self._check_tensors()
        if check_values:
            self._check_values(checks or WithNumpy())

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, check_values: bool = True, checks: ValueChecks | None = None
    ) -> ModelFile:
        """Map and check the model file `path`; without `check_values` its header alone. `checks`: in place of numpy.

        Raises SourceNotFound (missing, a folder) and FormatError (corrupt, truncated, of an unknown version,
        or a checkpoint and not a model file).
        """
        file = SafetensorsFile(path)
        try:
            return cls(file, check_values=check_values, checks=checks)
        except BaseException:
            file.close()
            raise

    @property
    def size(self) -> int:
        """File size in bytes."""
        return self._file.size

    @property
    def quantized(self) -> bool:
        """Whether any tensor has lost precision to codes and scales."""
        return any(ENCODINGS[item.encoding].quantized for item in self.plan.values())

    def shape(self, name: str) -> Shape:
        """Shape of the logical tensor `name`; FormatError when there is none."""
        return self._planned(name).shape

    def parts(self, name: str) -> dict[str, Array]:
        """{part: read-only view of the mapping} of the logical tensor `name`; bf16 as uint16."""
        plan = self._planned(name)
        return {part.name: self._file.array(stored_name(name, part.name)) for part in plan.parts}

    def decode(self, name: str) -> F32:
        """The logical tensor `name` as float32, row-major [N, K] or the vector's shape. Perhaps a view."""
        from quant.codecs import decode

        plan = self._planned(name)
        return decode(self.parts(name), plan.encoding, plan.layout, plan.shape)

    def rows(self, name: str, begin: int, end: int) -> F32:
        """Rows [begin, end) of an unquantized tensor as float32; InvalidRequest for a quantized one."""
        from quant.codecs import floats

        plan = self._planned(name)
        if ENCODINGS[plan.encoding].quantized:
            raise InvalidRequest(f"{self.path}: {name} is quantized; its rows cannot be taken one by one")
        return floats.decode(self.parts(name)[""][begin:end], plan.encoding)

    def tokenizer_bytes(self) -> bytes | None:
        """The embedded tokenizer.json, or None when `tokenizer` is not "json"."""
        return bytes(self._file.buffer(TOKENIZER_TENSOR)) if self.tokenizer == "json" else None

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """SHA-256 of the whole file as hex; `progress(bytes done, bytes in all)`."""
        return self._file.sha256(progress)

    def close(self) -> None:
        """Give the mapping back once no array refers to it."""
        self._file.close()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _planned(self, name: str) -> TensorPlan:
        try:
            return self.plan[name]
        except KeyError:
            raise FormatError(f"{self.path} has no tensor {quoted(name)}") from None

    def _fail(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}")

    def _check_kind(self) -> None:
        if self.metadata.get("format") != FORMAT:
            raise FormatError(
                f"{self.path} is a checkpoint, not a model file",
                hint=f"make one with: rwkv quantize {self.path} --to int8",
            )
        version = self.metadata.get("format_version", "")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{self.path} is a model file of version {quoted(version)}; "
                f"this program reads version {FORMAT_VERSION}",
                hint="upgrade rwkvcli, or quantize the checkpoint again",
            )
        missing = [key for key in KEYS if key not in self.metadata]
        if missing:
            raise self._fail(f"the metadata lack {', '.join(missing)}")

    def _choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.metadata[key]
        if value not in allowed:
            raise self._fail(f"unknown {key} {quoted(value)}")
        return value

    def _json(self, key: str) -> dict[str, Any]:
        """A metadata value that is a JSON object; duplicate keys, NaN and what is no text are refused."""
        try:
            value = json.loads(self.metadata[key], object_pairs_hook=_unique, parse_constant=_no_constant)
            if "\\u" in self.metadata[key]:  # half of a surrogate pair is no text
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise self._fail(f"the metadata's {key} is not valid JSON") from None
        if not isinstance(value, dict):
            raise self._fail(f"the metadata's {key} is not a JSON object")
        return value

    def _read_arch(self, value: dict[str, Any]) -> tuple[Arch, float | None]:
        eps = value.pop("group_norm_eps", None)
        fields = {field.name for field in dataclasses.fields(Arch)} - set(OPTIONAL)
        if (
            set(value) - set(OPTIONAL) != fields
            or any(value.get(name, True) is not True for name in OPTIONAL)
            or value["version"] not in VERSIONS
            or type(value["time_first_is_log"]) is not bool
        ):
            raise self._fail("the metadata's arch does not name a known version and its sizes")
        sizes = {name: value[name] for name in fields - {"version", "time_first_is_log"}}
        if not all(type(size) is int and 0 <= size <= MAX_DIM for size in sizes.values()):
            raise self._fail("the metadata's arch has sizes that are no sizes")
        arch = Arch(**value)
        if not 1 <= arch.n_layer <= MAX_LAYERS or min(arch.n_embd, arch.n_ffn, arch.vocab_size) < 1:
            raise self._fail("the metadata's arch has sizes that are no sizes")
        if arch.n_head * arch.head_size != (0 if arch.version == "4" else arch.n_embd):
            raise self._fail(
                f"{arch.n_head} heads of {arch.head_size} do not make an embedding of {arch.n_embd}"
            )
        if arch.version == "4":
            if eps is not None:
                raise self._fail("version 4 has no group norm, but an epsilon for it is given")
        elif type(eps) is not float or not LEAST_EPS <= eps <= MOST_EPS:
            raise self._fail("the group norm's epsilon is not a number between 0 and 1")
        return arch, eps

    def _read_plan(self, value: dict[str, Any]) -> dict[str, TensorPlan]:
        logical = logical_tensors(self.arch)
        if value.keys() != logical.keys():
            odd = min(value.keys() ^ logical.keys())
            raise self._fail(f"the plan and the arch disagree about tensor {quoted(odd)}")
        return {name: self._tensor_plan(name, item.shape, value[name]) for name, item in logical.items()}

    def _tensor_plan(self, name: str, shape: Shape, value: object) -> TensorPlan:
        if not isinstance(value, dict) or value.keys() != {"encoding", "layout", "shape"}:
            raise self._fail(f"the plan of tensor {name} is not an encoding, a layout and a shape")
        encoding, layout = value["encoding"], value["layout"]
        if value["shape"] != list(shape) or any(type(dim) is not int for dim in value["shape"]):
            raise self._fail(f"tensor {name} has shape {quoted(str(value['shape']))}, not {list(shape)}")
        known = isinstance(encoding, str) and encoding in ENCODINGS and layout in LAYOUTS
        if not known or not is_allowed(name, encoding, layout):
            word = "a form that it may not have" if known else "the unknown form"
            raise FormatError(
                f"{self.path}: tensor {name} has {word}: {quoted(str(encoding))}, {quoted(str(layout))}",
                hint=None
                if known
                else "a newer rwkvcli may know it: upgrade, or quantize the checkpoint again",
            )
        try:
            specs = parts_of(encoding, layout, shape)
        except InvalidRequest as error:
            raise self._fail(f"tensor {name}: {error}") from None
        return TensorPlan(encoding, layout, shape, tuple(self._part(name, spec) for spec in specs))

    def _part(self, name: str, spec: PartSpec) -> Part:
        stored = stored_name(name, spec.part)
        info = self._file.header.get(stored)
        if info is None:
            raise self._fail(f"tensor {stored} is missing")
        if info.dtype != spec.dtype or info.shape != spec.shape:
            have, want = f"{info.dtype} {list(info.shape)}", f"{spec.dtype} {list(spec.shape)}"
            raise self._fail(f"tensor {stored} is {have}, not {want}")
        if info.begin % ALIGNMENT:
            raise self._fail(f"tensor {stored} does not begin at a multiple of {ALIGNMENT} bytes")
        return Part(spec.part, info.begin, info.end - info.begin)

    def _check_tensors(self) -> None:
        """No tensor beside those of the plan, but the tokenizer if there is one."""
        known = {stored_name(name, part.name) for name, plan in self.plan.items() for part in plan.parts}
        if self.tokenizer == "json":
            known.add(TOKENIZER_TENSOR)
            dtype, shape = self.tensors.get(TOKENIZER_TENSOR, ("", ()))
            if dtype != "U8" or len(shape) != 1:
                raise self._fail("the tokenizer is missing")
        extra = [name for name in self.tensors if name not in known]
        if extra:
            raise self._fail(f"unexpected tensor {quoted(extra[0])}")

    def _check_values(self, checks: ValueChecks) -> None:
        """What is small and decides much: row scales, codebooks, vectors. A few MB even in large models."""
        for name, plan in self.plan.items():
            if ENCODINGS[plan.encoding].quantized:
                if not checks.are_scales(self._bytes_of(name, "d")):
                    raise self._fail(f"tensor {name} has row scales that are negative, NaN or infinite")
                if ENCODINGS[plan.encoding].has_codebook:
                    self._check_codebook(name, plan.encoding, bytes(self._bytes_of(name, "cb")))
            elif class_of(name) == "vectors" and not checks.are_finite(self._bytes_of(name, "")):
                raise self._fail(f"tensor {name} has values that are NaN or infinite")

    def _check_codebook(self, name: str, encoding: str, table: bytes) -> None:
        if encoding == "nf4":
            if table != NF4:
                raise self._fail(f"tensor {name} has a codebook that is not NF4's")
        elif not is_codebook(table, bits := ENCODINGS[encoding].bits):
            raise self._fail(
                f"tensor {name} has a codebook that is not 16 ascending bytes in {LEAST[bits]}..127"
            )

    def _bytes_of(self, name: str, part: str) -> memoryview:
        return self._file.buffer(stored_name(name, part))


def is_model_file(metadata: Mapping[str, str]) -> bool:
    """Whether safetensors metadata are those of a model file, of any version."""
    return metadata.get("format") == FORMAT


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(text)
