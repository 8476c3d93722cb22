"""Measure how fast models run here: what `rwkv bench` does, without the printing.

A test evaluates a prompt at once (`n_prompt` tokens) or one token after the other (`n_gen`), always from an
empty state and with random token ids, the same ones in every repetition. Repetitions of several models take
turns, so that a change in the machine's load meets all of them. Sampling is not part of a test.

Decoding is bound by memory, so its bytes are counted and compared with what this machine reads. Counted are the
weights that a token really reads (the rows of `ffn.value` whose activation is zero are skipped in layout kn;
the others are counted in a run of the same tokens that is not timed) and the state, read and written once.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quant.container.reader import ModelFile
    from rwkvcli.runtime.model import Model
    from rwkvcli.services.store import LocalModel

BANDWIDTH_ROUNDS = 3
"""Reads of the buffer before each repetition of a decoding test."""

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, what comes next)."""


@dataclass(frozen=True)
class Plan:
    """What to measure. The defaults are llama-bench's."""

    prompts: tuple[int, ...] = (512,)
    """Lengths of prompts."""
    generations: tuple[int, ...] = (128,)
    """Numbers of tokens to decode."""
    threads: tuple[int | None, ...] = (None,)
    """None: one thread per core."""
    repetitions: int = 5
    warmup: bool = True
    """Whether each test runs once before it is timed."""


@dataclass(frozen=True)
class Subject:
    """What is known of a model before it runs."""

    model_filename: str
    model_type: str
    model_size: int
    """Bytes of the file."""
    model_n_params: int
    backend: str


@dataclass
class Measurement:
    """One model in one test. Times in nanoseconds, sizes in bytes, rates in bytes per second."""

    subject: Subject
    n_threads: int
    n_prompt: int
    n_gen: int
    test_time: str = ""
    samples_ns: list[int] = field(default_factory=list)
    """Of each repetition."""
    tokens_ns: list[int] = field(default_factory=list)
    """Of each decoded token of all repetitions."""
    bytes_per_token: int | None = None
    """None for prompts, and where it is not counted: on PyTorch's devices, and with layers on two devices."""
    ffn_density: float | None = None
    """Share of the channels of ffn.value that were read; None where none are skipped."""
    read_bandwidth: float | None = None
    """Sequential reads by the same number of threads, on a GPU what copies on it read and write: the median of all rounds of
    the test.
    """

    @property
    def name(self) -> str:
        """llama-bench's name of the test: `pp512`, `tg128`."""
        return f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [1e9 * (self.n_prompt + self.n_gen) / ns for ns in self.samples_ns]

    @property
    def token_quartiles_ns(self) -> tuple[float, float, float] | None:
        """A decoded token's time: lower quartile, median, upper quartile."""
        if not self.tokens_ns:
            return None
        if len(self.tokens_ns) == 1:
            return (float(self.tokens_ns[0]),) * 3
        low, median, high = statistics.quantiles(self.tokens_ns, n=4, method="inclusive")
        return low, median, high

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second that a token of median time moves."""
        quartiles = self.token_quartiles_ns
        if quartiles is None or self.bytes_per_token is None:
            return None
        return 1e9 * self.bytes_per_token / quartiles[1]

    @property
    def share(self) -> float | None:
        """`bandwidth` as a share of `read_bandwidth`."""
        if self.bandwidth is None or self.read_bandwidth is None:
            return None
        return self.bandwidth / self.read_bandwidth

    def to_json(self) -> dict[str, Any]:
        """The measurement under llama-bench's names where it has one."""
        quartiles = self.token_quartiles_ns or (None, None, None)
        rates = self.samples_ts
        return {
            "cpu_info": _processor(),
            "backends": self.subject.backend,
            "model_filename": self.subject.model_filename,
            "model_type": self.subject.model_type,
            "model_size": self.subject.model_size,
            "model_n_params": self.subject.model_n_params,
            "n_threads": self.n_threads,
            "n_prompt": self.n_prompt,
            "n_gen": self.n_gen,
            "test_time": self.test_time,
            "avg_ns": round(statistics.fmean(self.samples_ns)),
            "stddev_ns": round(_deviation(self.samples_ns)),
            "avg_ts": round(statistics.fmean(rates), 3),
            "stddev_ts": round(_deviation(rates), 3),
            "median_ts": round(statistics.median(rates), 3),
            "token_low_ns": _rounded(quartiles[0], 0),
            "token_median_ns": _rounded(quartiles[1], 0),
            "token_high_ns": _rounded(quartiles[2], 0),
            "bytes_per_token": self.bytes_per_token,
            "ffn_density": _rounded(self.ffn_density, 4),
            "gb_s": _rounded(self.bandwidth, 3, 1e-9),
            "read_gb_s": _rounded(self.read_bandwidth, 3, 1e-9),
            "share": _rounded(self.share, 4),
            "samples_ns": self.samples_ns,
            "samples_ts": [round(rate, 3) for rate in rates],
        }


