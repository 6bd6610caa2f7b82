"""Pickles that can build nothing but arrays, dicts, lists, tuples, strings, bytes and numbers.

A pickle is a program that calls what it names. Here it may name only what numpy's own pickles do, and even that is not
called: stand-ins take its place, which build an array after they have checked its type, shape and bytes. No code of a
pickle runs. A hostile one can still take much memory or time, as it can hold all of its content many times.
"""

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from proseg.errors import DataError

MOST_SIDE, MOST_AXES = 4096, 3


class Refused(Exception):
    """Why the pickle is not read; whoever reads it adds the file's name."""


def read(path: Path) -> Any:
    """What a pickle holds, all of it in memory; arrays are `Array`, to be looked at by `array_of`.

    Raises:
        DataError: it cannot be read, is damaged, takes more memory than there is, or names something it may not build.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin-1").load()
    except Refused as error:
        raise DataError(f"{path} is not read: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except MemoryError:
        raise DataError(f"{path} is not read: its content takes more memory than there is") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError):
        raise DataError(f"{path} is not read: it is no pickle of plain data, or it is damaged or cut short") from None


class Dtype:
    """Stands for a dtype of numbers, or of short strings; its byte order follows as a state."""

    def __init__(self, code: object, *_: object):
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,3})", code):
            raise Refused(f"it holds elements of type {str(code)[:80]!r}, where numbers were expected")
        self.value = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.value = self.value.newbyteorder(order)
            case _:
                raise Refused("it holds elements of a structured type, where numbers were expected")


class Array:
    """Stands for an array, whose content follows as a state."""

    def __init__(self, value: np.ndarray | None = None):
        self.value = value

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, tuple(shape), Dtype(value=dtype), bool(fortran), bytes() | bytearray() | str() as data):
                self.value = _array(data, dtype, shape, "F" if fortran else "C")
            case _:
                raise Refused("it holds an array in a form that numpy does not write")


def array_of(value: object) -> np.ndarray | None:
    """The array that a value read from a pickle is; None where it is none."""
    return value.value if isinstance(value, Array) else None


def _array(data: bytes | bytearray | str, dtype: np.dtype, shape: tuple, order: Any) -> np.ndarray:
    if len(shape) > MOST_AXES or not all(type(side) is int and 0 < side <= MOST_SIDE for side in shape):
        raise Refused(f"it holds an array that has not 1 to {MOST_AXES} axes of 1 to {MOST_SIDE} elements")
    content = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote bytes as a string
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise Refused(f"it holds an array of shape {shape} and type {dtype}, but {len(content)} bytes for it")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> Array:
    match data, dtype, shape, order:
        case bytes() | bytearray(), Dtype(value=kind), tuple(), "C" | "F":
            return Array(_array(data, kind, shape, order))
    raise Refused("it holds an array in a form that numpy does not write")


def _scalar(dtype: object, data: object) -> object:
    """A number or a string, as Python's own."""
    match dtype, data:
        case Dtype(value=kind), bytes() | str():
            return _array(data, kind, (1,), "C")[0].item()
    raise Refused("it holds a number in a form that numpy does not write")


def _encode(text: object, encoding: object) -> bytes:
    """Bytes as protocol 2 and below write them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it holds bytes in a form that Python does not write")
    return text.encode("latin-1")


def _never(*_: object) -> None:
    raise Refused("it calls numpy.ndarray, which numpy's own pickles only name")


BUILDERS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _never,
    "numpy.dtype": Dtype,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
"""All that a pickle may name, and what it gets. (numpy renamed `core` to `_core`.)"""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        if asked not in BUILDERS:
            raise Refused(
                f"it asks for {asked[:200]}, and a pickle that asks for more than arrays of numbers can run any program"
            )
        return BUILDERS[asked]
