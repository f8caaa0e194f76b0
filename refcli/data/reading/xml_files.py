"""XML without document types, entities or external references."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError
from xml.parsers.expat.errors import codes

from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

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
    except DefusedXmlException as error:
        raise DataError(
            "the XML declares a document type or entities, which are not read", where=where, hint="do not use this file"
        ) from error
    except ParseError as error:
        is_cut_off = error.code in _CUT_OFF
        hint = "the file may be truncated" if is_cut_off else "check the file"
        raise DataError(f"this is not valid XML ({error})", where=where, hint=hint) from error
    except (ValueError, LookupError) as error:
        raise DataError(
            "this is not valid XML: its encoding is unknown", where=where, hint="save it as UTF-8"
        ) from error
    return root
