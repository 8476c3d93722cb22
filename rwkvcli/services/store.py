"""MODEL, as a person writes it, to a file on this machine: a path, a short name, or a file on the Hub.

Nothing here touches the network; `services.pulling` brings what is not here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quant.paths import is_there
from rwkvcli.errors import ModelNotFound, NetworkError, RwkvError, UsageError
from rwkvcli.services import hub_cache, kept, names, parts
from rwkvcli.services.names import DEMO, SUFFIXES, Alias, Reference

__all__ = ["SUFFIXES", "Alias", "LocalModel", "Reference", "find", "find_model", "parse"]


@dataclass(frozen=True)
class LocalModel:
    """A file on this machine, and what it was called."""

    path: Path
    name: str
    """What the person wrote."""
    reference: Reference | None = None
    """The download that it is, or was made of; with its file. None for what is not from the Hub."""
    kind: str | None = None
    """What was made of the download; None for the download itself, and for a path."""

    @property
    def exact_name(self) -> str:
        """A name that goes on to mean this file when newer ones come; paths are made absolute."""
        if self.reference is None:
            return self.name if self.name == DEMO else os.path.abspath(self.name)  # noqa: PTH100
        assert self.reference.file is not None
        short = names.short_name(self.reference.repo, self.reference.file)
        if short is None or self.kind is None or not self.name.startswith(short.family.name):
            return self.name
        return str(Alias(short.family, short.size, self.kind, short.wanted))

    @property
    def nbytes(self) -> int:
        """Its bytes; of a download all files that belong to it count."""
        is_download = self.reference is not None and self.kind is None
        return hub_cache.whole_size(self.path) if is_download else self.path.stat().st_size

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a download that cannot run before something is made of it. Paths are not looked at."""
        if self.reference is None or self.kind is not None:
            return False
        if self.path.suffix != ".safetensors":
            return True
        return not is_model(self.path)


def is_model(path: Path) -> bool:
    """Whether a safetensors file is a model file, by its header."""
    from quant.container.reader import is_model_file
    from quant.safetensors_file import SafetensorsFile

    try:
        with SafetensorsFile(path) as file:
            return is_model_file(file.metadata)
    except RwkvError:
        return False


def find(name: str, *, source: bool = False) -> LocalModel | None:
    """The file that `name` stands for, if it is on this machine; the one place where a MODEL becomes a path.

    A path is taken as it is. A short name and a file on the Hub are looked for among what was made of downloads,
    the one made last first, then among the downloads; with `source` among the downloads alone. A short name is its
    newest file that is here; a file without a revision is that of the branch `main`, or else the latest that is here.
    Raises UsageError and ModelNotFound as `parse`, UsageError for a repository of several files.
    """
    parsed = parse(name)
    if isinstance(parsed, Path):
        return LocalModel(parsed, name)
    if isinstance(parsed, Alias):
        return _of_alias(parsed, name, source)
    return _of_reference(parsed, name, source)


def find_model(name: str, *, offline: bool = False, source: bool = False) -> LocalModel:
    """The same, or ModelNotFound (NetworkError if `offline`, or the environment is) with the command that brings it."""
    found = find(name, source=source)
    if found is None:
        raise missing(name, offline=offline)
    return found


def remote_safetensors(name: str, *, offline: bool = False) -> Reference | None:
    """The safetensors file on the Hub that `name` names, if it is not here and the network is on."""
    parsed = parse(name)
    if not isinstance(parsed, Reference) or parsed.file is None or not parsed.file.endswith(".safetensors"):
        return None
    if offline or hub_cache.is_offline() or find(name) is not None:
        return None
    return parsed


def missing(name: str, *, offline: bool, then: str = "") -> RwkvError:
    """The error for a model that is not here. `then`: more words of the command that brings it."""
    command = f"`rwkv pull {quoted(name)}{then}`"
    parsed = names.alias(name)
    if parsed is not None and parsed.size not in parsed.family.sizes:
        known = ", ".join(parsed.family.sizes)
        return ModelNotFound(
            f"{name} is not on this machine", hint=f"known sizes of {parsed.family.name} are {known}"
        )
    if offline or hub_cache.is_offline():
        return NetworkError(
            f"{name} is not on this machine, and the network is off",
            hint=f"{how_to_go_online(offline)}: {command}",
        )
    return ModelNotFound(f"{name} is not on this machine", hint=f"download it with {command}")


def how_to_go_online(offline: bool) -> str:
    """What has to change for the network to be used; `offline`: the caller asked for it to be off."""
    from rwkvcli.services import configuration

    steps = []
    if offline:
        if os.environ.get("RWKV_OFFLINE", "").lower() not in ("", "0", "false", "no", "off"):
            steps.append("unset RWKV_OFFLINE")
        if configuration.load().get("offline"):
            steps.append("`rwkv config unset offline`")
        steps = steps or ["without --offline"]
    if hub_cache.is_offline():
        steps.append("unset HF_HUB_OFFLINE")
    return " and ".join(steps)


def quoted(name: str) -> str:
    """`name` as a shell takes it for one word; the percent signs of some files need no quotes."""
    import shlex

    if all(c.isalnum() or c in "._-/:@%+=~" or c == os.sep for c in name):
        return name
    return f'"{name}"' if sys.platform == "win32" else shlex.quote(name)


