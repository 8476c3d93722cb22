"""What verbs that measure a model share: opening the text, and showing what came out."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from rwkvcli.cli.console import harmless
from rwkvcli.cli.prompt import opened
from rwkvcli.cli.render import is_number, table
from rwkvcli.errors import SourceNotFound

_MOST_DIGITS = 6
"""After the decimal point."""


@contextlib.contextmanager
def opened_text(name: str, what: str = "FILE") -> Iterator[tuple[BinaryIO, int]]:
    """The text file `name` (`-`: stdin) and its size in bytes, 0 where that is not known.

    `what` the name was given as. Raises SourceNotFound.
    """
    if not name:
        raise SourceNotFound(f"{what} is empty", hint="name a text file, or - for stdin")
    if name == "-":
        if sys.stdin is None:
            raise SourceNotFound("stdin is closed")
        yield sys.stdin.buffer, _size(sys.stdin.buffer)
        return
    try:
        stream = opened(name)
    except RuntimeError:  # expanduser's
        raise SourceNotFound(f"{name}: there is no such home folder") from None
    except (OSError, ValueError) as error:  # a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceNotFound(
            f"{name}: {reason.lower()}", hint=f"{what} is a text file, or - for stdin"
        ) from None
    with stream:
        yield stream, _size(stream)


def quality_lines(found: dict[str, Any]) -> Iterator[str]:
    """`Measurement.to_json` for people. What is odd in one that comes out of a file is shown as it is."""
    how = "one text" if found.get("ctx") is None else f"windows of {_count(found['ctx'])}"
    rows = [
        ("perplexity", _with_error(found.get("perplexity"), found.get("stderr"))),
        ("bits per byte", _with_error(found.get("bits_per_byte"), found.get("bits_per_byte_stderr"))),
        ("tokens", f"{_count(found.get('tokens'))} of {_count(found.get('bytes'))} bytes, {how}"),
    ]
    compared = found.get("base")
    if not isinstance(compared, dict):
        yield from table(rows)
        return
    kl = compared["kl"] if isinstance(compared.get("kl"), dict) else {}
    named = f"{compared['model']}: " if "model" in compared else ""
    quantiles = ", ".join(
        f"{name} {_number(kl.get(key))}"
        for name, key in (("median", "median"), ("99 %", "p99"), ("largest", "max"))
    )
    rows += [
        ("base", f"{named}perplexity {_number(compared.get('perplexity'))}"),
        ("ratio", _with_error(compared.get("ratio"), compared.get("ratio_stderr"))),
        ("KL", f"{_with_error(kl.get('mean'), kl.get('stderr'))}; {quantiles}"),
        ("same top", _with_error(compared.get("same_top"), compared.get("same_top_stderr"), " %", 100)),
    ]
    yield from table(rows)
    drift = compared.get("drift")
    if isinstance(drift, list) and drift:
        yield ""
        yield from table(list(_drift(drift)), right=(0, 1, 2, 3, 4))


def record_lines(quality: dict[str, Any]) -> Iterator[str]:
    """The quality record that a model file carries: what was measured on which text, against its source."""
    text = quality.get("text")
    name = text.get("file") if isinstance(text, dict) else None
    yield harmless(f"quality, measured on {name if name is not None else 'a text'} against the source")
    yield from quality_lines(quality)


def task_lines(found: dict[str, Any]) -> Iterator[str]:
    """`Lambada.to_json` for people."""
    return table(
        [
            ("accuracy", _with_error(found["accuracy"], found["accuracy_stderr"], " %", 100)),
            ("perplexity", f"{_with_error(found['perplexity'], found['stderr'])} per document"),
            ("documents", f"{_count(found['documents'])} of {found['file']}"),
        ]
    )


def _drift(octaves: list[Any]) -> Iterator[tuple[str, ...]]:
    yield ("position", "tokens", "KL", "same top", "ratio")
    for octave in octaves:
        row = octave if isinstance(octave, dict) else {}
        yield (
            f"from {_count(row.get('begin'))}",
            _count(row.get("tokens")),
            _number(row.get("kl")),
            _with_error(row.get("same_top"), None, " %", 100),
            _number(row.get("ratio")),
        )


def _with_error(value: Any, error: Any, unit: str = "", factor: float = 1) -> str:
    """`3.654 ± 0.021`: down to the error's second digit."""
    if not is_number(value) or not is_number(error) or error <= 0:
        return _number(value, factor) + unit
    digits = max(0, 1 - int(f"{error * factor:e}".partition("e")[2]))
    if digits > _MOST_DIGITS:
        return f"{value * factor:.3g} ± {error * factor:.2g}{unit}"
    return f"{value * factor:,.{digits}f} ± {error * factor:,.{digits}f}{unit}"


def _number(value: Any, factor: float = 1) -> str:
    return f"{value * factor:.4g}" if is_number(value) else "-" if value is None else str(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(stream: BinaryIO) -> int:
    try:
        info = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return 0
    return info.st_size if stat.S_ISREG(info.st_mode) else 0
