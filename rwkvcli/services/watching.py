"""What long work on model files tells while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quant.pipeline import Progress


class Watcher:
    """Told how far the work is. This one does nothing; the command line draws bars."""

    def downloading(self, done: int, total: int) -> None:
        """`done` of `total` bytes are here; `total` 0: unknown."""

    def checking(self, done: int, total: int) -> None:
        """`done` of `total` bytes were compared with a checksum."""

    def quantizing(self, progress: Progress) -> None:
        """So much is encoded."""

    def waiting(self, what: str) -> None:
        """Another process does the same; told again and again while it lasts. May raise, which ends the wait."""

    def trying_again(self, why: str, seconds: float) -> None:
        """The Hub failed with `why`; it is asked again after `seconds`."""


class OneOfSeveral(Watcher):
    """For one of several downloads: what is told of it reaches another watcher as part of the whole."""

    def __init__(self, watcher: Watcher, before: int, total: int) -> None:
        """`before`: bytes of the files that are done, of `total`."""
        self._watcher, self._before, self._total = watcher, before, total

    def downloading(self, done: int, total: int) -> None:
        """See `Watcher`."""
        self._watcher.downloading(self._before + done, self._total)

    def checking(self, done: int, total: int) -> None:
        """See `Watcher`."""
        self._watcher.checking(done, total)

    def waiting(self, what: str) -> None:
        """See `Watcher`."""
        self._watcher.waiting(what)

    def trying_again(self, why: str, seconds: float) -> None:
        """See `Watcher`."""
        self._watcher.trying_again(why, seconds)
