"""Quantization of a whole model: one tensor at a time, from a source to a model file.

Memory: at most one tensor in float32 and its codes. Tensors that need no look at the whole (all but 4-bit
ones, whose codebook is learned, and those in layout `kn`) are worked on in blocks of rows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from quant.arch import Arch
from quant.arrays import F32, Array, round_up
from quant.atomic import new_file
from quant.checkpoints import Checkpoint
from quant.codecs import decode, floats
from quant.container.header import FORMAT, FORMAT_VERSION, TOKENIZER_TENSOR, Entry, arch_fields, dumps
from quant.container.reader import ModelFile
from quant.container.writer import ContainerWriter
from quant.errors import Cancelled, FormatError, InvalidRequest
from quant.formats import ENCODINGS, KN, parts_of, stored_name
from quant.methods import STATISTICS, Encoder
from quant.metrics import ClassReport, Loss, TensorReport, by_class, json_bound, measure, to_json
from quant.recipe import Plan, Planned, make_plan
from quant.sources import Source, source_of, told_name

BLOCK = 1 << 23
"""Weights of a tensor that are read and encoded together, where rows allow it (32 MB in float32)."""
SHA256_DIGITS = 64
QUALITY_BYTES = 8192
"""Room in the header for what `evaluate` returns."""
SOURCE_ITSELF = "the source itself"
"""What the source is called where writing over it is refused."""


class Progress(NamedTuple):
    """How far a quantization has come."""

    tensor: str
    """The logical tensor being worked on."""
    done: int
    """Weights encoded."""
    total: int
    """Weights of the model."""


@dataclass(frozen=True)
class Result:
    """A finished quantization."""

    path: Path
    arch: Arch
    kind: str
    source_bytes: int
    nbytes: int
    """Size of the written file."""
    classes: tuple[ClassReport, ...]
    """By class of tensors, "total" last."""
    tensors: tuple[TensorReport, ...]
    quality: Mapping[str, Any] | None = None
    """What `evaluate` returned."""


def quantize(
    source: Checkpoint | ModelFile,
    out_path: str | os.PathLike[str],
    kind: str,
    *,
    encoder: Encoder,
    tokenizer_json: bytes | None = None,
    template: str | None = None,
    group_norm_eps: float | None = None,
    ffn_value: str = "auto",
    force: bool = False,
    evaluate: Callable[[Path], Mapping[str, Any]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Write `source` as a model file of `kind` ("int8", "int4", "bf16", "f16", "f32"; see `quant.recipe`).

    `tokenizer_json`: contents of a tokenizer.json to embed; without it, the vocabulary's size decides.
    `template`: id of the chat template; None for the source's, or none.
    `group_norm_eps`: None for the source's, or the usual 64e-5. `ffn_value`: "auto", "tile" or "kn". `force`:
    replace an existing file; where `out_path` is a link, what it leads to. `evaluate` is given the path of the
    file before it takes its place; what it returns (ready for JSON, at most QUALITY_BYTES) is the report's
    `quality`, and what it raises ends the work. `should_stop` is asked between blocks.

    Raises InvalidRequest (a quantized source, OUT is SRC, OUT exists or is no regular file, bad options),
    FormatError (NaN or infinite weights, values past the encoding's range, a source that its own checksums call
    damaged), NoSpace, Cancelled. In all cases an existing `out_path` is left as it was.
    """
    weights = source_of(source)
    out = Path(out_path)
    final = new_file(out, force=force, kept=source_files(weights.path))
    plan = make_plan(weights.arch, kind, ffn_value=ffn_value)
    lossy = any(ENCODINGS[item.encoding].quantized for item in plan.values())
    tokenizer, tokenizer_bytes = _tokenizer(weights, tokenizer_json)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arch": dumps(arch_fields(weights.arch) | {"group_norm_eps": _epsilon(weights, group_norm_eps)}),
        "tokenizer": tokenizer,
        "template": template or weights.template or "none",
        "recipe": f"{kind}, ffn.value {ffn_value}" if lossy and ffn_value != "auto" else kind,
        "plan": dumps({name: item._asdict() for name, item in plan.items()}),
        "method": encoder.method if lossy else "none",
        "calibration": "none",
        "report": "{}",
        "source": "{}",
    }
    entries = [
        Entry(stored_name(name, spec.part), spec.dtype, spec.shape)
        for name, item in plan.items()
        for spec in parts_of(*item)
    ]
    if tokenizer_bytes is not None:
        entries.append(Entry(TOKENIZER_TENSOR, "U8", (len(tokenizer_bytes),)))
    reserve = json_bound(plan) + 6 * len(told_name(weights.path).encode()) + 4096
    reserve += QUALITY_BYTES if evaluate is not None else 0
    progress = _Watch(plan, on_progress, should_stop)
    writing = ContainerWriter(final, entries, metadata, reserve, told=out)
    with _Provenance(weights) as provenance, writing as writer:
        reports = [
            _tensor(weights, name, item, encoder=encoder, writer=writer, progress=progress)
            for name, item in plan.items()
        ]
        if tokenizer_bytes is not None:
            writer.write(TOKENIZER_TENSOR, np.frombuffer(tokenizer_bytes, np.uint8))
        report = to_json(reports)
        metadata |= {"report": dumps(report), "source": dumps(provenance.result(progress.check))}
        quality = None
        if evaluate is not None:
            quality = evaluate(writer.preview(metadata))
            metadata["report"] = dumps({**report, "quality": quality})
        progress.check()
        writer.finish(metadata)
    return Result(
        out,
        weights.arch,
        kind,
        weights.file_size,
        writer.size,
        tuple(by_class(reports)),
        tuple(reports),
        quality,
    )


