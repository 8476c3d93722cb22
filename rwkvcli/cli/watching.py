"""What a person sees of long work on model files: a bar for what goes on, lines for what is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkvcli.cli.console import Console
from rwkvcli.cli.render import DownloadBar, Passing, QuantizationBar
from rwkvcli.services.watching import Watcher

if TYPE_CHECKING:
    from quant.pipeline import Progress


class Bars(Passing, Watcher):
    """One bar at a time on stderr, where that is a terminal."""

    def __init__(self, console: Console, name: str) -> None:
        """`name`: what is being worked on."""
        self._console = console
        self._name = name
        self._bytes = DownloadBar(console, name)
        self._weights = QuantizationBar(console)
        self._told = ""

    def hide(self) -> None:
        """Make room for a line."""
        self._bytes.hide()
        self._weights.hide()

    def downloading(self, done: int, total: int) -> None:
        """See `Watcher`."""
        self._weights.hide()
        self._bytes.update(done, total, self._name)

    def checking(self, done: int, total: int) -> None:
        """See `Watcher`."""
        self._weights.hide()
        self._bytes.update(done, total, f"{self._name}: checking")
        if done == total:
            self._bytes.hide()

    def quantizing(self, progress: Progress) -> None:
        """See `Watcher`."""
        self._bytes.hide()
        self._weights.update(progress)

    def waiting(self, what: str) -> None:
        """See `Watcher`."""
        self._say(f"waiting: {what}")

    def trying_again(self, why: str, seconds: float) -> None:
        """See `Watcher`."""
        self._say(f"{why}: trying again in {seconds:g} s")

    def _say(self, text: str) -> None:
        """Write a line, unless it is the last one again."""
        if text != self._told:
            self.hide()
            self._console.note(text)
            self._told = text
