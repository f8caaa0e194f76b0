"""Checkpoints whose pickles torch.save would not write."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import torch


def save(path: Path, content: object, *, zipped: bool = True) -> Path:
    """In the container of today, or of the time before torch 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class Running:
    """Pickled as a call of `function(*arguments)`, whose result then gets `state` as its attributes."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


def save_pickle(path: Path, pickle: bytes) -> Path:
    """A zip container with these opcodes as its pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickle), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"c/{name}", content)
    return path


def text(letters: str) -> bytes:
    """The opcode that puts a string on the stack."""
    encoded = letters.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded
