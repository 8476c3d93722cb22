"""The states after turns: the latest in memory, many on disk, the rest made again from the nearest one."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvcli.errors import RwkvError
from rwkvcli.services.fitting import state_bytes

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.services.turns import Turn

MEMORY = 64 << 20
"""Bytes of states held in memory where there is no disk, beside the two latest."""
IN_MEMORY = 8
"""States held in memory where there is one."""
DISK = 512 << 20
"""Bytes of states kept per session, beside those that nothing else can make again."""
SUFFIX = ".safetensors"


class Snapshots:
    """States by the number of their turn. A state that is handed out must not be changed, only copied.

    `folder`: where they are written; None: nowhere. `memory` and `disk` are bounds in bytes.
    """

    def __init__(
        self, model: Model, folder: Path | None = None, memory: int = MEMORY, disk: int = DISK
    ) -> None:
        self.folder = folder
        self._model = model
        self._size = state_bytes(model.config)
        fitting = max(2, memory // self._size)
        self._in_memory = fitting if folder is None else min(fitting, IN_MEMORY)
        self._on_disk = max(4, disk // self._size)
        self._held: OrderedDict[int, State] = OrderedDict()
        self._pinned: dict[int, State] = {}
        self._files = self._found()

    def keep(self, turn: Turn, state: State) -> None:
        """Remember the state after `turn`; one that nothing can make again until it is on disk, too."""
        if not turn.replayable and turn.id not in self._files:
            self._pinned[turn.id] = state
        else:
            self._remember(turn.id, state)

    def find(self, turn: Turn) -> State | None:
        """The state after `turn`; None if it is not kept, or its file is damaged."""
        state = self._held.get(turn.id) or self._pinned.get(turn.id)
        if state is None and turn.id in self._files:
            with contextlib.suppress(RwkvError):
                from rwkvcli.runtime.state import State

                state = State.load(self._path(turn.id), self._model)
                if state.tokens_seen != turn.tokens_seen:
                    state = None
        if state is not None and turn.id not in self._pinned:
            self._remember(turn.id, state)
        return state

    def write(self, turn: Turn) -> None:
        """Write the state after `turn`, if it is in memory and not on disk yet. Raises OSError."""
        state = self._pinned.get(turn.id) or self._held.get(turn.id)
        if self.folder is None or turn.id in self._files or state is None:
            return
        self.folder.mkdir(exist_ok=True)
        state.save(self._path(turn.id))
        self._files.add(turn.id)
        if self._pinned.pop(turn.id, None) is not None:
            self._remember(turn.id, state)

    def clean(self, turns: Iterable[Turn]) -> None:
        """Remove files of turns that are not among `turns`: of one that was in the making at a crash."""
        for number in self._files - {turn.id for turn in turns}:
            self._remove(number)

    def prune(self, turns: Iterable[Turn], wanted: set[int]) -> None:
        """Remove files until they are within bounds.

        `turns` are all there are; the numbers in `wanted`, and states that nothing can make again, stay. Of the
        others the early ones go first, but every second, fourth, eighth ... turn stays longer, so that
        making a state again never begins far away.
        """
        if len(self._files) <= self._on_disk:
            return
        able = [t for t in turns if t.replayable and t.id in self._files and t.id not in wanted]
        able.sort(key=lambda turn: (turn.depth & -turn.depth, turn.id))
        for turn in able[: len(self._files) - self._on_disk]:
            self._remove(turn.id)

    @property
    def state_bytes(self) -> int:
        """Size of one state."""
        return self._size

    @property
    def files(self) -> int:
        """Number of states on disk."""
        return len(self._files)

    @property
    def held(self) -> int:
        """Number of states in memory."""
        return len(self._held) + len(self._pinned)

    def _remember(self, number: int, state: State) -> None:
        self._held[number] = state
        self._held.move_to_end(number)
        while len(self._held) > self._in_memory:
            self._held.popitem(last=False)

    def _remove(self, number: int) -> None:
        with contextlib.suppress(PermissionError):  # on Windows while somebody looks at it: another time
            self._path(number).unlink(missing_ok=True)
            self._files.discard(number)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number}{SUFFIX}"

    def _found(self) -> set[int]:
        if self.folder is None or not self.folder.is_dir():
            return set()
        return {int(path.stem) for path in self.folder.glob(f"[0-9]*{SUFFIX}") if path.stem.isdigit()}
