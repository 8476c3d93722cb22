"""Models and states that a person names: opened, or refused before any work."""

from __future__ import annotations

from collections.abc import Callable
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
    from rwkvcli.errors import RwkvError
    from rwkvcli.runtime.state_file import is_state_file

    new_file(path, force=True, kept={})
    try:
        if not path.exists() or is_state_file(path):
            return
    except RwkvError:
        pass
    raise UsageError(f"{path} exists, and is not a state", hint="name another file, or remove it")


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
