"""Archives are read in memory, and only plain files with safe names are accepted."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from refcli.data.reading.archives import is_archive, open_archive
from refcli.errors import DataError

MEMBERS = {"Annotations/1.xml": b"<a/>", "Sentences/1.txt": "café".encode(), "empty": b""}


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for info in odd:
            file.addfile(info)
    return buffer.getvalue()


def tar_info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
def test_names_and_contents_come_back_in_order(tmp_path: Path, pack, squeeze):
    path = tmp_path / "archive"
    path.write_bytes(squeeze(pack(MEMBERS)))
    assert is_archive(path)
    with open_archive(path) as archive:
        assert archive.names() == list(MEMBERS)
        for name in reversed(archive.names()):
            assert archive.read(name, max_bytes=100) == MEMBERS[name]
            assert archive.read_first_bytes(name, num_bytes=2) == MEMBERS[name][:2]
        with pytest.raises(DataError, match="no member 'absent'"):
            archive.read("absent", max_bytes=100)


def test_folders_are_left_out_and_dots_are_dropped_from_names(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of({"./a/b.txt": b"b"}, tar_info("./a/c", tarfile.DIRTYPE)))
    (tmp_path / "a.zip").write_bytes(zip_of({"a/": b"", "a\\b.txt": b"b"}))
    for name in ("a.tar", "a.zip"):
        with open_archive(tmp_path / name) as archive:
            assert archive.names() == ["a/b.txt"]
            assert archive.read("a/b.txt", max_bytes=1) == b"b"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "\\\\host\\x"])
@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path: Path, pack, name: str):
    path = tmp_path / "archive"
    path.write_bytes(pack({"good": b"", name: b"x"}))
    with pytest.raises(DataError, match=r"absolute path|path with") as caught:
        open_archive(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes):
    (tmp_path / "a.tar").write_bytes(tar_of({"good": b"x"}, tar_info("bad", kind, "good")))
    with pytest.raises(DataError, match="'bad' is a link or device"):
        open_archive(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int):
    info = zipfile.ZipInfo("bad")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'bad' is a link or device"):
        open_archive(tmp_path / "a.zip")


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_a_member_is_read_up_to_the_limit_and_a_larger_one_is_refused(tmp_path: Path, pack, squeeze):
    path = tmp_path / "bomb"
    path.write_bytes(squeeze(pack({"zeros": bytes(8 << 20)})))
    with open_archive(path) as archive:
        assert len(archive.read("zeros", max_bytes=8 << 20)) == 8 << 20
        with pytest.raises(DataError, match="'zeros' holds more than 1,048,576 bytes"):
            archive.read("zeros", max_bytes=1 << 20)


def test_a_zip_whose_directory_understates_a_size_does_not_get_past_the_limit(tmp_path: Path):
    content = zip_of({"zeros": bytes(8 << 20)})
    start = content.index(b"PK\x01\x02")
    lying = content[: start + 24] + (10).to_bytes(4, "little") + content[start + 28 :]
    (tmp_path / "a.zip").write_bytes(lying)
    with open_archive(tmp_path / "a.zip") as archive:
        try:
            assert len(archive.read("zeros", max_bytes=100)) <= 100
        except DataError as error:
            assert error.where == str(tmp_path / "a.zip")


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_truncated_archives_are_refused(tmp_path: Path, pack):
    whole = pack({"a": b"x" * 3000, "b": b"y" * 3000})
    path = tmp_path / "cut"
    for content in (whole[: len(whole) // 4], gzip.compress(whole)[:60]):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught, open_archive(path) as archive:
            for name in ("a", "b"):
                archive.read(name, max_bytes=10_000)
        assert caught.value.where == str(path)


def test_a_damaged_or_encrypted_member_is_refused(tmp_path: Path):
    good = zip_of({"a": bytes(range(256))})
    body = good.index(b"a") + 1
    damaged = good[:body] + bytes(20) + good[body + 20 :]
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[good.index(b"PK\x01\x02") + 8] |= 1
    for content in (damaged, bytes(encrypted)):
        (tmp_path / "a.zip").write_bytes(content)
        with open_archive(tmp_path / "a.zip") as archive, pytest.raises(DataError, match=r"'a' .* cannot be read"):
            archive.read("a", max_bytes=1000)


def test_other_files_are_not_archives(tmp_path: Path):
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"hello" * 500))
    (tmp_path / "short").write_bytes(b"PK")
    (tmp_path / "folder").mkdir()
    for name in ("text.gz", "short", "folder", "absent"):
        assert not is_archive(tmp_path / name)
        with pytest.raises(DataError):
            open_archive(tmp_path / name)
