"""Reads pickled arrays of bytes without running any code that a pickle names.

The CIFAR batches are pickles of dictionaries, lists, strings and arrays of unsigned bytes. Only the
names those need are resolved, and each to an inert stand-in written here, never to NumPy's own
functions: a pickle can then build nothing but plain data.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from fskd.data.datasets.files import one_line
from fskd.errors import DataError


class PickledDtype:
    """Stands in for ``numpy.dtype``: keeps the type's code and ignores the rest."""

    def __init__(self, code: str | bytes, *_flags: object) -> None:
        self.code = as_text(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about single bytes."""


class PickledArray:
    """Stands in for ``numpy.ndarray``: keeps the state of the array until it is checked."""

    def __init__(self, *_placeholder: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_uint8(self) -> np.ndarray:
        """The array; ValueError if it is not one of unsigned bytes with a sound shape."""
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            raise ValueError("an array has no contents")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, PickledDtype) or dtype.code != "u1":
            raise ValueError("an array is not of unsigned bytes")
        # With encoding="latin1" the byte strings of Python 2 arrive as text.
        content = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(content, bytes):
            raise ValueError("the contents of an array are no bytes")
        if math.prod(shape) != len(content):
            raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r} is not used by arrays")
    return text.encode("latin1")


# Names as NumPy 1 and NumPy 2 write them. `_reconstruct` makes the array that a state then fills.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): PickledDtype,
    ("numpy", "ndarray"): PickledArray,
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(f"it asks for {module}.{name}, which a data file has no use for")
        return _ALLOWED[module, name]


def read_pickle(content: bytes, path: str) -> dict[str, Any]:
    """Reads a pickled dictionary of plain values and arrays of bytes.

    Args:
        content: The pickle.
        path: Where it comes from, used in messages.

    Returns:
        The dictionary, its keys as text; arrays are ``PickledArray``.

    Raises:
        DataError: The pickle is damaged, names any other class or function, or is no dictionary.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # A damaged pickle may fail in any way.
        raise DataError(f"{path} cannot be read as a pickle: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no dictionary")
    return {as_text(key): value for key, value in found.items()}


def as_text(value: object) -> str:
    """Text of a string that Python 2 or 3 may have written as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
