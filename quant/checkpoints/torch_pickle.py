"""The pickle inside a .pth file, interpreted without running anything.

A pickle is a program for a stack machine. This module runs the part of that language that torch needs to
write a dict of tensors, on a machine of its own: names of globals are compared with a short list and never
imported, the listed functions only build the records below, and every other global or code-running opcode is
refused by name. `pickletools` takes the opcodes apart; the stack machine is here.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from quant.errors import FormatError, UnsafePickle, UnsupportedModel, quoted

MAX_PICKLE = 16 << 20
"""Longest pickle accepted, in bytes. The largest released model has about 300 kB."""
MAX_OPCODES = 1_000_000
"""Most opcodes executed; bounds time (seconds) and memory (some hundred bytes each).

The largest released model needs about 100,000.
"""
MAX_RANK = 16

_STORAGES = {
    "torch.FloatStorage": "f32", "torch.HalfStorage": "f16", "torch.BFloat16Storage": "bf16",
    "torch.DoubleStorage": "f64", "torch.LongStorage": "i64", "torch.IntStorage": "i32",
    "torch.ShortStorage": "i16", "torch.CharStorage": "i8", "torch.ByteStorage": "u8",
    "torch.BoolStorage": "bool", "torch.ComplexFloatStorage": "c64", "torch.ComplexDoubleStorage": "c128",
}  # fmt: skip
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_PARAMETER_WITH_STATE = "torch._utils._rebuild_parameter_with_state"
_ALLOWED = {*_STORAGES, _ORDERED_DICT, _TENSOR, _PARAMETER, _PARAMETER_WITH_STATE}

_UNREADABLE = {
    "torch._utils._rebuild_tensor_v3": "tensors of an unsupported dtype (8-bit floats or the like)",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without data (of torch's meta device)",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_qtensor": "tensors of an unsupported dtype (quantized by torch)",
}
"""Functions of torch that are harmless, and what a file that needs them holds."""

_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLING = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


class StorageRef(NamedTuple):
    """A storage: member `data/<key>` of the archive, `numel` elements of `dtype`."""

    dtype: str
    key: str
    numel: int


class TensorRef(NamedTuple):
    """A strided view of a storage; offset and strides count elements. Not yet checked against the storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Global(NamedTuple):
    """An allowed global, by its dotted name only."""

    name: str


class _Mark:
    """Where a MARK opcode stood; never leaves the machine."""


_MARK = _Mark()


