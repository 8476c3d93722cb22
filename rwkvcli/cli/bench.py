"""`rwkv bench`."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvcli.cli.console import Console, harmless
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

if TYPE_CHECKING:
    from rwkvcli.services.benchmarking import Measurement

EXAMPLES = """
  rwkv bench demo
  rwkv bench model-int8.safetensors model-int4.safetensors --thread-list 1,2,4
  rwkv bench model-int4.safetensors -p 0 -n 256 -r 3 -t 1
  rwkv bench model-int4.safetensors -o csv > speed.csv
"""


class Output(StrEnum):
    """What `--output` takes."""

    md = "md"
    json = "json"
    csv = "csv"


@with_settings
def bench(
    settings: Settings,
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Model files; several take turns.", show_default=False),
    ] = None,
    prompts: Annotated[
        str, typer.Option("-p", "--n-prompt", metavar="LIST", help="Lengths of prompts: 128,512. 0: none.")
    ] = "512",
    generations: Annotated[
        str, typer.Option("-n", "--n-gen", metavar="LIST", help="Numbers of tokens to decode. 0: none.")
    ] = "128",
    thread_list: Annotated[
        str | None,
        typer.Option("--thread-list", metavar="LIST", help="Numbers of threads: 1,2,4. Default: -t."),
    ] = None,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", metavar="N", min=1, help="How often each test is timed.")
    ] = 5,
    no_warmup: Annotated[bool, typer.Option("--no-warmup", help="Time the first run too.")] = False,
    output: Annotated[
        Output | None,
        typer.Option(
            "-o", "--output", metavar="FORMAT", help="md, json or csv; default: md.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure how fast models run on this machine.

    `pp512` is a prompt of 512 tokens evaluated at once, `tg128` are 128 tokens decoded one by one. Decoding
    is bound by memory: MB/token is what a token reads and writes, GB/s how fast it does, and read is how fast
    the same number of threads reads memory in sequence, measured between the runs; on a GPU, how fast copies on
    it read and write. Columns have llama-bench's names where it has them.
    """
    from rwkvcli.cli.download import default_model, model_to_run
    from rwkvcli.cli.render import BenchBar
    from rwkvcli.services import benchmarking
    from rwkvcli.services.loading import check_device

    counts = [settings.threads] if thread_list is None else _numbers(thread_list, "--thread-list", 1, 1024)
    plan = benchmarking.Plan(
        prompts=tuple(_numbers(prompts, "-p", 0)),
        generations=tuple(_numbers(generations, "-n", 0)),
        threads=tuple(counts),
        repetitions=repetitions,
        warmup=not no_warmup,
    )
    check_device(settings.device)
    console = Console(settings)
    names = models or [settings.model or default_model(console)]
    found = [model_to_run(console, name) for name in names]
    kind = output or (Output.json if settings.json else Output.md)
    write = _WRITERS[kind](console.line)
    with BenchBar(console) as bar:
        results = benchmarking.run(
            found, plan, device=settings.device, gpu_layers=settings.gpu_layers, on_progress=bar.update
        )
        for result in results:
            bar.hide()
            write.row(result)
        bar.hide()
    write.end()


def _numbers(text: str, option: str, lowest: int, highest: int = 1 << 20) -> list[int]:
    """The whole numbers of the comma-separated list `text`."""
    numbers = []
    for word in text.split(","):
        try:
            number = int(word)
        except ValueError:
            raise Misuse(f"{option}: `{word}` is not a whole number") from None
        if not lowest <= number <= highest:
            raise Misuse(f"{option}: {number} is not between {lowest} and {highest}")
        numbers.append(number)
    return numbers


class _Writer(ABC):
    """Results as text, line by line."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._rows: list[Measurement] = []

    def row(self, result: Measurement) -> None:
        """Take the next result."""
        self._rows.append(result)
        self._write(result, first=len(self._rows) == 1)

    @abstractmethod
    def _write(self, result: Measurement, first: bool) -> None:
        """Write what can be written now."""

    def end(self) -> None:  # noqa: B027  (most have nothing left)
        """Write the rest."""


class _Table(_Writer):
    """A Markdown table, row by row as the results come."""

    def _write(self, result: Measurement, first: bool) -> None:
        cells = _cells(result)
        if first:
            self._line(_md(list(cells)))
            self._line(_md(["---"] * 4 + ["---:"] * (len(cells) - 4)))
        self._line(_md(list(cells.values())))


class _Csv(_Writer):
    """llama-bench's columns and ours; repetitions are in JSON only."""

    def _write(self, result: Measurement, first: bool) -> None:
        values = {name: value for name, value in result.to_json().items() if not name.startswith("samples_")}
        if first:
            self._line(_csv(list(values)))
        self._line(_csv(["" if value is None else str(value) for value in values.values()]))


class _Json(_Writer):
    """A list of objects, at the end."""

    def _write(self, result: Measurement, first: bool) -> None:
        pass

    def end(self) -> None:
        """Write them all."""
        self._line(json.dumps([result.to_json() for result in self._rows], indent=1))


_WRITERS: dict[Output, type[_Writer]] = {Output.md: _Table, Output.csv: _Csv, Output.json: _Json}


def _cells(result: Measurement) -> dict[str, str]:
    """What a person reads of a result, by column."""
    from rwkvcli.cli.render import size

    facts = result.to_json()
    subject = result.subject
    quartiles = result.token_quartiles_ns
    spread = "-"
    if quartiles is not None:
        low, median, high = (ns / 1e6 for ns in quartiles)
        spread = f"{median:.2f} ({low:.2f} to {high:.2f})"
    return {
        "model": subject.model_type,
        "size": size(subject.model_size),
        "params": f"{subject.model_n_params / 1e6:.1f} M",
        "backend": subject.backend,
        "threads": str(result.n_threads),
        "test": result.name,
        "t/s": f"{facts['avg_ts']:.2f} ± {facts['stddev_ts']:.2f}",
        "ms/token (quartiles)": spread,
        "MB/token": _figure(result.bytes_per_token, 1e-6, 1),
        "ffn density": _figure(result.ffn_density, 1, 2),
        "GB/s": _figure(result.bandwidth, 1e-9, 1),
        "read GB/s": _figure(result.read_bandwidth, 1e-9, 1),
        "share": "-" if result.share is None else f"{100 * result.share:.0f} %",
    }


def _figure(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _md(cells: Sequence[str]) -> str:
    """A row of a table; what comes out of files is made harmless."""
    return "| " + " | ".join(harmless(cell).replace("|", "\\|") for cell in cells) + " |"


def _csv(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([harmless(cell) for cell in cells])
    return text.getvalue()
