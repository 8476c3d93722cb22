"""The Hugging Face Hub: lists, headers, and downloads that resume and are checked, in the cache that all programs share.

`huggingface_hub` does the talking and owns the cache; the bytes of files come by `services.hub_blobs`. Its settings
hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import contextlib
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from quant.atomic import is_name_on_windows, make_sparse
from rwkvcli.errors import FormatError, NetworkError, RwkvError, UsageError
from rwkvcli.services import hub_cache
from rwkvcli.services.hub_blobs import fetch
from rwkvcli.services.hub_errors import as_our_errors, endpoint, retried
from rwkvcli.services.names import Reference
from rwkvcli.services.watching import Watcher

_HEADER_MAX = 100_000_000
_SMALL_MAX = 1 << 26
"""Bytes that a file may have whose content is looked at before anything is downloaded."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    size: int
    etag: str
    """Its checksum: SHA-256 of large files, Git's hash of small ones."""


def list_files(reference: Reference) -> list[RemoteFile]:
    """The files of a repository on the Hub, by name, at the revision of `reference`."""
    from huggingface_hub import HfApi, __version__
    from huggingface_hub.hf_api import RepoFile

    def listed() -> list[object]:
        return list(
            HfApi().list_repo_tree(
                reference.repo, recursive=True, revision=reference.revision, repo_type=reference.kind
            )
        )

    asks_again = re.match(r"(0|1|2\.0)\.", __version__) is None  # the library by itself, for the first page
    with _quiet_library(), as_our_errors(reference), _understood():
        tree = listed() if asks_again else retried(listed, Watcher())
        found = [
            RemoteFile(item.path, item.size, item.lfs.sha256 if item.lfs is not None else item.blob_id)
            for item in tree
            if isinstance(item, RepoFile)
        ]
        for item in found:
            if not isinstance(item.path, str) or type(item.size) is not int or not isinstance(item.etag, str):
                raise TypeError("an entry of other types")
    return sorted(found, key=lambda item: item.path)


def describe(reference: Reference, watcher: Watcher | None = None) -> RemoteFile:
    """Size and checksum of the file that `reference` names."""
    assert reference.file is not None
    with _quiet_library(), as_our_errors(reference):
        about = _metadata(reference, watcher or Watcher())
        return RemoteFile(reference.file, about.size or 0, about.etag)


def download(reference: Reference, watcher: Watcher | None = None) -> Path:
    """Download the file that `reference` names unless its newest version is here, and return its path."""
    from huggingface_hub import hf_hub_download, hf_hub_url

    assert reference.file is not None
    watcher = watcher or Watcher()
    repo, file, revision, kind = reference.repo, reference.file, reference.revision, reference.kind
    with _quiet_library(), as_our_errors(reference):
        about = _metadata(reference, watcher)
        here = hub_cache.cached_path(Reference(repo, file, about.commit_hash, kind))
        if here is None or about.size not in (None, here.stat().st_size):
            url = hf_hub_url(repo, file, revision=about.commit_hash, repo_type=kind)
            folder = hub_cache.repository_folder(repo, kind)
            fetch(url, folder, file, about, str(reference), watcher)
        cache = str(hub_cache.hub_cache())
        path = Path(
            retried(
                lambda: hf_hub_download(repo, file, revision=revision, repo_type=kind, cache_dir=cache),
                watcher,
            )
        )
        snapshot = hub_cache.repository_folder(repo, kind) / "snapshots" / about.commit_hash
        hub_cache.note_etag(snapshot / file, about.etag)
        return path


def content(reference: Reference, about: RemoteFile, watcher: Watcher | None = None) -> bytes:
    """The bytes of a small file, from the cache if they are there; nothing is kept. Raises FormatError if it is large."""
    from huggingface_hub import hf_hub_url

    folder = hub_cache.repository_folder(reference.repo, reference.kind)
    blob = folder / "blobs" / about.etag
    for here in (blob, *hub_cache.same_bytes(folder, about.etag, about.size)):
        if here.is_file():
            return here.read_bytes()
    name = Reference(reference.repo, about.path, reference.revision)
    if about.size == 0:
        return b""
    if about.size > _SMALL_MAX:
        raise FormatError(f"{name} is too large for what it is called")
    url = hf_hub_url(reference.repo, about.path, revision=reference.revision, repo_type=reference.kind)
    with _quiet_library(), as_our_errors(name):
        return retried(lambda: _bytes_of(url, 0, about.size), watcher or Watcher())