def load(data: bytes, where: str) -> Any:
    """The object that the pickle `data` describes: dict, list, tuple, TensorRef and plain values.

    Raises UnsafePickle (a global or opcode that could run code), UnsupportedModel (tensors of other kinds) and
    FormatError (malformed, or past a limit); `where` names the file in messages.
    """
    if len(data) > MAX_PICKLE:
        raise FormatError(f"{where}: the pickle is {len(data)} bytes long; the limit is {MAX_PICKLE}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser warns of odd escapes in old-style strings
        return _run(data, where)


def _run(data: bytes, where: str) -> Any:
    machine = _Machine(where)
    opcodes = pickletools.genops(data)
    while True:
        try:
            opcode, argument, _ = next(opcodes)
        except StopIteration:
            raise FormatError(f"{where}: the pickle has no end") from None
        except (
            Exception
        ) as error:  # a parser of hostile bytes: whatever it stumbles over, the pickle is malformed
            raise FormatError(f"{where}: the pickle is malformed ({quoted(str(error))})") from None
        machine.spend(1)
        if opcode.name == "STOP":
            return machine.result()
        machine.step(opcode.name, argument)


class _Machine:
    """Stack, memo and the opcodes.

    A dict's keys are strings or small integers, so nothing nested is ever hashed.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.spent = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.handlers: dict[str, Callable[[Any], None]] = {
            "NONE": lambda _: self.push(None),
            "NEWTRUE": lambda _: self.push(True),
            "NEWFALSE": lambda _: self.push(False),
            "MARK": lambda _: self.push(_MARK),
            "POP": lambda _: self.stack.pop() if self.stack else self.fail("an empty stack"),
            "POP_MARK": self.drop_to_mark,
            "EMPTY_TUPLE": lambda _: self.push(()),
            "EMPTY_LIST": lambda _: self.push([]),
            "EMPTY_DICT": lambda _: self.push({}),
            "TUPLE": lambda _: self.push(tuple(self.pop_to_mark())),
            "LIST": lambda _: self.push(self.pop_to_mark()),
            "DICT": lambda _: self.push(self.set_items({}, self.pop_to_mark())),
            "APPEND": lambda _: self.append([self.pop()]),
            "APPENDS": lambda _: self.append(self.pop_to_mark()),
            "SETITEM": lambda _: self.set_item(),
            "SETITEMS": lambda _: self.extend_dict(self.pop_to_mark()),
            "GLOBAL": lambda name: self.push(self.find_global(name.replace(" ", "."))),
            "STACK_GLOBAL": lambda _: self.stack_global(),
            "BINPERSID": lambda _: self.push(self.storage(self.pop())),
            "REDUCE": lambda _: self.reduce(),
            "BUILD": lambda _: self.build(),
            "MEMOIZE": lambda _: self.put(len(self.memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self.put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self.get),
            **dict.fromkeys(_CONSTANTS, self.push),
            **{name: self.tuple_of(size) for name, size in _TUPLES.items()},
            **{name: lambda _: None for name in ("PROTO", "FRAME")},
        }

    def spend(self, opcodes: int) -> None:
        """Count opcodes, or work that is worth as many."""
        self.spent += opcodes
        if self.spent > MAX_OPCODES:
            raise FormatError(f"{self.where}: the pickle has more than {MAX_OPCODES} opcodes")

    def step(self, name: str, argument: Any) -> None:
        handler = self.handlers.get(name)
        if handler is not None:
            handler(argument)
        elif name in _CALLING:
            target = f" {quoted(str(argument).replace(' ', '.'))}" if name == "INST" else ""
            raise UnsafePickle(f"{self.where}: the pickle builds an object{target} (opcode {name}): refused")
        else:
            self.fail(f"opcode {name}")

    def fail(self, what: str) -> Any:
        raise FormatError(f"{self.where}: the pickle is not a dict of tensors ({what})")

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            self.fail("it does not end with one value")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("an empty stack")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            value = self.stack.pop()
            if value is _MARK:
                items.reverse()
                return items
            items.append(value)
        return list(self.fail("no mark on the stack"))

    def drop_to_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def tuple_of(self, size: int) -> Callable[[Any], None]:
        def handler(_: Any) -> None:
            items = [self.pop() for _ in range(size)]
            self.push(tuple(reversed(items)))

        return handler

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.top()

    def get(self, index: Any) -> None:
        if int(index) not in self.memo:
            self.fail("a memo entry that was never stored")
        self.push(self.memo[int(index)])

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            self.fail("an append to something that is no list")
        target.extend(items)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.extend_dict([key, value])

    def extend_dict(self, items: list[Any]) -> None:
        self.set_items(self.top(), items)

    def set_items(self, target: Any, items: list[Any]) -> Any:
        if not isinstance(target, dict) or len(items) % 2:
            self.fail("an item set on something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) and not (type(key) is int and abs(key) < 1 << 63):
                self.fail("a dict key that is neither a string nor a small integer")
            if key in target:
                raise FormatError(f"{self.where}: key {quoted(str(key))} appears twice in the pickle")
            target[key] = value
        return target

    def find_global(self, name: str) -> _Global:
        if name in _UNREADABLE:
            raise UnsupportedModel(
                f"{self.where} holds {_UNREADABLE[name]}",
                hint="save it with plain tensors of float32, float16 or bfloat16",
            )
        if name not in _ALLOWED:
            raise UnsafePickle(
                f"{self.where}: the pickle refers to {quoted(name)}: refused",
                hint="a weights file needs no such thing; do not open it with tools that run pickles",
            )
        return _Global(name)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.fail("a global that is not named by strings")
        self.push(self.find_global(f"{module}.{name}"))

    def storage(self, identity: Any) -> StorageRef:
        """torch's persistent id: ("storage", storage type, key, location, number of elements)."""
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            self.fail("an unknown kind of storage")
        _, kind, key, _, count = identity
        if not isinstance(kind, _Global) or kind.name not in _STORAGES:
            self.fail("an unknown kind of storage")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            self.fail("a malformed storage")
        return StorageRef(_STORAGES[kind.name], key, count)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            self.fail("a call of something that is no function")
        self.push(self.call(function.name, arguments))

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == _ORDERED_DICT and not arguments:
            return {}
        if name == _ORDERED_DICT and len(arguments) == 1 and isinstance(arguments[0], list):
            pairs = arguments[0]
            self.spend(len(pairs))  # one list can be given to many calls
            if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                return self.set_items({}, [value for pair in pairs for value in pair])
        if name == _TENSOR and len(arguments) in (6, 7):
            return self.tensor(*arguments[:4])
        if name in (_PARAMETER, _PARAMETER_WITH_STATE) and arguments and isinstance(arguments[0], TensorRef):
            return arguments[0]
        return self.fail(f"a call of {name} with unknown arguments")

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> TensorRef:
        numbers = (offset, *shape, *stride) if type(shape) is tuple and type(stride) is tuple else (None,)
        if not isinstance(storage, StorageRef) or not all(
            type(n) is int and 0 <= n < 1 << 62 for n in numbers
        ):
            self.fail("a malformed tensor")
        if len(shape) != len(stride) or len(shape) > MAX_RANK:
            self.fail("a tensor with malformed shape or strides")
        return TensorRef(storage, offset, shape, stride)

    def build(self) -> None:
        """State for an object:

        Torch puts version notes (`_metadata`) on its OrderedDict; they are dropped.
        """
        self.pop()
        if type(self.top()) is not dict:
            raise UnsafePickle(f"{self.where}: the pickle sets an object's state (opcode BUILD): refused")
