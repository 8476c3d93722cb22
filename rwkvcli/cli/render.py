"""Tables, sizes and progress bars."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from rwkvcli.cli.console import Console, harmless
from rwkvcli.cli.signals import uncut

if TYPE_CHECKING:
    from quant.metrics import ClassReport
    from quant.pipeline import Progress


_CLASS_ORDER = {
    name: i for i, name in enumerate(("emb", "att", "ffn", "low-rank", "head", "vectors", "total"))
}
_LARGEST = 1e300
"""Numbers out of a file are computed with below this; JSON has larger ones, and whole ones that no float holds."""


def size(nbytes: int) -> str:
    """A size for people: `983 MB`, `1.21 GB`; decimal units, three digits."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


class Passing(ABC):
    """What is drawn on stderr while work goes on, and is gone after the block that it is the context manager of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hide()

    @abstractmethod
    def hide(self) -> None:
        """Make room for a line."""


class _Bar(Passing):
    """A progress bar on stderr, which appears with the first report and only on a terminal."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._progress: Any = None
        self._task: Any = None

    def hide(self) -> None:
        """Make room for a line; the next update brings the bar back."""
        if self._progress is not None:
            with uncut():
                self._progress.stop()
                self._progress = None

    def _show(self, done: int, total: int, title: str | None = None) -> None:
        if not self._console.shows_progress:
            return
        with uncut():
            if self._progress is None:
                self._start(total, done)
            self._progress.update(
                self._task, completed=done, total=total or None, description=title or self._title
            )

    def _start(self, total: int, done: int) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import Progress as RichProgress

        class SteadyConsole(RichConsole):
            def show_cursor(self, show: bool = True) -> bool:
                return False  # it is never hidden: what ends the program at once would leave it so

        color = self._console.colors_errors
        stream = SteadyConsole(stderr=True, no_color=not color, highlight=False)
        self._progress = RichProgress(*self._columns(), console=stream, transient=True)
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=total or None, completed=done)

    @abstractmethod
    def _columns(self) -> Iterable[Any]:
        """Rich's columns, left to right."""


