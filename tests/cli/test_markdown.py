"""Markdown drawn as it comes: what a terminal shows, however the text is split."""

from __future__ import annotations

import re

import pyte
import pytest

from rwkvcli.cli.markdown import Painter

TEXT = """# Heading one
Some **bold** and *italic* and ***both*** and `code * x`, 2 * 3 * 4, a_b_c, \\*literal\\* and C:\\dir.

- an item that is long enough to be wrapped to the next line, yes
- **second**
  - nested
12. twelve

> a quote

---
```python
def f(x):
    return x ** 2  # **not bold**, and too long for a line of this width
```
日本語の長い文章は空白なしで続きますので折り返しが必要です and **unclosed
next | table
end *"""

SHOWN = """Heading one
Some bold and italic and both and code
* x, 2 * 3 * 4, a_b_c, *literal* and
C:\\dir.

• an item that is long enough to be
  wrapped to the next line, yes
• second
  • nested
12. twelve

│ a quote

────────────────────
```python
def f(x):
    return x ** 2  # **not bold**, and too long for a line of this width
```
日本語の長い文章は空白なしで続きますの
で折り返しが必要です and unclosed
next | table
end *"""


def painted(text: str, width: int = 39, step: int = 1, **more: bool) -> str:
    painter = Painter(lambda: width, **more)
    parts = [painter.push(text[at : at + step]) for at in range(0, len(text), step)]
    return "".join(parts) + painter.flush()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_what_is_shown() -> None:
    assert plain(painted(TEXT)) == SHOWN


@pytest.mark.parametrize("step", [2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("width", [10, 39, 200])
def test_however_the_text_is_split(step: int, width: int) -> None:
    assert painted(TEXT, width, step) == painted(TEXT, width)


def test_styles_on_the_screen() -> None:
    screen = pyte.Screen(40, 30)
    pyte.Stream(screen).feed(painted(TEXT).replace("\n", "\r\n"))

    def letters(row: int, test: str) -> str:
        cells = screen.buffer[row]
        return "".join(cells[x].data for x in range(40) if getattr(cells[x], test) not in (False, "default"))

    assert letters(0, "bold").strip() == "Heading one"
    assert letters(1, "bold").split() == ["bold", "both"]
    assert letters(1, "italics").split() == ["italic", "both"]
    assert letters(1, "fg").strip() == "code"
    assert letters(7, "bold").strip() == "second"
    last = painted("**a** b")
    assert last.endswith(" b") and painted("b **a**").endswith("\x1b[0m")


def test_without_marks_the_text_stays_but_for_wrapping() -> None:
    assert painted("# one **two**\n- three", marks=False) == "# one **two**\n- three"
    assert painted("one two three", width=8, marks=False) == "one two\nthree"
    assert painted("one two three", width=8, marks=False, wraps=False) == "one two three"
    assert painted("  indented text", width=12, marks=False) == "  indented\ntext"
    assert painted("x" * 25, width=10, marks=False) == f"{'x' * 10}\n{'x' * 10}\n{'x' * 5}"


@pytest.mark.parametrize(
    "mark", ["", "*", "**", "`", "\\", "#", "-", "1.", "```", "---", ">", "***x", "`x", "- "]
)
def test_marks_that_nothing_came_of(mark: str) -> None:
    shown = plain(painted(mark))
    assert set(mark) - set("`*->#\\1.x ") == set()
    assert len(shown) <= max(len(mark), 20)
    assert plain(painted(f"{mark}\nx")).endswith("x")


def test_nothing_that_a_terminal_takes_for_a_command_comes_through() -> None:
    hostile = "a\x1b[2Jb\x07c\x9bd\re\u202ef\x00g"
    for marks in (True, False):
        assert plain(painted(hostile, marks=marks)) == "a�[2Jb�c�d�e�f�g"
    assert painted("a\tb", marks=False) == "a    b"
