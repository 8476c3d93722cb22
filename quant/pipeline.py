"""Quantization of a whole model: one tensor at a time, from a source to a model file.

Memory: at most one tensor in float32 and its codes. Tensors that need no look at the whole (all but 4-bit
ones, whose codebook is learned, and those in layout `kn`) are worked on in blocks of rows.
"""

from __future__ import annotations

import contextlib
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
from quant.arrays import F32, Array
from quant.atomic import new_file
from quant.calibration import Calibration
from quant.checkpoints import Checkpoint
from quant.codecs import decode, floats
from quant.container.header import TOKENIZER_TENSOR, dumps
from quant.container.reader import ModelFile
from quant.container.writer import ContainerWriter
from quant.errors import Cancelled, FormatError
from quant.formats import ENCODINGS, KN, parts_of, stored_name
from quant.frame import framed, is_lossy
from quant.methods import STATISTICS, Encoder, gptq, nf4
from quant.methods.gptq import Hessians
from quant.metrics import ClassReport, Loss, Losses, TensorReport, by_class, measure, to_json
from quant.recipe import Plan, Planned, make_plan
from quant.resume import Journal, digest_of
from quant.sizes import round_up
from quant.sources import Source, source_of

BLOCK = 1 << 23
"""Weights of a tensor that are read and encoded together, where rows allow it (32 MB in float32)."""
SHA256_DIGITS = 64
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
    notes: Mapping[str, Any]
    """What was told for the report beside it."""
    quality: Mapping[str, Any] | None = None
    """What `evaluate` returned."""