def run(
    models: Sequence[LocalModel],
    plan: Plan,
    *,
    device: str | None = None,
    gpu_layers: int | None = None,
    on_progress: Progress | None = None,
) -> Iterator[Measurement]:
    """Measure every model in every test, and yield each result when its test is over.

    Raises UsageError for a plan without tests, and what loading a model raises, before anything is timed
    with that number of threads.
    """
    from rwkvcli.errors import UsageError
    from rwkvcli.services.loading import load_model

    tests = [(n, 0) for n in plan.prompts if n] + [(0, n) for n in plan.generations if n]
    if not tests:
        raise UsageError("nothing to measure: both lengths are 0")
    rounds = plan.repetitions + plan.warmup
    steps = _Steps(len(models) * len(plan.threads) * len(tests) * rounds, on_progress)
    for threads in plan.threads:
        loaded = [load_model(found, device, threads, gpu_layers) for found in models]
        subjects = [_subject(model, found) for model, found in zip(loaded, models, strict=True)]
        for n_prompt, n_gen in tests:
            runs = [
                _Run(model, Measurement(subject, _threads(model, threads), n_prompt, n_gen))
                for model, subject in zip(loaded, subjects, strict=True)
            ]
            rates: dict[str, list[float]] = {}
            for repetition in range(rounds):
                timed = repetition >= plan.warmup
                for memory, each in {each.memory: each for each in runs}.items():
                    if timed and n_gen and memory:
                        rates[memory] = rates.get(memory, []) + each.read_bandwidth()
                for each in runs:
                    steps.next(f"{each.result.subject.model_type} {each.result.name}")
                    each.once(timed)
            for each in runs:
                yield each.finished(statistics.median(rates[each.memory]) if each.memory in rates else None)
    steps.end()


