"""Errors of huggingface_hub, and of the network and the disk below it, as this project's."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rwkvcli.errors import ModelNotFound, NetworkError, NoSpace, RwkvError, UsageError
from rwkvcli.services.names import Reference
from rwkvcli.services.places import is_wrong_place
from rwkvcli.services.watching import Watcher

PAUSES = (1.0, 3.0, 9.0)
"""Seconds before a request is made again that failed for a reason that may pass."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


T = TypeVar("T")


def endpoint() -> str:
    """The address of the Hub."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_local(error: BaseException) -> bool:
    """Whether it is about a file of this machine: errors of the network have no file's name."""
    from huggingface_hub import errors

    if not isinstance(error, OSError) or isinstance(error, errors.HTTPError):
        return False
    return error.errno in _FULL or error.filename is not None


def ended_early(error: BaseException | None) -> bool:
    """Whether the connection was closed inside the file: httpx's and requests' ways to say so."""
    while error is not None:
        if type(error).__name__ in ("RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead"):
            return True
        if "Consistency check failed" in str(error):
            return True
        error = error.__cause__
    return False


def status_of(error: BaseException | None) -> int | None:
    """The status that the Hub answered with, if it answered; the library wraps some errors."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def is_timeout(error: BaseException) -> bool:
    """Whether no answer came in time: httpx's and requests' ways to say so."""
    return "Timeout" in type(error).__name__


def retried(ask: Callable[[], T], watcher: Watcher, *, timeouts: bool = True) -> T:
    """What `ask` returns; asked again after pauses while what fails may pass. `timeouts`: they may."""
    for pause in PAUSES:
        try:
            return ask()
        except Exception as error:
            status = status_of(error)
            if not (status in (408, 429) or (status or 0) >= 500 or (timeouts and is_timeout(error))):
                raise
            watcher.trying_again(f"the Hub answered {status}" if status else "the Hub is silent", pause)
            time.sleep(pause)
    return ask()


@contextlib.contextmanager
def as_our_errors(reference: Reference) -> Iterator[None]:
    """Turn the library's errors, and those of the network below it, into this project's."""
    from huggingface_hub import errors

    try:
        yield
    except RwkvError:
        raise
    except (errors.HTTPError, OSError, errors.HFValidationError, errors.EntryNotFoundError) as error:
        if isinstance(error, OSError) and is_local(error):
            raise _of_the_disk(error, reference) from error
        raise _translated(error, reference) from error


def _of_the_disk(error: OSError, reference: Reference) -> RwkvError:
    hint = "HF_HOME names another folder for downloads"
    if error.errno in _FULL:
        return NoSpace(f"{reference}: the disk is full", hint=hint)
    reason = (error.strerror or str(error)).lower()
    kind = UsageError if is_wrong_place(error) else RwkvError
    return kind(f"{os.fsdecode(error.filename)}: {reason}", hint=hint)


def _translated(error: Exception, reference: Reference) -> RwkvError:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _translated(error.__cause__, reference)  # that it is not here either is no news
    repo, at = reference.repo, f" at revision {reference.revision}" if reference.revision else ""
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{reference} cannot be a repository on the Hub", hint="write owner/repo:file")
    if isinstance(error, errors.GatedRepoError):
        return NetworkError(
            f"{repo} is gated: its owner asks you to accept terms",
            hint=f"accept them at {endpoint()}/{repo}, then set HF_TOKEN to a token of yours",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"there is no repository {repo} on the Hub, or it is private",
            hint="check the name; for a private one set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision {reference.revision or 'main'}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError(f"{reference} needs the network, which is off", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.EntryNotFoundError):
        return ModelNotFound(
            f"{repo} has no file {reference.file}{at}", hint=f"see {endpoint()}/{repo}/tree/main"
        )
    status = status_of(error)
    if status in (401, 403):
        return NetworkError(f"not authorised to read {repo}", hint="set HF_TOKEN to a token that may read it")
    if status == 429:
        return NetworkError(
            "the Hub refuses: too many requests", hint="wait a few minutes; HF_TOKEN raises the limit"
        )
    if status is not None:
        return NetworkError(f"the Hub answered {status} for {reference}", hint="try again later")
    return NetworkError(
        f"{endpoint()} cannot be reached: {_reason(error)}",
        hint="check the connection; what was downloaded so far is kept",
    )


def _reason(error: Any) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
