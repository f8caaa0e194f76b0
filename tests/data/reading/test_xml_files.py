"""XML is read without expanding entities or reading other files."""

from pathlib import Path

import pytest

from refcli.data.reading.xml_files import iterate_xml, parse_xml
from refcli.errors import DataError


def test_elements_are_read():
    root = parse_xml(b"<annotation><object><name>1</name></object></annotation>", where="1.xml", max_bytes=100)
    assert root.findtext("object/name") == "1"


def test_entities_that_expand_into_each_other_are_refused():
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    document = f'<!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]><a>&l9;</a>'.encode()
    with pytest.raises(DataError, match="document type or entities") as caught:
        parse_xml(document, where="1.xml", max_bytes=10_000)
    assert caught.value.where == "1.xml"


def test_another_file_is_not_read_through_an_entity(tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    document = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]><a>&x;</a>'.encode()
    with pytest.raises(DataError, match="document type or entities"):
        parse_xml(document, where="1.xml", max_bytes=10_000)


def test_a_document_type_alone_is_refused():
    with pytest.raises(DataError, match="document type"):
        parse_xml(b'<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><a/>', where="1.xml", max_bytes=10_000)


@pytest.mark.parametrize(
    "data", [b"", b"<a>", b"<a>\xff</a>", b"text", b'<?xml version="1.0" encoding="no-such"?><a/>']
)
def test_invalid_xml_is_refused(data: bytes):
    with pytest.raises(DataError, match="not valid XML") as caught:
        parse_xml(data, where="1.xml", max_bytes=100)
    assert caught.value.where == "1.xml"


def test_a_document_above_the_limit_is_refused():
    with pytest.raises(DataError, match="more than 3 bytes"):
        parse_xml(b"<a/>", where="1.xml", max_bytes=3)
    assert parse_xml(b"<a/>", where="1.xml", max_bytes=4).tag == "a"


def test_children_of_the_root_are_read_one_by_one_and_a_truncated_document_is_refused(tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text("<a><meta><image>no child of the root</image></meta><image n='1'><box/></image><image n='2'/></a>")

    found = [(one.get("n"), len(one)) for one in iterate_xml(path, ("image",))]

    assert found == [("1", 1), ("2", 0)]
    path.write_text("<a><image n='1'/><image")
    with pytest.raises(DataError, match="not valid XML"):
        list(iterate_xml(path, ("image",)))


def test_a_document_that_is_read_in_parts_may_not_declare_entities(tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY l "ha">]><a><image>&l;</image></a>')
    with pytest.raises(DataError, match="document type or entities"):
        list(iterate_xml(path, ("image",)))