def _tensor(
    source: Source, name: str, item: Planned, *, encoder: Encoder, writer: ContainerWriter, progress: _Watch
) -> TensorReport:
    """Encode and write one logical tensor."""
    quantized = ENCODINGS[item.encoding].quantized
    encode = _quantized if quantized else _plain
    offsets = dict.fromkeys((spec.part for spec in parts_of(*item)), 0)
    loss = Loss()
    for begin, end in _blocks(item):
        progress.at(name)
        values = source.rows(name, begin, end)
        parts, lost = encode(values, item, encoder)
        if not all(map(math.isfinite, (lost.error, lost.power, lost.largest))):
            raise FormatError(
                f"{source.path}: tensor {name} has values past the range of {item.encoding}",
                hint=f"Use --to {'bf16 or --to f32' if item.encoding == 'f16' else 'f32'}.",
            )
        for part, array in parts.items():
            writer.write(stored_name(name, part), array, offsets[part])
            offsets[part] += array.nbytes
        loss += lost
        progress.add(values.size)
    return TensorReport(name, item.encoding, item.layout, math.prod(item.shape), item.nbytes, loss)


def _blocks(item: Planned) -> Iterator[tuple[int, int]]:
    """Ranges of rows that can be encoded by themselves: whole tiles, or everything."""
    rows = item.shape[0]
    whole = ENCODINGS[item.encoding].bits == 4 or item.layout == KN
    step = rows if whole else round_up(max(1, BLOCK // math.prod(item.shape[1:])), 16)
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def _plain(values: F32, item: Planned, encoder: Encoder) -> tuple[Mapping[str, Array], Loss]:
    stored = floats.encode(values, item.encoding)
    if item.encoding == "f32":
        return {"": stored}, Loss()
    return {"": stored}, measure(values, floats.decode(stored, item.encoding))


def _quantized(values: F32, item: Planned, encoder: Encoder) -> tuple[Mapping[str, Array], Loss]:
    parts = encoder.encode(values, item.encoding, item.layout)
    statistics = [parts.pop(key, None) for key in STATISTICS]
    if any(value is None for value in statistics):
        shape = (values.shape[0], values.shape[1])
        return parts, measure(values, decode(parts, item.encoding, item.layout, shape))
    error, power, largest = (np.asarray(value, np.float64) for value in statistics)
    return parts, Loss(math.fsum(error), math.fsum(power), float(largest.max()))


class _Watch:
    """Progress out, wish to stop in."""

    def __init__(
        self,
        plan: Plan,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._report, self._stop = on_progress, should_stop
        self._name, self._done = "", 0
        self._total = sum(math.prod(item.shape) for item in plan.values())

    def at(self, name: str) -> None:
        """Work on tensor `name` goes on."""
        self.check()
        self._name = name

    def add(self, count: int) -> None:
        """`count` more weights are done."""
        self._done += count
        if self._report is not None:
            self._report(Progress(self._name, self._done, self._total))

    def check(self) -> None:
        """Raise Cancelled if so wished."""
        if self._stop is not None and self._stop():
            raise Cancelled("quantization was stopped; nothing was written")


class _Provenance:
    """Hashes the source beside the work, in a thread of its own (hashing leaves Python's lock)."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._quit = threading.Event()
        self._value: dict[str, Any] | BaseException = {}
        self._thread = threading.Thread(target=self._run, name="sha256")

    def result(self, check: Callable[[], None]) -> dict[str, Any]:
        """Wait for the value; `check` is called now and then and may raise."""

        def stop() -> bool:
            check()
            return False

        if self._thread.ident is None:
            return self._source.provenance(stop)
        while self._thread.is_alive():
            self._thread.join(0.1)
            check()
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._source.provenance(self._quit.is_set)
        except BaseException as error:
            self._value = error

    def __enter__(self) -> _Provenance:
        with contextlib.suppress(RuntimeError):  # no thread to be had: `result` does the work itself
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quit.set()
        if self._thread.ident is not None:
            self._thread.join()


def source_files(source: Path) -> dict[str, Path]:
    """What must not be written over: {what it is called: path}. A folder's files are all meant, those of an index too."""
    folder = source if source.is_dir() else source.parent if source.name.endswith(".index.json") else None
    inside = {} if folder is None else {f"the source's {item.name}": item for item in folder.iterdir()}
    return {SOURCE_ITSELF: source, **inside}


def check_options(source: Source, *, tokenizer_json: bytes | None, group_norm_eps: float | None) -> None:
    """Raise InvalidRequest where `quantize` would for these options of its."""
    _epsilon(source, group_norm_eps)
    _tokenizer(source, tokenizer_json)


def _epsilon(source: Source, wanted: float | None) -> float | None:
    """The group norm's epsilon for the metadata."""
    if wanted is None:
        return source.group_norm_eps
    if source.group_norm_eps is None:
        raise InvalidRequest(f"{source.path} is an RWKV-4 model: it has no group norm")
    if not 0 < wanted < 1:
        raise InvalidRequest(f"a group norm epsilon of {wanted} makes no sense")
    return float(wanted)


def _tokenizer(source: Source, given: bytes | None) -> tuple[str, bytes | None]:
    """The metadata's tokenizer and the bytes to embed, if any."""
    if given is not None:
        try:
            valid = isinstance(json.loads(given), dict)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise InvalidRequest("the tokenizer file is not a tokenizer.json")
        return "json", given
    if source.tokenizer is not None:
        return source.tokenizer, source.tokenizer_bytes()
    return implied_tokenizer(source.arch.vocab_size), None


def implied_tokenizer(vocab_size: int) -> str:
    """The vocabulary of a checkpoint, by its size: "bytes", "world", or "none" when that is not certain."""
    if vocab_size == 256:
        return "bytes"
    return "world" if 65529 <= vocab_size <= 65536 else "none"
