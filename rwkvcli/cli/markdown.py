"""Markdown on a terminal as it comes, without ever going back: styles in place of marks, words wrapped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BOLD, ITALIC, CODE, DIM = "1", "3", "36", "2"
_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#{1,6} +")
_BULLET = re.compile(r"( *)[-*+] +")
_NUMBER = re.compile(r"( *\d{1,3}[.)] +)")
_QUOTE = re.compile(r" {0,3}> ?")
_RULE = re.compile(r" {0,3}([-*_])( *\1){2,} *$")
_UNDECIDED = re.compile(r" *(#{0,6} *|[-*+_]( *[-*_])* *|`{1,2}|~{1,2}|\d{1,3}[.)]? *|> ?)?$")
"""The beginning of a line that may become any of these."""
_TAB = "    "


class Run(NamedTuple):
    """Text in one style: the numbers of ANSI attributes, none for plain text."""

    text: str
    style: tuple[str, ...] = ()


class Markdown:
    """Turns Markdown, pushed in pieces, into runs. Marks that may yet get a meaning are held back.

    `hanging` is the column at which the lines of the current item go on when they are wrapped; `literal` is true
    for code, which is not wrapped.
    """

    def __init__(self) -> None:
        self.hanging = 0
        self.literal = False
        self._held = ""
        self._at_start = True
        self._fence = ""
        self._line: tuple[str, ...] = ()
        self._on: dict[str, bool] = {BOLD: False, ITALIC: False, CODE: False}
        self._before = ""

    def push(self, text: str) -> Iterator[Run]:
        """What can be shown now."""
        self._held += text
        while self._held:
            step = self._begin_line() if self._at_start else self._inline()
            if step is None:
                return
            yield from step

    def flush(self) -> Iterator[Run]:
        """What was held back."""
        if self._held:
            yield from self.push("\n")
            self._held = ""

    def _begin_line(self) -> list[Run] | None:
        line, ended, _ = self._held.partition("\n")
        if _FENCE.match(line) or self._fence:
            return self._code_line(line, bool(ended))
        if not ended and _UNDECIDED.match(line):
            return None
        self._at_start = False
        self._before = ""
        if ended and _RULE.match(line):
            self._held = self._held[len(line) :]
            return [Run("─" * 20, (DIM,))]
        if match := _HEADING.match(line):
            self._held, self._line = self._held[match.end() :], (BOLD,)
            return []
        if match := _BULLET.match(line):
            self._held, self.hanging = self._held[match.end() :], len(match[1]) + 2
            return [Run(match[1] + "• ")]
        if match := _NUMBER.match(line):
            self._held, self.hanging = self._held[match.end() :], len(match[1])
            return [Run(match[1])]
        if match := _QUOTE.match(line):
            self._held, self.hanging = self._held[match.end() :], 2
            return [Run("│ ", (DIM,))]
        return []

    def _code_line(self, line: str, ended: bool) -> list[Run] | None:
        """A fence, or a line between fences: shown as it stands, whole lines at a time but for long ones."""
        match = _FENCE.match(line)
        if not ended and (match or "```".startswith(line.strip()[:3]) or "~~~".startswith(line.strip()[:3])):
            return None
        self.literal = True
        if match and ended and match[1] == (self._fence or match[1]):
            self._fence = "" if self._fence else match[1]
            style: tuple[str, ...] = (DIM,)
        else:
            style = (CODE,)
        self._held = self._held[len(line) :]
        if not ended:
            return [Run(line, style)]
        self._held = self._held[1:]
        runs = [Run(line, style), Run("\n")]
        self._at_start = True
        return runs

    def _inline(self) -> list[Run] | None:
        """One run of text, or one mark."""
        self.literal = False
        text = self._held
        match = re.match(r"[^*`\\\n]+", text)
        if match:
            self._held = text[match.end() :]
            self._before = match[0][-1]
            return [Run(match[0].replace("\t", _TAB), self._style())]
        if text[0] == "\n":
            return self._end_line()
        if text[0] == "`":
            self._on[CODE] = not self._on[CODE]
            return self._drop(1)
        if self._on[CODE]:
            return self._take(1)
        if text[0] == "\\":
            if len(text) < 2:
                return None
            return self._take(2, text[1] if not text[1].isalnum() and text[1] != "\n" else text[:1])
        return self._stars(text)

    def _stars(self, text: str) -> list[Run] | None:
        stars = len(text) - len(text.lstrip("*"))
        if stars == len(text):
            return None  # what follows decides
        kind = {1: (ITALIC,), 2: (BOLD,), 3: (BOLD, ITALIC)}.get(stars)
        closes = kind is not None and all(self._on[one] for one in kind) and not self._before.isspace()
        opens = kind is not None and not text[stars].isspace() and not any(self._on[one] for one in kind)
        if kind is None or not (closes or opens):
            return self._take(stars)
        for one in kind:
            self._on[one] = not closes
        return self._drop(stars)

    def _end_line(self) -> list[Run]:
        self._on = dict.fromkeys(self._on, False)
        self._line, self.hanging, self._at_start = (), 0, True
        return self._take(1)

    def _take(self, count: int, shown: str | None = None) -> list[Run]:
        text, self._held = self._held[:count], self._held[count:]
        if shown is not None and len(shown) < count and shown == "\\":
            self._held = text[1:] + self._held  # a backslash that escapes nothing
        self._before = text[-1]
        return [Run(text if shown is None else shown, self._style())]

    def _drop(self, count: int) -> list[Run]:
        self._held = self._held[count:]
        return []

    def _style(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._line, *(one for one, on in self._on.items() if on))))


class Painter:
    """Text as it comes, ready for a terminal of `width()` columns.

    `marks` (Markdown): styles in place of marks; without it the text stays as it is but for wrapping. `style`
    is under everything. Characters that a terminal takes for commands become U+FFFD. The word at the end is
    held back until it is whole.
    """

    def __init__(
        self, width: Callable[[], int], *, marks: bool = True, style: tuple[str, ...] = (), wraps: bool = True
    ) -> None:
        from prompt_toolkit.utils import get_cwidth

        self._cells = get_cwidth
        self._width = width
        self._markdown = Markdown() if marks else None
        self._style = style
        self._wraps = wraps
        self._column = 0
        self._word: list[Run] = []
        self._word_cells = 0
        self._spaces = ""
        self._shown: tuple[str, ...] = ()

    def push(self, text: str) -> str:
        """What can be drawn now."""
        text = "".join(c if c.isprintable() or c in "\n\t" or not _is_control(c) else "�" for c in text)
        if self._markdown is None:
            return self._drawn(Run(text.replace("\t", _TAB)))
        return "".join(self._drawn(run) for run in self._markdown.push(text))

    def flush(self) -> str:
        """The rest, in plain style at the end."""
        out = "" if self._markdown is None else "".join(map(self._drawn, self._markdown.flush()))
        out = (out + self._end_word()).rstrip("\n")
        if self._shown:
            out, self._shown = out + "\x1b[0m", ()
        return out

    @property
    def column(self) -> int:
        """Where the cursor is."""
        return self._column

    def _drawn(self, run: Run) -> str:
        style = tuple(dict.fromkeys((*self._style, *run.style)))
        literal = not self._wraps or (self._markdown is not None and self._markdown.literal)
        out = []
        for part in re.findall(r"\n| +|[^\n ]+", run.text):
            if part == "\n":
                out.append(self._end_word() + self._styled("\n", ()))
                self._column, self._spaces = 0, ""
            elif literal:
                out.append(self._end_word() + self._styled(part, style))
                self._column += sum(map(self._cells, part))
            elif part[0] == " ":
                out.append(self._end_word())
                self._spaces += part
                if self._column == 0:  # indentation
                    out.append(self._place_spaces())
            else:
                out += [self._letter(letter, style) for letter in part]
        return "".join(out)

    def _letter(self, letter: str, style: tuple[str, ...]) -> str:
        cells = self._cells(letter)
        out = self._end_word() if cells > 1 and self._word else ""  # lines may be broken between wide ones
        self._word.append(Run(letter, style))
        self._word_cells += cells
        wide = cells > 1 or self._word_cells >= self._width()
        return out + (self._end_word() if wide else "")

    def _end_word(self) -> str:
        """Place the word that is whole now, on the next line if it does not fit on this one."""
        if not self._word:
            return ""
        out = ""
        room = self._width() - self._column - len(self._spaces)
        if self._word_cells > room and self._column > 0:
            hanging = self._markdown.hanging if self._markdown is not None else 0
            out = self._styled("\n" + " " * hanging, ())
            self._column, self._spaces = hanging, ""
        else:
            out = self._place_spaces()
        out += "".join(self._styled(run.text, run.style) for run in self._word)
        self._column += self._word_cells
        self._word, self._word_cells = [], 0
        return out

    def _place_spaces(self) -> str:
        spaces, self._spaces = self._spaces, ""
        self._column += len(spaces)
        return self._styled(spaces, self._word[0].style if self._word else ()) if spaces else ""

    def _styled(self, text: str, style: tuple[str, ...]) -> str:
        if style == self._shown:
            return text
        begin = ("\x1b[0m" if self._shown else "") + (f"\x1b[{';'.join(style)}m" if style else "")
        self._shown = style
        return begin + text


def _is_control(character: str) -> bool:
    """C0 and C1, and what changes the direction of writing."""
    number = ord(character)
    return number < 0x20 or 0x7F <= number < 0xA0 or 0x202A <= number <= 0x202E or 0x2066 <= number <= 0x2069
