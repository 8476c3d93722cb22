"""One tree of errors for both packages."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import quant.errors
from rwkvcli import errors

EXIT_CODES = {
    "UsageError": 2,
    "MissingExtra": 2,
    "SourceNotFound": 3,
    "ModelNotFound": 3,
    "NetworkError": 3,
    "FormatError": 4,
    "UnsupportedModel": 4,
    "UnsafePickle": 4,
    "StateMismatch": 4,
    "DeviceUnavailable": 5,
    "OutOfMemory": 5,
    "NoSpace": 5,
    "Cancelled": 130,
    "TimedOut": 124,
}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_exit_codes(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.RwkvError)
    assert kind.exit_code == EXIT_CODES[name]
    assert name in errors.__all__
    assert name in (errors.__doc__ or "")


def test_every_error_of_quant_is_caught_and_has_a_name_here() -> None:
    kinds = [
        kind for _, kind in inspect.getmembers(quant.errors, inspect.isclass) if issubclass(kind, Exception)
    ]
    here = [getattr(errors, name) for name in errors.__all__]
    assert quant.errors.QuantError in kinds
    for kind in kinds:
        assert issubclass(kind, errors.RwkvError)
        assert kind in here


def test_message_and_hint() -> None:
    error = errors.StateMismatch("a.state: of another model", hint="make a new one")
    assert (str(error), error.hint) == ("a.state: of another model", "make a new one")
    assert errors.RwkvError("x").hint is None


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = errors.MissingExtra("torch", "--device torch")
    assert 'pip install "rwkvcli[torch]"' in str(error)
    assert str(error).startswith("--device torch ")


@pytest.mark.parametrize(
    "error",
    [
        errors.MissingExtra("torch", "--device torch"),
        errors.NotUtf8(3),
        errors.StateMismatch("a.state: of another model", hint="make a new one"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_processes(error: errors.RwkvError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (str(error), vars(error))
