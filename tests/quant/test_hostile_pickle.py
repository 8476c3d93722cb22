"""Pickles that try to run code, or to exhaust the reader: refused, quickly, and nothing happens."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from quant.checkpoints import open_checkpoint
from quant.checkpoints.torch_pickle import MAX_OPCODES, MAX_PICKLE, load
from quant.errors import FormatError, UnsafePickle, UnsupportedModel


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def system(marker: Path) -> Calls:
    return Calls(os.system, f"touch {marker}")


HOSTILE = {
    "os.system": system,
    "eval": lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Calls(exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Calls(open, str(marker), "w"),
    "in a dict": lambda marker: {"a": system(marker)},
    "as a key": lambda marker: {system(marker): 1},
    "nested": lambda marker: Calls(print, Calls(eval, "1"), system(marker)),
    "getattr chain": lambda marker: Calls(getattr, Calls(__import__, "os"), "system"),
    "pickle in pickle": lambda marker: Calls(pickle.loads, pickle.dumps(system(marker))),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", HOSTILE)
def test_code_is_never_run(make_zip: Any, tmp_path: Path, case: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps(HOSTILE[case](marker), protocol)
    with pytest.raises(UnsafePickle, match="the pickle refers to") as caught:
        open_checkpoint(make_zip({"root/data.pkl": data}))
    assert not marker.exists()
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_the_global_is_named() -> None:
    with pytest.raises(UnsafePickle, match=f"refers to {os.system.__module__}.system: refused"):
        load(pickle.dumps(Calls(os.system, "true"), 4), "x")


GLOBALS = [
    b"ctorch.storage\n_load_from_bytes\n",
    b"ctorch\nload\n",
    b"ctorch._utils\n_rebuild_tensor\n",
    b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
    b"ccollections\nOrderedDict.fromkeys\n",
    b"ccollections\ndefaultdict\n",
    b"cbuiltins\ngetattr\n",
    b"c__builtin__\neval\n",
    b"cos\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
]


@pytest.mark.parametrize("opcodes", GLOBALS)
def test_other_globals_are_refused(opcodes: bytes) -> None:
    with pytest.raises(UnsafePickle):
        load(opcodes + b".", "x")


OBJECTS = {
    "INST": b"(ios\nsystem\n.",
    "INST of an allowed name": b"(icollections\nOrderedDict\n.",
    "OBJ": b"(ccollections\nOrderedDict\no.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "BUILD on a global": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__Nsb.",
    "BUILD on a tuple": b")}b.",
}


@pytest.mark.parametrize("case", OBJECTS)
def test_opcodes_that_build_objects_are_refused(case: str) -> None:
    with pytest.raises(UnsafePickle):
        load(OBJECTS[case], "x")


MALFORMED = {
    "empty": b"",
    "no end": b"}",
    "end only": b".",
    "mark only": b"(.",
    "two values": b"}}.",
    "unknown opcode": b"\xff.",
    "pop nothing": b"0.",
    "pop mark nothing": b"1.",
    "tuple without mark": b"t.",
    "tuple of nothing": b"\x85.",
    "tuple over a mark": b"(\x85.",
    "append to a dict": b"}K\x01a.",
    "append to nothing": b"K\x01a.",
    "setitem on a list": b"]K\x01K\x02s.",
    "odd items": b"}(K\x01u.",
    "memo missing": b"h\x05.",
    "memo of nothing": b"q\x05.",
    "reduce a dict": b"})R.",
    "reduce a text": b"X\x02\x00\x00\x00os)R.",
    "reduce without tuple": b"ccollections\nOrderedDict\nK\x01R.",
    "OrderedDict of a number": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "OrderedDict of bad pairs": b"ccollections\nOrderedDict\n]K\x01a\x85R.",
    "storage called": b"ctorch\nFloatStorage\n)R.",
    "rebuild with few arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "rebuild of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(N\x89NtR.",
    "persistent number": b"K\x01Q.",
    "persistent text": b"Pstorage\n.",
    "persistent tuple": b"(K\x01K\x01K\x01K\x01K\x01tQ.",
    "stack global of numbers": b"K\x01K\x02\x93.",
    "duplicate key": b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.",
    "tuple as key": b"})K\x01s.",
    "list as key": b"}]K\x01s.",
    "huge number as key": b"}\x8b\x10\x27\x00\x00" + b"\x7f" * 10_000 + b"K\x01s.",
    "float as key": b"}G\x00\x00\x00\x00\x00\x00\x00\x00K\x01s.",
    "set": b"\x8f.",
    "frozenset": b"(\x91.",
    "bytearray": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "buffer": b"\x97.",
    "text past the end": b"X\xff\xff\xff\x7fabc.",
    "huge text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "negative length": b"T\xff\xff\xff\xffabc.",
    "bad UTF-8": b"X\x01\x00\x00\x00\xff.",
    "bad number": b"Iabc\n.",
    "long number": b"L" + b"9" * 10_000 + b"L\n.",
    "bad text": b"Sabc\n.",
    "bad float": b"Fabc\n.",
    "dup": b"}2.",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pickles_are_refused(case: str) -> None:
    with pytest.raises(FormatError) as caught:
        load(MALFORMED[case], "x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


DEEP = MAX_OPCODES - 10
BOMBS = {
    "nested tuples": b")" + b"\x85" * DEEP + b".",
    "nested tuples as key": b"})" + b"\x85" * DEEP + b"K\x01s.",
    "nested lists": b"]" + b"]" * 1000 + b"a" * 1000 + b".",
    "nested dicts": b"}" + b"K\x00}" * (DEEP // 4) + b"s" * (DEEP // 4) + b".",
    "doubling": b")q\x00" + b"h\x00h\x00\x86q\x00" * 100_000 + b".",
    "a dict in itself": b"}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "a list in itself": b"]q\x00h\x00a.",
    "one list for many dicts": b"]("
    + b"".join(b"X\5\0\0\0%05dK\0\x86" % i for i in range(10_000))
    + b"eq\0ccollections\nOrderedDict\nq\1"
    + b"h\1h\0\x85R0" * 100_000
    + b".",
    "many marks": b"(" * DEEP + b".",
    "many dicts": b"}" * DEEP + b".",
    "large memo number": b"}r\xff\xff\xff\xff.",
    "too many opcodes": b"}0" * MAX_OPCODES + b".",
    "too many bytes": b" " * (MAX_PICKLE + 1),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_end_cleanly(make_zip: Any, case: str) -> None:
    begin = time.monotonic()
    with pytest.raises(FormatError) as caught:
        open_checkpoint(make_zip({"root/data.pkl": BOMBS[case]}))
    assert str(caught.value).isprintable()
    assert time.monotonic() - begin < 60


def test_names_cannot_hurt_the_terminal() -> None:
    with pytest.raises(UnsafePickle) as caught:
        load(b"c\x1b[31m\n" + b"x" * 1000 + b"\n.", "x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("_rebuild_tensor_v3", "unsupported dtype"),
        ("_rebuild_meta_tensor_no_storage", "without data"),
        ("_rebuild_sparse_tensor", "sparse tensors"),
        ("_rebuild_qtensor", "unsupported dtype"),
    ],
)
def test_tensors_of_other_kinds_are_not_called_hostile(function: str, what: str) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        load(b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n" + function.encode() + b"\n)R.", "f")
