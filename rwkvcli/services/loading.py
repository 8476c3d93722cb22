"""Models and states that a person names: opened, or refused before any work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvcli.errors import FormatError, UsageError

if TYPE_CHECKING:
    from rwkvcli.runtime.drafting import Drafting
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.services.store import LocalModel


def load_model(
    found: LocalModel, device: str | None = None, threads: int | None = None, gpu_layers: int | None = None
) -> Model:
    """The model in the file `found`. Raises what `Model.load` raises; a checkpoint is refused as one."""
    from rwkvcli.runtime.model import Model
    from rwkvcli.services.inspection import refuse_checkpoint

    try:
        return Model.load(found.path, device=device or "auto", threads=threads, gpu_layers=gpu_layers)
    except FormatError:
        refuse_checkpoint(found)
        raise


def drafting_by(model: Model, draft: Model | str | None, warn: Callable[[str], None]) -> Drafting | None:
    """What guesses tokens ahead of `model`: a draft model or the name of another way. None: nothing. `warn` is called once
    when guessing has failed. Raises UsageError."""
    from rwkvcli.runtime.drafting import Drafting

    return Drafting.by(model, draft, warn)


def ways_to_guess() -> list[str]:
    """What may stand in place of a draft model's name."""
    from rwkvcli.runtime.drafting import LOOKUP, OFF

    return [LOOKUP, OFF]


def load_state(path: Path, model: Model) -> State:
    """The saved state in `path`. Raises what `State.load` raises."""
    from rwkvcli.runtime.state import State

    return State.load(path, model)


def check_state_target(path: Path) -> None:
    """Refuse a file that a state must not replace, before any work: anything that is there and is not a state.

    Raises UsageError.
    """
    from quant.atomic import new_file
    from quant.paths import is_there
    from rwkvcli.errors import RwkvError
    from rwkvcli.runtime.state_file import is_state_file

    new_file(path, force=True, kept={})
    try:
        if not is_there(path) or is_state_file(path):
            return
    except RwkvError:
        pass
    raise UsageError(f"{path} exists, and is not a state", hint="name another file, or remove it")


@contextlib.contextmanager
def updating(path: Path) -> Iterator[None]:
    """The state file `path` is read, gone on with and written back inside the block, by no other process meanwhile.

    Raises UsageError if one is at it, and OSError for a folder that cannot be written to.
    """
    from quant.atomic import replaceable
    from rwkvcli.services.locks import locked

    def refuse(who: str) -> None:
        raise UsageError(
            f"{path} is being updated by another process" + (f" ({who})" if who else ""),
            hint="wait for that one to end; --save-state writes to another file",
        )

    target = replaceable(path)
    lock = target.with_name(f".{target.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, refuse))
        except OSError as error:
            error.filename = str(path)
            raise
        stack.callback(lock.unlink, missing_ok=True)
        yield


def check_device(device: str | None) -> None:
    """Refuse a device that cannot be, before anything is downloaded. Raises UsageError, DeviceUnavailable."""
    from rwkvcli.runtime.device import parse_device

    kind, which = parse_device(device or "auto")
    if kind == "cuda":
        from rwkvcli.runtime import cuda

        cuda.device(int(which))


def template_names() -> list[str]:
    """The families of models that are known."""
    from rwkvcli.runtime.templates import templates

    return list(templates())
