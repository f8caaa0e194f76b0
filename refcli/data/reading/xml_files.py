"""XML without document types, entities or external references."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from refcli.errors import DataError


def parse_xml(data: bytes, *, where: str, max_bytes: int) -> Element:
    """Parse an XML document; `where` names the file in errors.

    Raises:
        DataError: more than `max_bytes`, not well-formed, or with a document type or entities of its own.
    """
    if len(data) > max_bytes:
        raise DataError(
            f"the XML holds more than {max_bytes:,} bytes", where=where, hint="check that this is the file you meant"
        )
    try:
        root: Element = fromstring(data, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    except DefusedXmlException as error:
        raise DataError(
            "the XML declares a document type or entities, which are not read", where=where, hint="do not use this file"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"this is not valid XML ({error})", where=where, hint="the file may be truncated") from error
    return root
