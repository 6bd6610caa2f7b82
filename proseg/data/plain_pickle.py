"""Pickles that can build nothing but arrays, dicts, lists, tuples, strings, bytes and numbers.

A pickle is a program, and Python's own unpickler runs it. This one interprets the same instructions, and nothing that
they say is called: what a pickle asks for by name is refused with that name unless it is part of how numpy pickles
arrays, dtypes and scalars, and those are built here, from values that have been checked.

Pixels stay in the file. An array is known by its type, its shape and where its bytes lie, so that a file of any size
is looked through in little memory, and what a small file can ask for is bounded: its instructions are counted, what
they read must be there, and an array must be as large as its bytes.
"""

import math
import os
import pickletools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from proseg.errors import DataError

LARGEST_FILE = 8 * 2**30
"""bytes"""
MOST_INSTRUCTIONS = 4_000_000
"""A slice of LIDC-IDRI takes about a hundred. Each builds at most one small object beside what it reads."""
LARGEST_PIECE = 256 * 2**20
"""bytes that one instruction may read: twice the largest array of an image"""
MOST_TEXT = 2 * 2**30
"""bytes of memory for strings and long numbers; up to protocol 2 the elements of arrays are strings"""
LARGEST_SIDE = 4096
MOST_AXES = 3


class Refused(Exception):
    """Why the pickle is not read; whoever reads it adds the file's name."""


@dataclass(frozen=True)
class Bytes:
    """Bytes that lie in the file."""

    start: int
    length: int


