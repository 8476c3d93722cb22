"""What errors below the library become; `tests/cli/test_pull.py` has the rest, against a server."""

from __future__ import annotations

import errno

import pytest

from rwkvcli.errors import NetworkError, NoSpace, RwkvError
from rwkvcli.services.hub_errors import as_our_errors
from rwkvcli.services.store import Reference


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/mnt/hub"),
            RwkvError,
            "/mnt/hub: read-only file system",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/mnt"), RwkvError, "/mnt: permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace, "a/b:m.pth: the disk is full"),
        (
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            NetworkError,
            "cannot be reached",
        ),
    ],
)
def test_the_disk_and_the_network_are_told_apart(error: OSError, kind: type, message: str) -> None:
    with pytest.raises(RwkvError) as caught, as_our_errors(Reference("a/b", "m.pth")):
        raise error
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert caught.value.hint is not None and ("HF_HOME" in caught.value.hint) == (kind is not NetworkError)
