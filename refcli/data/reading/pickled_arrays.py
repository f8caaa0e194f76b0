"""Numpy's arrays and numbers in pickles, as lists and plain numbers: numpy's own pickle functions are never called."""

from __future__ import annotations

import math
import re

import numpy as np

from refcli.errors import DataError

BYTES_PER_BYTE = 80
"""Memory of the lists per byte of an array: at most a list of one small number for every byte."""
_NUMBER = re.compile(r"[<>|=]?[biuf][1248]")
_OBJECTS = re.compile(r"O[48]?")
_MAX_DIMENSIONS = 2
_FORM = "the pickle holds numpy values other than numbers, arrays of one or two dimensions and lists of plain data"


class PickledType:
    """A `numpy.dtype` in a pickle: a letter and a size, and the byte order that is set afterwards."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = str(state[1])

    def read(self, content: object, count: int) -> np.ndarray:
        """The numbers in the bytes of an array.

        Raises:
            DataError: the type is no number, or the bytes are not those of so many numbers.
        """
        name = f"{self.order}{self.code}"
        if _NUMBER.fullmatch(name) is None or not isinstance(content, bytes | bytearray):
            raise DataError(_FORM)
        if len(content) != count * np.dtype(name).itemsize:
            raise DataError("a numpy array in the pickle has too many or too few bytes")
        return np.frombuffer(content, name)


class PickledArray(list[object]):
    """A `numpy.ndarray` in a pickle: empty when it is made, then filled as `numpy.ndarray.tolist` would."""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        self[:] = _numbers(content, kind, shape, "F" if is_fortran else "C")


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


def _from_buffer(content: object, kind: object, shape: object, order: object) -> list[object]:
    return _numbers(content, kind, shape, str(order))


def _scalar(kind: object, content: object) -> object:
    return _numbers(content, kind, (1,), "C")[0]


def _numbers(content: object, kind: object, shape: object, order: str) -> list[object]:
    if isinstance(kind, PickledType) and _OBJECTS.fullmatch(kind.code) and isinstance(content, list):
        if shape != (len(content),):
            raise DataError(_FORM)
        return content
    is_shape = isinstance(shape, tuple) and all(type(side) is int and side > 0 for side in shape)
    if isinstance(shape, tuple) and shape[:1] == (0,) and content == b"":
        return []
    if not is_shape or not isinstance(shape, tuple) or not 0 < len(shape) <= _MAX_DIMENSIONS or order not in ("C", "F"):
        raise DataError(_FORM)
    if not isinstance(kind, PickledType):
        raise DataError(_FORM)
    values = kind.read(content, math.prod(shape))
    nested: list[object] = values.reshape(shape, order="F" if order == "F" else "C").tolist()
    return nested


_ARRAY = "numpy.ndarray"
"""Stands for the class, which is only ever an argument."""
GLOBALS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): PickledType,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""Module and name in a pickle -> what is used in its place."""