@dataclass(frozen=True)
class Encoded:
    """Bytes as pickles of protocol 2 and below hold them: the text of which they are the Latin-1 code."""

    text: str

    @property
    def length(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class StoredArray:
    """An array whose elements have not been read."""

    dtype: np.dtype
    shape: tuple[int, ...]
    order: str
    """C or F"""
    data: Bytes | Encoded

    def read(self, path: Path) -> np.ndarray:
        """The array, from the file that it was found in; raises DataError where that is no longer what it was."""
        content = _read(path, self.data) if isinstance(self.data, Bytes) else _encoded(path, self.data)
        return np.frombuffer(content, self.dtype).reshape(self.shape, order=self.order)  # type: ignore[call-overload]


def _read(path: Path, data: Bytes) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(data.start)
            content = file.read(data.length)
    except OSError as error:
        raise DataError(f"{path} can no longer be read ({error.strerror})") from error
    if len(content) != data.length:
        raise DataError(f"{path} became shorter while it was read; start again")
    return content


def _encoded(path: Path, data: Encoded) -> bytes:
    try:
        return data.text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise DataError(f"{path} is damaged: an array holds the character {error.object[error.start]!r}") from None


def read(path: Path) -> Any:
    """What a pickle holds, with a `StoredArray` for every array and `Bytes` or `Encoded` for bytes.

    Raises:
        DataError: it cannot be read, is damaged or too large, or asks for something that it may not build.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if not 0 < size <= LARGEST_FILE:
                raise Refused(f"it has {size} bytes, where 1 to {LARGEST_FILE} were expected")
            return _Machine(_Content(file, size)).run()
    except Refused as error:
        raise DataError(f"{path} is not read: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


# What numpy's pickles ask for by name


class _Named:
    """Something that a pickle asked for by name, and may have."""

    def __init__(self, name: str):
        self.name = name


class _Dtype:
    """A dtype; its byte order follows in a state of its own."""

    def __init__(self, value: np.dtype):
        self.value = value

    def set_state(self, state: object) -> None:
        match state:
            case (_, "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.value = self.value.newbyteorder(order)
            case _:
                raise Refused("it holds elements of a structured type, where numbers were expected")


class _Array:
    """An array; what it is made of follows in a state of its own."""

    def __init__(self, value: StoredArray | None = None):
        self.value = value

    def set_state(self, state: object) -> None:
        match state:
            case (_, tuple(shape), _Dtype(value=dtype), bool(fortran), data):
                self.value = _stored(dtype, shape, "F" if fortran else "C", _bytes(data))
            case _:
                raise Refused("it holds an array in a form that numpy does not write")


def _stored(dtype: np.dtype, shape: tuple, order: str, data: Bytes | Encoded) -> StoredArray:
    if len(shape) > MOST_AXES or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in shape):
        raise Refused(f"it holds an array that has not 1 to {MOST_AXES} axes of 1 to {LARGEST_SIDE} elements")
    if data.length != math.prod(shape) * dtype.itemsize:
        raise Refused(f"it holds an array of shape {shape} and type {dtype}, but {data.length} bytes for it")
    return StoredArray(dtype, shape, order, data)


def _bytes(data: object) -> Bytes | Encoded:
    match data:
        case Bytes() | Encoded():
            return data
        case str():  # as Python 2 wrote them
            return Encoded(data)
    raise Refused("it holds an array or a number without its bytes")


def _reconstruct(_: "_Machine", arguments: tuple) -> _Array:
    match arguments:
        case (_Named(name="numpy.ndarray"), (0,), _):
            return _Array()
    raise Refused("it holds an array in a form that numpy does not write")


def _from_buffer(_: "_Machine", arguments: tuple) -> _Array:
    match arguments:
        case (data, _Dtype(value=dtype), tuple(shape), "C" | "F" as order):
            return _Array(_stored(dtype, shape, order, _bytes(data)))
    raise Refused("it holds an array in a form that numpy does not write")


def _dtype(_: "_Machine", arguments: tuple) -> _Dtype:
    match arguments:
        case (str(code), *_) if re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,3})", code):
            return _Dtype(np.dtype(code))
        case (str(code), *_):
            raise Refused(f"it holds elements of type {code[:80]!r}, where numbers were expected")
    raise Refused("it holds elements of a type in a form that numpy does not write")


def _scalar(machine: "_Machine", arguments: tuple) -> object:
    """A number or a string, as Python's own."""
    match arguments:
        case (_Dtype(value=dtype), data) if _bytes(data).length == dtype.itemsize:
            return np.frombuffer(machine.bytes_of(_bytes(data)), dtype)[0].item()
    raise Refused("it holds a number in a form that numpy does not write")


def _encode(_: "_Machine", arguments: tuple) -> Encoded:
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            return Encoded(text)
    raise Refused("it holds bytes in a form that Python does not write")


BUILDERS: dict[str, Callable[["_Machine", tuple], Any] | None] = {
    "numpy.ndarray": None,  # named, never called
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
"""All that a pickle may ask for by name, and what it gets. (numpy renamed `core` to `_core`.)"""


# The instructions


class _Content:
    """A file of which no more is read than there is: asked for more, a file object sets the memory aside first."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.file.seek(0)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, count: int) -> bytes:
        if count > LARGEST_PIECE:
            raise Refused(f"one of its instructions reads {count} bytes")
        return self.file.read(min(count, self.size - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline(LARGEST_PIECE)

    def at(self, start: int, length: int) -> bytes:
        before = self.file.tell()
        self.file.seek(start)
        found = self.file.read(length)
        self.file.seek(before)
        return found


class _Machine:
    """The stack machine whose program a pickle is."""

    def __init__(self, content: _Content):
        self.content = content
        self.text = 0
        """Memory that strings and numbers of the program have taken."""
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """What lay on the stack at each mark that is still open."""
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            for count, (opcode, argument, position) in enumerate(pickletools.genops(cast("IO[bytes]", self.content))):
                if count >= MOST_INSTRUCTIONS:
                    raise Refused(f"it has more than {MOST_INSTRUCTIONS} instructions, many times what the data take")
                if opcode.name == "STOP":
                    return _finished(self.stack.pop())
                self._step(opcode.name, argument, cast(int, position))
        except (ValueError, IndexError, KeyError) as error:  # of genops, the stack, the memo
            raise Refused(f"it is no pickle, or damaged ({str(error)[:200]})") from None
        raise Refused("it is cut short")

    def bytes_of(self, data: Bytes | Encoded) -> bytes:
        if isinstance(data, Encoded):
            return data.text.encode("latin-1")
        return self.content.at(data.start, data.length)

    def _step(self, name: str, argument: Any, position: int) -> None:
        if name in VALUES:
            self._count(argument)
            self.stack.append(argument)
        elif name in BYTES:
            self.stack.append(Bytes(position + BYTES[name], len(argument)))
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self._push_tuple(self._pop(TUPLES[name]))
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name not in IGNORED:
            raise Refused(f"it uses the instruction {name}, which plain data do not need")

    def _count(self, value: object) -> None:
        self.text += sys.getsizeof(value)
        if self.text > MOST_TEXT:
            raise Refused(
                f"it holds more than {MOST_TEXT} bytes of text; data of this size take pickle protocol 3 or later"
            )

    def _pop(self, count: int) -> list[Any]:
        """The topmost values, the last of them on top."""
        if count > len(self.stack):
            raise IndexError("a value is missing")
        cut = len(self.stack) - count
        items = self.stack[cut:]
        del self.stack[cut:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_to_mark()

    def pop_mark(self, _: None) -> None:
        self._pop_to_mark()

    def duplicate(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, _: None) -> None:
        self._push_tuple(self._pop_to_mark())

    def list_of(self, _: None) -> None:
        items = self._pop_to_mark()
        self.stack.append([])
        self._extend(items)

    def dict_of(self, _: None) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._set(items)

    def append(self, _: None) -> None:
        self._extend(self._pop(1))

    def append_all(self, _: None) -> None:
        self._extend(self._pop_to_mark())

    def set_item(self, _: None) -> None:
        self._set(self._pop(2))

    def set_items(self, _: None) -> None:
        self._set(self._pop_to_mark())

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._ask_for(module, name)

    def name_on_stack(self, _: None) -> None:
        self._ask_for(*self._pop(2))

    def call(self, _: None) -> None:
        asked, arguments = self._pop(2)
        builder = BUILDERS[asked.name] if isinstance(asked, _Named) else None
        if builder is None or not isinstance(arguments, tuple):
            raise Refused("it calls something that cannot be called")
        self.stack.append(builder(self, arguments))

    def build(self, _: None) -> None:
        (state,) = self._pop(1)
        target = self.stack[-1]
        if not isinstance(target, _Dtype | _Array):
            raise Refused("it gives a state to something that has none")
        target.set_state(state)

    def _push_tuple(self, items: list[Any]) -> None:
        self.stack.append(tuple(_finished(item) for item in items))

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise Refused("it adds items to something that is no list")
        self.stack[-1].extend(_finished(item) for item in items)

    def _set(self, items: list[Any]) -> None:
        """Keys and values in turn. Keys are strings and numbers: to look for a tuple of tuples may take for ever."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("it sets keys of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int) or (isinstance(key, int) and key.bit_length() > 64):
                raise Refused(f"it has a key of type {type(key).__name__}, where strings or numbers were expected")
            if key in target:
                raise Refused(f"it has the key {repr(key)[:80]} twice")
            target[key] = _finished(value)

    def _ask_for(self, module: object, name: object) -> None:
        asked = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "something without a name"
        if asked not in BUILDERS:
            raise Refused(
                f"it asks for {asked[:200]}, and a pickle that asks for more than arrays of numbers can run any program"
            )
        self.stack.append(_Named(asked))


def _finished(value: object) -> object:
    if not isinstance(value, _Array):
        return value
    if value.value is None:
        raise Refused("it holds an array without its elements")
    return value.value


VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
"""Instructions that push their argument."""
BYTES = {"SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9, "BYTEARRAY8": 9}
"""How far behind the instruction its bytes begin."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark, "DUP": _Machine.duplicate,
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put, "MEMOIZE": _Machine.put,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_of, "LIST": _Machine.list_of, "DICT": _Machine.dict_of,
    "APPEND": _Machine.append, "APPENDS": _Machine.append_all,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.name_on_stack, "REDUCE": _Machine.call, "BUILD": _Machine.build,
}  # fmt: skip
IGNORED = {"PROTO", "FRAME"}
