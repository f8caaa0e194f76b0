"""Masks of the SAIAPR regions: MATLAB files in which the object is where the value is zero."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refcli.contracts.example import RLE
from refcli.data.sources.folders import list_files, read_file
from refcli.data.sources.record import LazyMask
from refcli.errors import DataError
from refcli.geometry.masks import encode_mask

VARIABLE = "segimg_t"
MAX_BYTES = 16 << 20
"""Of one file; those of ReferItGame have some kilobytes."""
MAX_PIXELS = 64_000_000
"""Refuses a small file that inflates to an enormous array; the photographs have 480 x 360 pixels."""


@dataclass(frozen=True)
class MatMasks:
    """The mask files of a folder or archive."""

    source: Path
    names: Mapping[str, str]
    """Region -> name inside `source`."""

    @classmethod
    def find(cls, path: Path) -> MatMasks:
        """List the masks of ReferItGame's `mask` folder, of the folder that holds it, or of an archive of either.

        Raises:
            DataError: there is none.
        """
        source = path / "mask" if (path / "mask").is_dir() else path
        return cls(source, list_files(source, ".mat"))

    def mask(self, region: str) -> LazyMask | None:
        """A function that reads the region's mask, or None where it has no file."""
        name = self.names.get(region)
        return None if name is None else partial(read_mat_mask, self.source, name)


def read_mat_mask(source: Path, name: str) -> RLE:
    """The mask in one MATLAB file: the object is where `segimg_t` is 0, and the rest of the image where it is not.

    Raises:
        DataError: the file is broken, has no such variable, or that is not a matrix of numbers.
    """
    where = f"{source}: {name}"
    values = _matrix(read_file(source, name, max_bytes=MAX_BYTES), where)
    if values.dtype.kind not in "biuf":
        raise DataError(f"{VARIABLE} does not hold numbers but {values.dtype}", where=where)
    return encode_mask(values == 0)


def _matrix(data: bytes, where: str) -> np.ndarray[Any, Any]:
    from scipy.io import loadmat, whosmat

    try:
        shape = {variable: shape for variable, shape, _ in whosmat(io.BytesIO(data))}.get(VARIABLE)
        is_of_image_size = shape is not None and len(shape) == 2 and 0 < math.prod(shape) <= MAX_PIXELS
        found = loadmat(io.BytesIO(data), variable_names=[VARIABLE]) if is_of_image_size else {}
    except Exception as error:  # scipy's reader meets broken bytes with IndexError, TypeError, zlib.error and others
        raise DataError(f"this MATLAB file cannot be read: {error}", where=where) from error
    if shape is None:
        raise DataError(f"there is no variable {VARIABLE} in it", where=where)
    if not is_of_image_size:
        raise DataError(f"{VARIABLE} is not a matrix of an image's size but has the shape {shape}", where=where)
    return np.asarray(found[VARIABLE])