class DownloadBar(_Bar):
    """Bytes of a download."""

    def update(self, done: int, total: int, title: str | None = None) -> None:
        """Show that `done` of `total` bytes are here, or what `title` says was done with them."""
        self._show(done, total, title)

    def _columns(self) -> Iterable[Any]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        yield TextColumn("{task.description}", markup=False)
        yield BarColumn(bar_width=24)
        yield from (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


class _WorkBar(_Bar):
    """A bar, and behind it what is being worked on."""

    def _columns(self) -> Iterable[Any]:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

        yield from (BarColumn(bar_width=32), TaskProgressColumn(), TimeRemainingColumn())
        yield TextColumn("{task.description}", markup=False)


class QuantizationBar(_WorkBar):
    """Weights of a model that have been encoded or written."""

    def __init__(self, console: Console, title: str = "quantizing") -> None:
        super().__init__(console, title)

    def update(self, progress: Progress) -> None:
        """Show how far it is."""
        self._show(progress.done, progress.total, progress.tensor)

    def measure(self, done: int, total: int, so_far: float) -> None:
        """Show how much of the text is evaluated."""
        self._show(done, total, f"measuring: perplexity {so_far:.4g}")


class ReadingBar(_Bar):
    """Bytes of a text that a model reads."""

    def update(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._show(done, total)

    def _columns(self) -> Iterable[Any]:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

        yield TextColumn("{task.description}", markup=False)
        yield from (BarColumn(bar_width=32), DownloadColumn(), TimeRemainingColumn())


class BenchBar(_WorkBar):
    """Runs of a measurement."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "measuring")

    def update(self, done: int, total: int, title: str) -> None:
        """Show how far it is and what runs now."""
        self._show(done, total, title)


class EvaluationBar(_WorkBar):
    """A text or a list of tasks that is being evaluated."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "evaluating")

    def update(self, done: int, total: int, title: str) -> None:
        """Show how far it is and the result so far."""
        self._show(done, total, title)


class _LateBar(_Bar):
    """Of what is mostly short: not shown for what takes less than a second."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__(console, title)
        self._begin = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if done == total:
            self.hide()
        elif time.monotonic() - self._begin > 1 or self._progress is not None:
            self._show(done, total)


class TextBar(_LateBar, ReadingBar):
    """Bytes of a text that is mostly short."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "reading")


class ScoringBar(_LateBar, _WorkBar):
    """Tokens of texts that are being scored."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "scoring")


def loss_table(console: Console, classes: Iterable[ClassReport]) -> str:
    """What each class of tensors weighs and lost."""
    rows = [("class", "format", "weights", "bits", "size", "error")]
    for row in classes:
        error = f"{100 * row.loss.relative:.3g} %" if row.loss.error else "-"
        rows.append(
            (
                row.name,
                "+".join(row.encodings),
                f"{row.weights:,}",
                f"{row.bits:.2f}",
                size(row.nbytes),
                error,
            )
        )
    lines = list(table(rows, right=(2, 3, 4, 5)))
    if console.colors_errors:
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    return "\n".join((*lines, "error: relative squared error of the weights"))


def nf4_lines(report: dict[str, Any]) -> Iterator[str]:
    """What a report tells of NF4: what recoding cost, and where it was not possible."""
    recoding, instead = report.get("nf4"), report.get("nf4_instead")
    if isinstance(recoding, dict):
        error = recoding.get("error")
        told = f"{100 * error:.3g} %" if is_number(error) else str(error)
        yield f"nf4: scales and table are rounded: error {told} against bitsandbytes' own values"
    if isinstance(instead, dict) and isinstance(instead.get("rows"), dict):
        rows = ", ".join(f"{name} ({length})" for name, length in instead["rows"].items())
        yield f"{instead.get('encoding')} instead of nf4: {rows}: {instead.get('why')}"


def table(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> Iterator[str]:
    """Rows of equally wide columns; those in `right` stand at the right. Text out of files is made
    harmless."""
    rows = [tuple(map(harmless, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def inspection_lines(found: dict[str, Any]) -> Iterator[str]:
    """`rwkv show` for people: what `services.inspection.inspect` found."""
    sizes = found["dimensions"]
    yield from table(list(_facts(found, sizes)))
    classes = found.get("report", {}).get("classes")
    if isinstance(classes, dict) and classes:
        yield ""
        yield from table(list(_classes(classes)), right=(2, 3, 4, 5))
    lines = list(nf4_lines(found.get("report", {})))
    if lines:
        yield ""
        yield from map(harmless, lines)
    quality = found.get("report", {}).get("quality")
    if isinstance(quality, dict):
        from rwkvcli.cli.quality import record_lines

        yield ""
        yield from record_lines(quality)
    if "tensors" in found:
        yield ""
        rows = [("tensor", "shape", "format", "layout", "size")]
        rows += [
            (t["name"], "x".join(map(str, t["shape"])), t["encoding"], t["layout"], size(t["bytes"]))
            for t in found["tensors"]
        ]
        yield from table(rows, right=(4,))


def _facts(found: dict[str, Any], sizes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", f"{found['path']} ({size(found['bytes'])}, {found['kind']})"
    yield "model", f"RWKV-{found['version']}, {found['parameters']:,} parameters"
    yield "sizes", ", ".join(f"{name} {value}" for name, value in sizes.items())
    if "container" in found:
        names = "original" if found["names"] == "blinkdl" else found["names"]
        yield "layout", f"{found['container']}, {names} names"
    yield "state", size(found["state_bytes"])
    yield "bits per weight", f"{found['bits_per_weight']:.2f}"
    yield "formats", ", ".join(f"{name} {size(nbytes)}" for name, nbytes in found["formats"].items())
    for key in ("recipe", "method", "tokenizer", "family", "calibration", "group_norm_eps"):
        if found.get(key) not in (None, "none"):
            yield key.replace("_", " "), str(found[key])
    source = found.get("source")
    if isinstance(source, dict) and source:
        repo = f"{source['repo']}:" if source.get("repo") else ""
        told = [f"{repo}{source.get('file') or ''}", source.get("dtype")]
        if isinstance(source.get("sha256"), str):
            told.append(f"sha256 {source['sha256']}")
        yield "made from", ", ".join(str(value) for value in told if value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value out of a file is a number that can be shown as one, also as a percentage."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _number(value: Any, form: str) -> str:
    """A number in `form`; what should be one and is not, as it is."""
    return format(value, form) if is_number(value) else str(value)


def _classes(classes: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The report that the file carries, as a table; what is odd in it is shown as it is."""
    yield ("class", "format", "weights", "bits", "size", "error")
    for name, row in sorted(classes.items(), key=lambda item: _CLASS_ORDER.get(item[0], len(_CLASS_ORDER))):
        values = row if isinstance(row, dict) else {}
        error, encodings, nbytes = values.get("error"), values.get("encodings", []), values.get("bytes")
        yield (
            name,
            "+".join(map(str, encodings)) if isinstance(encodings, list) else str(encodings),
            _number(values.get("weights", ""), ","),
            _number(values.get("bits", ""), ".2f"),
            size(nbytes) if is_number(nbytes) and isinstance(nbytes, int) else "",
            f"{100 * error:.3g} %" if isinstance(error, float) and is_number(error) and error else "-",
        )
