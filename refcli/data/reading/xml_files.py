"""XML without document types, entities or external references."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, ParseError
from xml.parsers.expat.errors import codes

from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import fromstring, iterparse  # type: ignore[import-untyped]

from refcli.data.reading.streams import open_binary
from refcli.errors import DataError

_CUT_OFF = frozenset(
    codes[name] for name in ("no element found", "unclosed token", "unclosed CDATA section", "partial character")
)
"""Expat's errors at the end of a document."""


def parse_xml(data: bytes, *, where: str, max_bytes: int) -> Element:
    """Parse an XML document; `where` names the file in errors.

    Raises:
        DataError: the document is larger than `max_bytes`, not well-formed, or declares a document type or entities.
    """
    if len(data) > max_bytes:
        raise DataError(
            f"the XML holds more than {max_bytes:,} bytes", where=where, hint="check that this is the right file"
        )
    try:
        root: Element = fromstring(data, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except (DefusedXmlException, ParseError, ValueError, LookupError) as error:
        _refuse(error, where)
    return root


def iterate_xml(path: Path, tags: Collection[str]) -> Iterator[Element]:
    """Yield the children of a document's root with one of these tags, in order; one at a time is in memory.

    Args:
        path: plain or gzip.
        tags: names of elements; others are skipped.

    Raises:
        DataError: as `parse_xml`, or the file is missing or too large.
    """
    with open_binary(path) as stream:
        events = iterparse(stream, events=("start", "end"), forbid_dtd=True, forbid_entities=True, forbid_external=True)
        depth, root = 0, None
        while True:
            try:
                event, element = next(events)
            except StopIteration:
                return
            except (DefusedXmlException, ParseError, ValueError, LookupError) as error:
                _refuse(error, str(path))
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            if event == "end" and depth == 1:
                if element.tag in tags:
                    yield element
                root.clear()


def _refuse(error: Exception, where: str) -> NoReturn:
    """Raise the DataError for an error of the parser."""
    if isinstance(error, DefusedXmlException):
        raise DataError(
            "the XML declares a document type or entities, which are not read", where=where, hint="do not use this file"
        ) from error
    if isinstance(error, ParseError):
        is_cut_off = error.code in _CUT_OFF
        hint = "the file may be truncated" if is_cut_off else "check the file"
        raise DataError(f"this is not valid XML ({error})", where=where, hint=hint) from error
    raise DataError("this is not valid XML: its encoding is unknown", where=where, hint="save it as UTF-8") from error
