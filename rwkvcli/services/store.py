"""MODEL, as a person writes it, to a file on this machine: a path, an alias, or a file on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvcli.errors import ModelNotFound, NetworkError, UsageError

if TYPE_CHECKING:
    from rwkvcli.services.hub import Progress

ALIASES = ("demo",)
SUFFIXES = (".safetensors", ".pth")
"""What the files of models end with."""

_REFERENCE = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[^@]+))?(@(?P<revision>.+))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A file on the Hub: `owner/repo[:file][@revision]`."""

    repo: str
    file: str | None = None
    revision: str | None = None
    kind: str = "model"
    """What the repository is: `model` or `dataset`."""

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{file}{revision}"


@dataclass(frozen=True)
class LocalModel:
    """A file on this machine, and what it was called."""

    path: Path
    name: str
    """What the person wrote."""
    reference: Reference | None = None
    """Where it came from, if from the Hub: with its file."""


def find_model(
    name: str, *, offline: bool = False, may_download: bool = False, on_progress: Progress | None = None
) -> LocalModel:
    """The file that `name` stands for; the one place where a MODEL becomes a path.

    A path is taken as it is, an alias is one of ALIASES, and a Hub reference is looked up among the
    downloaded files first, without the network. Only with `may_download`, and not `offline`, is one
    downloaded that is not here. Raises UsageError, ModelNotFound, NetworkError, FormatError (a download
    that is corrupt), NoSpace.
    """
    parsed = parse(name)
    if isinstance(parsed, Path):
        return LocalModel(parsed, name)
    from rwkvcli.services import hub

    if parsed.file is None:
        candidates = [file for file in hub.cached_files(parsed) if file.endswith(SUFFIXES)]
        if candidates:
            parsed = Reference(parsed.repo, _only(parsed, candidates), parsed.revision)
    if parsed.file is not None:
        cached = hub.cached_path(parsed)
        if cached is not None:
            return LocalModel(cached, name, parsed)
    if offline or hub.is_offline():
        raise NetworkError(
            f"{parsed} is not on this machine, and the network is off",
            hint=f"{how_to_go_online(offline)}: `rwkv pull {parsed}`",
        )
    if not may_download:
        raise ModelNotFound(f"{parsed} is not on this machine", hint=f"download it with `rwkv pull {parsed}`")
    return pull(name, on_progress=on_progress)


def pull(name: str, *, offline: bool = False, on_progress: Progress | None = None) -> LocalModel:
    """Download what the Hub reference `name` stands for, or bring it up to date.

    An interrupted download is resumed by the next one. What comes is compared with the checksum that the
    Hub names. Offline, and for an alias, the file has to be here. Raises as `find_model`.
    """
    parsed = parse(name)
    if isinstance(parsed, Path):
        if name in ALIASES:
            return LocalModel(parsed, name)
        raise UsageError(f"{name} is a path, not a file on the Hub", hint="write owner/repo:file")
    from rwkvcli.services import hub

    if offline or hub.is_offline():
        return find_model(name, offline=offline)
    if parsed.file is None:
        files = hub.list_files(parsed)
        candidates = [file for file in files if file.endswith(SUFFIXES)]
        if not candidates:
            raise ModelNotFound(
                f"{parsed} holds no model file",
                hint=f"files that end with {' or '.join(SUFFIXES)} are looked for",
            )
        parsed = Reference(parsed.repo, _only(parsed, candidates), parsed.revision)
    return LocalModel(hub.download(parsed, on_progress), name, parsed)


def how_to_go_online(offline: bool) -> str:
    """What has to change for the network to be used; `offline`: the caller asked for it to be off."""
    from rwkvcli.services import hub

    steps = []
    if offline:
        variable = os.environ.get("RWKV_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")
        steps.append("unset RWKV_OFFLINE" if variable else "without --offline")
    if hub.is_offline():
        steps.append("unset HF_HUB_OFFLINE")
    return " and ".join(steps)


def parse(name: str) -> Path | Reference:
    """The path or the Hub reference that `name` stands for.

    What is an alias is one, what exists is a path, and what can be a Hub reference is one. Raises
    ModelNotFound for a path at which there is nothing, or a folder that is no checkpoint.
    """
    if name in ALIASES:
        return _alias(name)
    if not name:
        raise ModelNotFound("the name of the model is empty")
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~nobody, or ~ of a user without a home
        raise ModelNotFound(f"{name} does not exist", hint="there is no such home folder") from None
    try:
        if path.is_dir() and _is_model_folder(path):
            return path
        if path.is_dir() and not _REFERENCE.fullmatch(name):
            raise ModelNotFound(f"{name} is a folder", hint="name the model file inside it")
        if path.exists() and not path.is_dir():
            return path
    except OSError as error:  # a folder that may not be searched; a name longer than the system takes
        raise ModelNotFound(f"{name[:200]}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL character
        raise ModelNotFound(f"{name[:200]!r} cannot be a file: {error}") from None
    match = _REFERENCE.fullmatch(name)
    if match is None or (match["file"] is None and name.endswith(SUFFIXES)):
        raise ModelNotFound(f"{name} does not exist", hint=_what_else(name, path))
    if path.is_dir() and match["file"] is None and match["revision"] is None:
        raise ModelNotFound(f"{name} is a folder here", hint=f"`{name}:FILE` is a file on the Hub")
    return Reference(match["repo"], match["file"], match["revision"])


def _is_model_folder(path: Path) -> bool:
    """Whether a folder is a checkpoint, as the Hugging Face transformers write them."""
    from quant.checkpoints import is_checkpoint_folder

    return is_checkpoint_folder(path)


def _alias(name: str) -> Path:
    """The file of the built-in model."""
    from rwkvcli.runtime.model import demo_path

    path = demo_path()
    if not path.exists():
        raise ModelNotFound(f"the built-in model `{name}` is not installed", hint="install rwkvcli again")
    return path


def _what_else(name: str, path: Path) -> str:
    """What the person may have meant by a path that does not exist."""
    parent = path.parent
    if str(parent) not in ("", ".") and not parent.is_dir():
        return f"there is no folder {parent}"
    import difflib

    try:
        here = [item.name for item in parent.iterdir() if item.suffix in SUFFIXES]
    except OSError:
        here = []
    near = difflib.get_close_matches(path.name, here, n=1)
    if near:
        return f"did you mean {parent / near[0]}?"
    return f"a model is a path, `{ALIASES[0]}`, or owner/repo:file on the Hugging Face Hub"


def _only(reference: Reference, files: Sequence[str]) -> str:
    """The one file there is; several are an error that lists them."""
    if len(files) == 1:
        return files[0]
    shown = ", ".join(sorted(files)[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    example = Reference(reference.repo, sorted(files)[0], reference.revision)
    raise UsageError(f"{reference} holds {len(files)} model files: {shown}", hint=f"name one: {example}")