def read_bandwidth(threads: int) -> list[float]:
    """Bytes per second of a few sequential reads, by `threads` threads, of memory that no cache holds, or of half of what is
    free."""
    from rwkvcli import _kernels
    from rwkvcli.runtime.device import cpu_level
    from rwkvcli.runtime.machine import last_level_cache, memory

    size = min(max(4 * last_level_cache(), 256 << 20), 1 << 30)
    free = memory().available
    if free is not None:  # a control group's limit ends the program without a word
        size = max(min(size, free // 2), 1 << 20)
    return _kernels.read_bandwidth(threads, size, BANDWIDTH_ROUNDS, cpu_level())


def bytes_per_token(file: ModelFile, state_bytes: int, ffn_density: float | None) -> int:
    """Bytes that one decoded token moves: weights read (one row of the embedding), the state read and written.

    `ffn_density`: the share of channels read of matrices in layout kn; None if there are none.
    """
    total = 2.0 * state_bytes
    for name, plan in file.plan.items():
        nbytes = sum(part.nbytes for part in plan.parts)
        if name == "emb.weight":
            total += nbytes / plan.shape[0]
        elif plan.layout == "kn" and ffn_density is not None:
            total += nbytes * ffn_density
        else:
            total += nbytes
    return round(total)


class _Run:
    """One model in one test: its tokens, and what was measured so far."""

    def __init__(self, model: Model, result: Measurement) -> None:
        import numpy as np

        self.model, self.result = model, result
        generator = np.random.default_rng(0)
        count = result.n_prompt or result.n_gen
        self.tokens: NDArray[np.int64] = generator.integers(0, model.config.vocab_size, count)
        self.result.test_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def memory(self) -> str | None:
        """Whose memory the weights come from, `cpu` or `cuda:0`; None where the bytes that a token moves are not counted."""
        from rwkvcli.runtime.cuda import CudaModel
        from rwkvcli.runtime.native import NativeModel

        backend = self.model.backend
        if isinstance(backend, CudaModel):
            return None if backend.is_split else f"cuda:{backend.device.number}"
        return "cpu" if isinstance(backend, NativeModel) else None

    def read_bandwidth(self) -> list[float]:
        """Bytes per second that its memory can be read at, measured once or more."""
        from rwkvcli.runtime.cuda import CudaModel

        backend = self.model.backend
        return (
            [backend.copy_rate()] if isinstance(backend, CudaModel) else read_bandwidth(self.result.n_threads)
        )

    def once(self, timed: bool) -> None:
        """Evaluate the tokens; keep the times if `timed`."""
        state = self.model.new_state()
        if self.result.n_prompt:
            times = [self._time(self.tokens, state)]
        else:
            times = [self._time([int(token)], state) for token in self.tokens]
            if timed:
                self.result.tokens_ns += times
        if timed:
            self.result.samples_ns.append(sum(times))

    def finished(self, read_bandwidth: float | None) -> Measurement:
        """The result, with its bytes."""
        if self.result.n_gen and self.memory:
            arrays = self.model.new_state().to_numpy()
            state_bytes = sum(array.nbytes for array in arrays.values())
            self.result.ffn_density = self._density()
            self.result.bytes_per_token = bytes_per_token(
                self.model.file, state_bytes, self.result.ffn_density
            )
            self.result.read_bandwidth = read_bandwidth
        return self.result

    def _time(self, tokens: Any, state: Any) -> int:
        begin = time.perf_counter_ns()
        self.model.forward(tokens, state)
        return time.perf_counter_ns() - begin

    def _density(self) -> float | None:
        """Share of ffn.value's channels that these tokens read, counted by the CPU engine in a run of its own: the results are
        always the same, bit for bit, on a GPU and all at once too.
        """
        from rwkvcli.runtime.device import cpu_level
        from rwkvcli.runtime.native import NativeModel

        layers = sum(plan.layout == "kn" for plan in self.model.file.plan.values())
        if not layers:
            return None
        backend: Any = self.model.backend
        if not isinstance(backend, NativeModel):
            backend = NativeModel(self.model.file, self.result.n_threads, cpu_level())
        backend.count_active_channels(True)
        try:
            backend.forward(self.tokens.astype("int32"), backend.new_state())
        finally:
            backend.count_active_channels(False)
        active: int = sum(backend.active_channels)
        return active / (layers * self.model.config.n_ffn * len(self.tokens))


class _Steps:
    """Counts runs for the progress."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done, self._total, self._tell = 0, total, on_progress

    def next(self, title: str) -> None:
        if self._tell is not None:
            self._tell(self._done, self._total, title)
        self._done += 1

    def end(self) -> None:
        if self._tell is not None:
            self._tell(self._total, self._total, "done")


def _subject(model: Model, found: LocalModel) -> Subject:
    file = model.file
    weights = sum(math.prod(plan.shape) for plan in file.plan.values())
    kind = f"RWKV-{file.arch.version} {_billions(weights)} {file.recipe}"
    return Subject(found.name, kind, file.size, weights, _backend(model))


def _backend(model: Model) -> str:
    """The device without its number of threads, which stands in a column of its own."""
    level = getattr(model.backend, "level", None)
    return model.backend.description if level is None else f"cpu, {level}"


def _billions(weights: int) -> str:
    return f"{weights / 1e9:.2g}B" if weights >= 5e7 else f"{weights / 1e6:.1f}M"


def _threads(model: Model, asked: int | None) -> int:
    from rwkvcli.runtime.machine import default_threads

    return getattr(model.backend, "threads", None) or asked or default_threads()


def _processor() -> str:
    from rwkvcli.runtime.machine import processor_name

    return processor_name()


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _rounded(value: float | None, digits: int, factor: float = 1.0) -> float | None:
    return None if value is None else round(value * factor, digits or None)