def parse(name: str) -> Path | Alias | Reference:
    """The path, the short name or the file on the Hub that `name` stands for.

    What is a short name is one, what exists is a path, and what can be a reference to the Hub is one. Raises
    ModelNotFound for a path at which there is nothing, or a folder that is no checkpoint.
    """
    if name == DEMO:
        return _demo()
    if not name:
        raise ModelNotFound("the name of the model is empty")
    short = names.alias(name)
    if short is not None:
        return short
    reference = names.reference(name)
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~nobody, or ~ of a user without a home
        raise ModelNotFound(f"{name} does not exist", hint="there is no such home folder") from None
    try:
        if path.is_dir() and _is_model_folder(path):
            return path
        if path.is_dir() and reference is None:
            raise ModelNotFound(f"{name} is a folder", hint="name the model file inside it")
        if is_there(path) and not path.is_dir():
            return path
    except OSError as error:  # a folder that may not be searched; a name longer than the system takes
        raise ModelNotFound(f"{name[:200]}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL character
        raise ModelNotFound(f"{name[:200]!r} cannot be a file: {error}") from None
    if reference is None or (reference.file is None and parts.is_weights(name)):
        raise ModelNotFound(f"{name} does not exist", hint=_what_else(name, path))
    if path.is_dir() and reference.file is None and reference.revision is None:
        raise ModelNotFound(f"{name} is a folder here", hint=f"`{name}:FILE` is a file on the Hub")
    return reference


def only(reference: Reference, files: Sequence[str]) -> str:
    """The one file there is; several are an error that lists them."""
    if len(files) == 1:
        return files[0]
    shown = ", ".join(sorted(files)[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    example = Reference(reference.repo, sorted(files)[0], reference.revision)
    raise UsageError(f"{reference} holds {len(files)} model files: {shown}", hint=f"name one: {example}")


def names_here() -> list[str]:
    """A name for everything that is here: short ones without dates, others as references; what was made stands first."""
    items: Iterable[kept.Kept | hub_cache.Download] = (*reversed(kept.kept()), *hub_cache.downloads())
    found: dict[str, None] = {}
    for item in items:
        assert item.reference.file is not None
        short = names.short_name(item.reference.repo, item.reference.file)
        found[f"{short.family.name}-{short.size}" if short is not None else str(item.reference)] = None
    return list(found)


def _of_alias(alias: Alias, name: str, source: bool) -> LocalModel | None:
    if not source:
        made = [item for item in kept.kept(alias.repo) if alias.fits(item.origin.file)]
        made = [item for item in made if alias.kind in (None, item.kind)]
        if made:
            last = max(made, key=lambda item: (alias.date(item.origin.file), item.made))
            return LocalModel(last.path, name, last.reference, last.kind)
    if alias.kind is not None and not source:
        return None
    here = [item for item in hub_cache.downloads(alias.repo) if alias.fits(item.file)]
    if not here:
        return None
    newest = max(here, key=lambda item: (alias.date(item.file), item.pulled))
    return LocalModel(newest.path, name, newest.reference)


def _of_reference(reference: Reference, name: str, source: bool) -> LocalModel | None:
    found = _at_revision(reference, name, source)
    if found is not None or reference.revision is not None:
        return found
    # the branch `main` has nothing of it here: it has moved on with another file, or this was pulled at a revision
    here = sorted(hub_cache.downloads(reference.repo), key=lambda item: item.pulled)
    commits = [item.commit for item in here if reference.file in (None, item.file)]
    made = [] if source else kept.kept(reference.repo)
    for item in made:
        commits += item.origin.revisions if reference.file in (None, item.origin.file) else ()
    at = (_at_revision(replace(reference, revision=commit), name, source) for commit in reversed(commits))
    return next((model for model in at if model is not None), None)


def _at_revision(reference: Reference, name: str, source: bool) -> LocalModel | None:
    made = [] if source else [item for item in kept.kept(reference.repo) if is_of(item, reference)]
    if reference.file is None:
        files = [file for file in hub_cache.cached_models(reference) if not parts.is_shard(file)]
        files = sorted({*files, *(item.origin.file for item in made)})
        if not files:
            return None
        reference = Reference(reference.repo, only(reference, files), reference.revision)
    if made:
        last = made[-1]
        return LocalModel(last.path, name, reference, last.kind)
    path = hub_cache.cached_path(reference)
    if path is None or (parts.is_index(path.name) and hub_cache.others_of(path) is None):
        return None
    return LocalModel(path, name, reference)


def is_of(item: kept.Kept, reference: Reference) -> bool:
    """Whether a kept model file was made of what `reference` names."""
    if reference.file not in (None, item.origin.file):
        return False
    return (reference.revision or "main") in item.origin.revisions


def _is_model_folder(path: Path) -> bool:
    """Whether a folder is a checkpoint, as the Hugging Face transformers write them."""
    from quant.checkpoints import is_checkpoint_folder

    return is_checkpoint_folder(path)


def _demo() -> Path:
    """The file of the built-in model."""
    from rwkvcli.runtime.model import demo_path

    path = demo_path()
    if not path.exists():
        raise ModelNotFound(f"the built-in model `{DEMO}` is not installed", hint="install rwkvcli again")
    return path


def _what_else(name: str, path: Path) -> str:
    """What the person may have meant by a path that does not exist."""
    parent = path.parent
    if str(parent) not in ("", ".") and not parent.is_dir():
        there = names.of_address(name)
        if there is not None:
            return f"if it is on the Hub, write {there}"
        return f"there is no folder {parent}"
    import difflib

    try:
        here = [item.name for item in parent.iterdir() if parts.is_weights(item.name)]
    except OSError:
        here = []
    near = difflib.get_close_matches(path.name, here, n=1)
    if near:
        return f"did you mean {parent / near[0]}?"
    if not {os.sep, os.altsep, "/"} & set(name) and not parts.is_weights(name):
        short = names.near(name)
        if short:
            return f"did you mean {' or '.join(short)}?"
    return (
        f"a model is a path, a name such as {names.aliases()[2]}, or owner/repo:file on the Hugging Face Hub"
    )