@contextlib.contextmanager
def header_only(reference: Reference, watcher: Watcher | None = None) -> Iterator[Path]:
    """A stand-in for a safetensors file on the Hub that was not downloaded: its size and header, and a hole for the data.

    The header is all that is fetched. The file is gone after the block. Raises FormatError for what is no
    safetensors file.
    """
    from huggingface_hub import hf_hub_url

    assert reference.file is not None
    with _quiet_library(), as_our_errors(reference):
        about = _metadata(reference, watcher or Watcher())
        if about.size is None or about.size < 8:
            raise FormatError(f"{reference} is too short for a safetensors file")
        url = hf_hub_url(reference.repo, reference.file, revision=about.commit_hash, repo_type=reference.kind)
        (length,) = struct.unpack("<Q", _bytes_of(url, 0, 8))
        if length > min(_HEADER_MAX, about.size - 8):
            raise FormatError(f"{reference} is not a safetensors file")
        header = _bytes_of(url, 8, 8 + length)
    with tempfile.TemporaryDirectory(prefix="rwkv-") as folder:
        path = Path(folder) / Path(reference.file).name
        with path.open("wb") as file:
            make_sparse(file.fileno())
            file.write(struct.pack("<Q", length) + header)
            file.truncate(about.size)
        try:
            yield path
        except RwkvError as error:  # the stand-in's path says nothing to anybody
            error.args = (str(error).replace(str(path), str(reference)),)
            raise


def _metadata(reference: Reference, watcher: Watcher) -> Any:
    """What the Hub says of a file without sending it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    assert reference.file is not None
    _check_name(reference, reference.file)
    url = hf_hub_url(reference.repo, reference.file, revision=reference.revision, repo_type=reference.kind)
    with _understood():
        about = retried(lambda: get_hf_file_metadata(url), watcher)
    if about.etag is None or about.commit_hash is None:
        raise _no_hub()
    if not hub_cache.is_etag(about.etag):  # it becomes a file's name
        raise NetworkError(f"{endpoint()} names no usable checksum for {reference}")
    return about


def _check_name(reference: Reference, file: str) -> None:
    """Raise UsageError for a file that the library would refuse to keep, after all of it was downloaded."""
    steps = file.split("/")
    if (
        file[:1] in ("/", "\\")
        or ".." in file.replace("\\", "/").split("/")
        or any(PureWindowsPath(step).anchor for step in steps)
    ):
        raise UsageError(
            f"{reference} has a name that huggingface_hub keeps no file under",
            hint="its owner would have to rename it",
        )
    if sys.platform == "win32" and not all(map(is_name_on_windows, steps)):
        raise UsageError(
            f"{reference} has a name that Windows allows no file", hint="its owner would have to rename it"
        )


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Turn what the library stumbles over in the answers of something else than a Hub into NetworkError: the page that
    a network asks for a password with, the wrong address of a mirror.
    """
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, errors.HFValidationError):  # some of which are ValueErrors too
        raise
    except UnicodeEncodeError as error:  # of a header
        raise UsageError(
            "the token for the Hub has characters that no token has", hint="check HF_TOKEN"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _no_hub() from error
    except Exception as error:
        if type(error).__name__ == "InvalidURL":  # httpx's
            raise _no_hub() from error
        raise


def _no_hub() -> NetworkError:
    return NetworkError(f"{endpoint()} does not answer like a Hugging Face Hub", hint="check HF_ENDPOINT")


def _bytes_of(url: str, begin: int, end: int) -> bytes:
    """The bytes [begin, end) of a file on the Hub, by a range request; a server that ignores it is cut off."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    found = bytearray()
    with http_stream_backoff("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else begin
        for chunk in response.iter_bytes(1 << 16):
            found += chunk
            if len(found) >= skipped + end - begin:
                break
    wanted = bytes(found[skipped : skipped + end - begin])
    if len(wanted) != end - begin:
        raise NetworkError("the Hub sent less than was asked for", hint="try again")
    return wanted


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """The library neither logs nor draws bars: what happens is told to the watcher and by errors."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()