def quantize(
    source: Checkpoint | ModelFile,
    out_path: str | os.PathLike[str],
    kind: str,
    *,
    encoder: Encoder,
    plan: Plan | None = None,
    recipe: str | None = None,
    calibration: Calibration | None = None,
    hessians: Hessians | None = None,
    notes: Mapping[str, Any] | None = None,
    tokenizer_json: bytes | None = None,
    template: str | None = None,
    group_norm_eps: float | None = None,
    ffn_value: str = "auto",
    force: bool = False,
    origin: Mapping[str, str] | None = None,
    resume: bool = False,
    evaluate: Callable[[Path], Mapping[str, Any]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Write `source` as a model file of `kind` ("int8", "int6", "int4", "nf4", "bf16", "f16", "f32"; see `quant.recipe`).

    `plan`: None for the default recipe's, with `ffn_value` ("auto", "tile" or "kn"); `recipe`: what to call it.
    `calibration`: data that codes of 4, 5 and 6 bits are chosen by; with `hessians` (a view of the same text) by GPTQ. `notes`: more
    for the report, by name.
    `tokenizer_json`: contents of a tokenizer.json to embed; without it, the vocabulary's size decides.
    `template`: id of the chat template; None for the source's, or none.
    `group_norm_eps`: None for the source's, or the usual 64e-5. `force`: replace an existing file; where `out_path` is a
    link, what it leads to. `resume`: keep what was done when the work is interrupted, and go on from what was kept of the
    same work; the source counts as the same if its size and time are. `origin`: what is known of where the source came
    from, for the metadata's `source`; if there is a `sha256` in it, the source must have it. `evaluate` is given the path of
    the file before it takes its place; what it returns (ready for JSON, at most QUALITY_BYTES) is the report's
    `quality`, and what it raises ends the work. `should_stop` is asked between blocks.

    Raises InvalidRequest (a quantized source, OUT is SRC, OUT exists or is no regular file, bad options),
    FormatError (NaN or infinite weights, values past the encoding's range, a source that its own checksums call
    damaged), NoSpace, Cancelled. In all cases an existing `out_path` is left as it was.
    """
    weights = source_of(source)
    out = Path(out_path)
    final = new_file(out, force=force, kept=source_files(weights.path))
    plan = make_plan(weights.arch, kind, ffn_value=ffn_value) if plan is None else plan
    if any(item.encoding == "nf4" for item in plan.values()):
        nf4.require()
    frame = framed(
        weights,
        plan,
        recipe or (f"{kind}, ffn.value {ffn_value}" if ffn_value != "auto" and is_lossy(plan) else kind),
        method="gptq" if hessians is not None else encoder.method,
        calibration=calibration,
        notes=notes or {},
        tokenizer_json=tokenizer_json,
        template=template,
        group_norm_eps=group_norm_eps,
        origin=origin,
        evaluated=evaluate is not None,
    )
    metadata = dict(frame.metadata)
    progress = _Watch(plan, on_progress, should_stop, resume)
    writing = ContainerWriter(final, frame.entries, metadata, frame.reserve, told=out, keep=resume)
    with contextlib.ExitStack() as stack:
        provenance = stack.enter_context(_Provenance(weights))
        writer = stack.enter_context(writing)
        journal = (
            stack.enter_context(Journal(final, _identity(weights, metadata, frame.reserve)))
            if resume
            else None
        )
        work = _Work(weights, encoder, calibration, hessians, writer, journal, progress)
        reports = [work.tensor(name, item) for name, item in plan.items()]
        if frame.tokenizer_bytes is not None:
            writer.write(TOKENIZER_TENSOR, np.frombuffer(frame.tokenizer_bytes, np.uint8))
        report = {**to_json(reports), **(notes or {})}
        told = _with_origin(weights, provenance.result(progress.check), origin or {})
        metadata |= {"report": dumps(report), "source": dumps(told)}
        quality = None
        if evaluate is not None:
            quality = evaluate(writer.preview(metadata))
            metadata["report"] = dumps({**report, "quality": quality})
        progress.check()
        writer.finish(metadata)
    Journal.remove(final)  # which is closed now
    return Result(
        out,
        weights.arch,
        kind,
        weights.file_size,
        writer.size,
        tuple(by_class(reports)),
        tuple(reports),
        dict(notes or {}),
        quality,
    )


def _with_origin(source: Source, found: dict[str, Any], origin: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of its source. Raises FormatError for a source that is not what it is said to be."""
    wanted = origin.get("sha256")
    if wanted is not None and found.get("sha256") != wanted:
        raise FormatError(
            f"{source.path} has another checksum than it should: it is damaged",
            hint="remove it, and download it again",
        )
    return {**found, **origin}


@dataclass
class _Work:
    """All that encoding one tensor after the other takes."""

    source: Source
    encoder: Encoder
    calibration: Calibration | None
    hessians: Hessians | None
    writer: ContainerWriter
    journal: Journal | None
    progress: _Watch

    def tensor(self, name: str, item: Planned) -> TensorReport:
        """Encode and write one logical tensor, unless an earlier run did."""
        lost = self._done_before(name, item)
        if lost is None:
            lost = self._encode(name, item)
            if self.journal is not None:
                self.journal.add(name, digest_of(self._stored(name, item)), lost)
        return TensorReport(name, item.encoding, item.layout, math.prod(item.shape), item.nbytes, *lost)

    def _encode(self, name: str, item: Planned) -> Losses:
        offsets = dict.fromkeys((spec.part for spec in parts_of(*item)), 0)
        loss, recoding = Loss(), None  # NF4 is encoded in one piece
        for begin, end in _blocks(item, whole=self.hessians is not None):
            self.progress.at(name)
            values = self.source.rows(name, begin, end)
            parts, lost, recoding = self._parts(name, values, item)
            if not all(map(math.isfinite, (lost.error, lost.power, lost.largest))):
                raise FormatError(
                    f"{self.source.path}: tensor {name} has values past the range of {item.encoding}",
                    hint=f"use --to {'bf16 or --to f32' if item.encoding == 'f16' else 'f32'}",
                )
            for part, array in parts.items():
                self.writer.write(stored_name(name, part), array, offsets[part])
                offsets[part] += array.nbytes
            loss += lost
            self.progress.add(values.size)
        return Losses(loss, recoding)

    def _parts(self, name: str, values: F32, item: Planned) -> tuple[Mapping[str, Array], Loss, Loss | None]:
        """What is stored, what it lost, and how much of that recoding cost."""
        if not ENCODINGS[item.encoding].quantized:
            return *_plain(values, item), None
        shape = (values.shape[0], values.shape[1])
        if item.encoding == "nf4":
            made, losses = nf4.encode(values, item.layout)
            if self.hessians is not None:
                self.hessians.replace(name, decode(made, item.encoding, item.layout, shape))
            return made, *losses
        hessian = None
        if self.hessians is not None and ENCODINGS[item.encoding].weighted:
            hessian = self.hessians.of(name)
        if hessian is not None:
            parts = gptq.encode(values, hessian, item.encoding, item.layout)
        else:
            importance = self.calibration.importance(name) if self.calibration is not None else None
            parts = self.encoder.encode(values, item.encoding, item.layout, importance)
        statistics = [parts.pop(key, None) for key in STATISTICS]
        if self.hessians is not None:
            self.hessians.replace(name, decode(parts, item.encoding, item.layout, shape))
        if any(value is None for value in statistics):
            return parts, measure(values, decode(parts, item.encoding, item.layout, shape)), None
        error, power, largest = (np.asarray(value, np.float64) for value in statistics)
        return parts, Loss(math.fsum(error), math.fsum(power), float(largest.max())), None

    def _done_before(self, name: str, item: Planned) -> Losses | None:
        done = self.journal.finished(name) if self.journal is not None else None
        if done is None:
            return None
        self.progress.at(name)
        stored = self._stored(name, item)
        if digest_of(stored) != done[0]:
            return None
        for spec in parts_of(*item):
            self.writer.leave(stored_name(name, spec.part))
        if self.hessians is not None and ENCODINGS[item.encoding].quantized:
            arrays = {
                spec.part: np.frombuffer(data, _DTYPES[spec.dtype]).reshape(spec.shape)
                for spec, data in zip(parts_of(*item), stored, strict=True)
            }
            self.hessians.replace(name, decode(arrays, item.encoding, item.layout, item.shape))
        self.progress.add(math.prod(item.shape))
        return done[1]

    def _stored(self, name: str, item: Planned) -> list[bytes]:
        return [self.writer.read(stored_name(name, spec.part)) for spec in parts_of(*item)]


_DTYPES = {"U8": np.uint8, "I8": np.int8, "F32": np.float32}


def _identity(source: Source, metadata: Mapping[str, str], reserve: int) -> dict[str, Any]:
    """All that the bytes of the new file depend on."""
    found = [(str(path.resolve()), path.stat()) for path in source.files]
    return {
        **metadata,
        "reserve": reserve,
        "source": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in found],
    }


def _blocks(item: Planned, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Ranges of rows that can be encoded by themselves: whole tiles, or everything."""
    rows = item.shape[0]
    whole = whole or ENCODINGS[item.encoding].has_codebook or item.layout == KN
    step = rows if whole else round_up(max(1, BLOCK // math.prod(item.shape[1:])), 16)
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def _plain(values: F32, item: Planned) -> tuple[Mapping[str, Array], Loss]:
    stored = floats.encode(values, item.encoding)
    return {"": stored}, measure(values, floats.decode(stored, item.encoding))


class _Watch:
    """Progress out, wish to stop in."""

    def __init__(
        self,
        plan: Plan,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
        resume: bool,
    ) -> None:
        self._report, self._stop, self._resume = on_progress, should_stop, resume
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
            kept = "the same command goes on from here" if self._resume else "nothing was written"
            raise Cancelled(f"quantization was stopped; {kept}")


def source_files(source: Path) -> dict[str, Path]:
    """What must not be written over: {what it is called: path}. A folder's files are all meant, those of an index too."""
    folder = source if source.is_dir() else source.parent if source.name.endswith(".index.json") else None
    inside = {} if folder is None else {f"the source's {item.name}": item for item in folder.iterdir()}
    return {SOURCE_ITSELF: source, **inside}


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
