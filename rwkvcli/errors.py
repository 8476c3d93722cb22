"""Every error that this project raises on purpose: one tree, one exit code per kind, an optional hint.

    RwkvError                    1    quant.errors.QuantError by its other name: the base of all below
    ├── UsageError               2    quant.errors.InvalidRequest: the request makes no sense
    │   ├── MissingExtra         2    an optional package is missing; the message has the install line
    │   └── NotUtf8              2    a vocabulary that takes valid text only got something else
    ├── SourceNotFound           3    quant.errors: a file is missing or cannot be read
    │   └── ModelNotFound        3    no such model or state, here or on the Hub
    ├── NetworkError             3    offline, unreachable, not authorised
    ├── FormatError              4    quant.errors: corrupt, truncated or hostile
    │   ├── UnsupportedModel     4    quant.errors: sound, but not something this version runs
    │   └── UnsafePickle         4    quant.errors: a pickle that could run code
    ├── StateMismatch            4    the state of another model
    ├── DeviceUnavailable        5    no such device, driver or kernel
    ├── OutOfMemory              5
    ├── NoSpace                  5    quant.errors: the disk is full
    ├── ThresholdMissed          6    a model is worse than its maker allowed
    ├── LinesFailed              7    some lines of a batch; the others are done
    ├── TimedOut               124    it took longer than the person was willing to wait
    └── Cancelled              130    quant.errors: the user or the caller stopped it

`quant` knows nothing of `rwkvcli`, so the base and the kinds that both packages need live there, and this
module gives them the names of the whole project. `except RwkvError` therefore catches the errors of both
packages. A message is one short line that names the thing; `hint` is one line on what to do about it, or
None; `exit_code` is what a command line ends with. Only `rwkvcli.cli` turns them into text.
"""

from __future__ import annotations

from typing import ClassVar

from quant.errors import (
    Cancelled,
    FormatError,
    NoSpace,
    SourceNotFound,
    UnsafePickle,
    UnsupportedModel,
)
from quant.errors import InvalidRequest as UsageError
from quant.errors import QuantError as RwkvError

__all__ = [
    "Cancelled",
    "DeviceUnavailable",
    "FormatError",
    "LinesFailed",
    "MissingExtra",
    "ModelNotFound",
    "NetworkError",
    "NoSpace",
    "NotUtf8",
    "OutOfMemory",
    "RwkvError",
    "SourceNotFound",
    "StateMismatch",
    "ThresholdMissed",
    "TimedOut",
    "UnsafePickle",
    "UnsupportedModel",
    "UsageError",
]


class MissingExtra(UsageError):
    """`what` needs the optional dependencies `extra`, which are not installed."""

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f'{what} needs packages that are not installed: pip install "rwkvcli[{extra}]"')
        self.extra = extra


class NotUtf8(UsageError):
    """Byte `position` of a text is not UTF-8, and the vocabulary encodes valid text only."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"byte {position} of the text is not UTF-8",
            hint="this model's vocabulary encodes valid text only",
        )
        self.position = position


class ModelNotFound(SourceNotFound):
    """No such model or state file."""


class NetworkError(RwkvError):
    """The network is off, the host cannot be reached, or it refuses."""

    exit_code: ClassVar[int] = 3


class StateMismatch(RwkvError):
    """A state that was made by another model than the one it is given to."""

    exit_code: ClassVar[int] = 4


class DeviceUnavailable(RwkvError):
    """The device, its driver or a kernel for it is not there."""

    exit_code: ClassVar[int] = 5


class OutOfMemory(RwkvError):
    """The model or its state does not fit into memory."""

    exit_code: ClassVar[int] = 5


class ThresholdMissed(RwkvError):
    """What was measured is over a limit that was set; the measurement itself went well."""

    exit_code: ClassVar[int] = 6


class LinesFailed(RwkvError):
    """Some lines of a batch could not be done; each says why in its place, and the others are done."""

    exit_code: ClassVar[int] = 7


class TimedOut(RwkvError):
    """It took longer than allowed; what was written until then is whole."""

    exit_code: ClassVar[int] = 124
