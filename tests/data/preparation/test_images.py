"""Pictures are found in every usual layout, taken out of archives whole, and measured as they will be read."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from refcli.data.image import decode, probe, read_image
from refcli.data.preparation.extract import extract_images, safe_path
from refcli.data.preparation.images import FoundImage, ImageRoots
from refcli.data.sources.record import RawImage
from refcli.errors import DataError, ImageError

COCO = RawImage(
    "coco:9", ("COCO_train2014_000000000009.jpg", "000000000009.jpg", "COCO_val2014_000000000009.jpg"), 8, 6
)


def picture(path, size=(8, 6), file_format=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, file_format, **options)
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "place",
    [
        "COCO_train2014_000000000009.jpg",
        "train2014/COCO_train2014_000000000009.jpg",
        "images/mscoco/images/train2014/COCO_train2014_000000000009.jpg",
        "train2017/000000000009.jpg",
        "val2014/COCO_val2014_000000000009.jpg",
        "other/coco_TRAIN2014_000000000009.JPG",
    ],
)
def test_a_coco_picture_is_found_in_every_usual_layout(tmp_path, place):
    path = picture(tmp_path / place, file_format="JPEG")

    assert ImageRoots.open([tmp_path]).find(COCO) == FoundImage(path)


def test_a_picture_that_is_nowhere_is_not_found(tmp_path):
    picture(tmp_path / "000000000008.jpg")
    (tmp_path / "000000000009.jpg.txt").write_text("no picture")

    assert ImageRoots.open([tmp_path]).find(COCO) is None


def test_the_same_case_wins_over_another(tmp_path):
    picture(tmp_path / "a" / "X.jpg")
    path = picture(tmp_path / "b" / "x.jpg")

    assert ImageRoots.open([tmp_path]).find(RawImage("toy:x", ("x.jpg",))) == FoundImage(path)


def test_an_earlier_name_wins_over_a_later_one(tmp_path):
    picture(tmp_path / "a" / "000000000009.jpg")
    path = picture(tmp_path / "b" / "COCO_train2014_000000000009.jpg")

    assert ImageRoots.open([tmp_path]).find(COCO) == FoundImage(path)


def test_of_files_of_one_name_the_given_path_wins_then_the_trailing_folders(tmp_path):
    exact = picture(tmp_path / "VG_100K" / "1.jpg")
    deep = picture(tmp_path / "more" / "vg" / "VG_100K_2" / "1.jpg")
    picture(tmp_path / "more" / "vg" / "VG_100K" / "1.jpg")
    saiapr = picture(tmp_path / "saiapr" / "1.jpg")
    roots = ImageRoots.open([tmp_path])

    assert roots.find(RawImage("vg:1", ("VG_100K/1.jpg",))) == FoundImage(exact)
    assert roots.find(RawImage("vg:1", ("VG_100K_2/1.jpg",))) == FoundImage(deep)
    assert roots.find(RawImage("saiapr:1", ("images/saiapr/1.jpg",))) == FoundImage(saiapr)


def test_the_root_itself_counts_as_a_folder(tmp_path):
    picture(tmp_path / "flickr30k" / "1.jpg")
    path = picture(tmp_path / "saiapr" / "1.jpg")
    roots = ImageRoots.open([tmp_path / "flickr30k", tmp_path / "saiapr"])

    assert roots.find(RawImage("saiapr:1", ("saiapr/1.jpg",))) == FoundImage(path)


def test_of_equals_the_one_of_the_right_size_wins_and_without_a_size_the_first(tmp_path):
    picture(tmp_path / "a" / "1.jpg", (5, 5))
    fitting = picture(tmp_path / "b" / "1.jpg", (7, 4))
    broken = tmp_path / "0" / "1.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"broken")
    roots = ImageRoots.open([tmp_path])

    assert roots.find(RawImage("toy:1", ("1.jpg",), 7, 4)) == FoundImage(fitting)
    assert roots.find(RawImage("coco:1", ("1.jpg",), 7, 4)) == FoundImage(fitting)
    assert roots.find(RawImage("coco:1", ("1.jpg",), 9, 9)) == FoundImage(broken)
    assert roots.find(RawImage("toy:1", ("1.jpg",))) == FoundImage(broken)


def test_a_file_of_the_same_name_in_another_folder_is_another_picture(tmp_path):
    picture(tmp_path / "vg" / "VG_100K_2" / "1.jpg")
    picture(tmp_path / "vg" / "2.jpg")
    flat = picture(tmp_path / "VG_100K" / "3.jpg")
    zipped(tmp_path / "vg" / "VG_100K_3.zip", {"4.jpg": b"four", "part/VG_100K/5.jpg": b"five"})
    roots = ImageRoots.open([tmp_path / "vg", tmp_path / "VG_100K"])

    for name in ("VG_100K/1.jpg", "VG_100K/2.jpg", "VG_100K/4.jpg", "whole/VG_100K/5.jpg", "../1.jpg"):
        assert roots.find(RawImage(f"vg:{name}", (name,))) is None
    assert roots.find(RawImage("vg:3", ("/elsewhere/images/VG_100K/3.jpg",))) == FoundImage(flat)
    assert roots.find(RawImage("vg:5", ("VG_100K/5.jpg",))).member == "part/VG_100K/5.jpg"


def test_a_coco_picture_lies_in_any_folder_whatever_folder_its_name_has(tmp_path):
    path = picture(tmp_path / "images" / "000000000009.jpg")
    image = RawImage("coco:9", ("train2014/COCO_train2014_000000000009.jpg", *COCO.names), 80, 60)

    assert ImageRoots.open([tmp_path]).find(image) == FoundImage(path)


def test_a_file_of_another_size_is_another_picture_even_if_it_is_the_only_one(tmp_path):
    path = picture(tmp_path / "a" / "1.jpg", (7, 4))
    (tmp_path / "a" / "2.jpg").write_bytes(b"broken")
    archive = zipped(tmp_path / "more.zip", {"a/2.jpg": b"not looked into"})
    roots = ImageRoots.open([tmp_path])

    assert roots.find(RawImage("toy:1", ("1.jpg",), 7, 4)) == FoundImage(path)
    assert roots.find(RawImage("toy:1", ("1.jpg",), 4, 7)) is None
    assert roots.find(RawImage("toy:1", ("a/1.jpg",), 7, 5)) is None
    assert roots.find(RawImage("toy:2", ("2.jpg",), 7, 5)) == FoundImage(None, archive, "a/2.jpg")


def test_a_turned_file_has_the_annotated_size_upright_and_as_it_lies_there(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path / "1.jpg", (7, 4), exif=exif)
    roots = ImageRoots.open([tmp_path])

    for width, height in ((7, 4), (4, 7)):
        assert roots.find(RawImage("toy:1", ("1.jpg",), width, height)) == FoundImage(path)
    assert roots.find(RawImage("toy:1", ("1.jpg",), 7, 7)) is None


def test_links_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "root"
    path = picture(tmp_path / "elsewhere" / "1.jpg")
    real = picture(root / "z" / "2.jpg")
    (root / "a").symlink_to(root / "z")
    (root / "z" / "up").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "linked").symlink_to(path.parent)
    (root / "3.jpg").symlink_to(path)
    roots = ImageRoots.open([root])

    assert roots.find(RawImage("toy:1", ("1.jpg",))) == FoundImage(root / "linked" / "1.jpg")
    assert roots.find(RawImage("toy:2", ("2.jpg",))) == FoundImage(real)
    assert roots.find(RawImage("toy:3", ("3.jpg",))) == FoundImage(root / "3.jpg")
    assert roots.find(RawImage("toy:gone", ("gone.jpg",))) is None
    assert list(roots.unreadable) == [root / "itself"]


def test_hidden_files_and_a_file_outside_the_roots_are_no_pictures(tmp_path):
    picture(tmp_path / "outside.jpg")
    root = tmp_path / "root"
    picture(root / "._1.jpg")
    picture(root / ".cache" / "2.jpg")
    roots = ImageRoots.open([root])

    for name in ("._1.jpg", "2.jpg", "../outside.jpg", str(tmp_path / "outside.jpg")):
        assert roots.find(RawImage("toy:1", (name,))) is None


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_root_that_holds_nothing_is_refused(tmp_path, kind):
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("text")
    with pytest.raises(DataError) as caught:
        ImageRoots.open([root])
    assert caught.value.where == str(root)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("is_root", [True, False])
def test_pictures_in_archives_are_found_and_taken_out(tmp_path, kind, is_root):
    content = picture(tmp_path / "nine.png").read_bytes()
    folder = tmp_path / "root"
    folder.mkdir()
    members = {
        "train2014/COCO_train2014_000000000008.jpg": b"eight",
        "train2014/COCO_train2014_000000000009.jpg": content,
        "__MACOSX/train2014/._COCO_train2014_000000000009.jpg": b"not this",
    }
    write = {"zip": zipped, "tar": tarred, "tar.gz": lambda path, members: tarred(path, members, "w:gz")}[kind]
    archive = write(folder / f"train2014.{kind}", members)
    roots = ImageRoots.open([archive if is_root else folder])
    found = roots.find(COCO)
    out = extract_images([(COCO, found)], tmp_path / "out")

    assert roots.has_archives
    assert found == FoundImage(None, archive, "train2014/COCO_train2014_000000000009.jpg")
    assert out == {"coco:9": tmp_path / "out" / "coco" / "COCO_train2014_000000000009.jpg"}
    assert out["coco:9"].read_bytes() == content
    assert [path.name for path in (tmp_path / "out").rglob("*.jpg")] == ["COCO_train2014_000000000009.jpg"]


def test_a_plain_file_wins_over_an_archive_and_is_not_extracted(tmp_path):
    plain = picture(tmp_path / "train2017" / "000000000009.jpg")
    zipped(tmp_path / "train2014.zip", {"COCO_train2014_000000000009.jpg": b"archived"})
    found = ImageRoots.open([tmp_path]).find(COCO)

    assert found == FoundImage(plain)
    assert extract_images([(COCO, found)], tmp_path / "out") == {}
    assert not (tmp_path / "out").exists()


def test_a_broken_archive_is_an_error_if_named_and_noted_if_it_only_lies_about(tmp_path):
    archive = tmp_path / "train2014.zip"
    whole = zipped(archive, {f"{number}.jpg": os.urandom(100) for number in range(9)}).read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    lying_about = ImageRoots.open([tmp_path])

    assert lying_about.find(COCO) is None
    assert list(lying_about.unreadable) == [archive]
    with pytest.raises(DataError) as caught:
        ImageRoots.open([archive]).find(COCO)
    assert caught.value.where == str(archive)


def test_what_is_there_stays_and_what_has_another_size_is_replaced(tmp_path):
    archive = zipped(tmp_path / "x.zip", {"1.jpg": b"one", "2.jpg": b"two"})
    images = [RawImage(f"toy:{name}", (name,)) for name in ("1.jpg", "2.jpg")]
    found = [(image, FoundImage(None, archive, image.names[0])) for image in images]
    folder = tmp_path / "out" / "toy"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"ONE")
    (folder / "2.jpg").write_bytes(b"half a picture")
    extract_images(found, tmp_path / "out")

    assert (folder / "1.jpg").read_bytes() == b"ONE"
    assert (folder / "2.jpg").read_bytes() == b"two"
    assert sorted(path.name for path in folder.iterdir()) == ["1.jpg", "2.jpg"]


def test_a_member_that_is_too_large_is_refused(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "x.zip", {"1.jpg": b"0123456789"})
    monkeypatch.setattr("refcli.data.preparation.extract.MAX_MEMBER_BYTES", 9)

    with pytest.raises(DataError, match=r"1\.jpg"):
        extract_images([(RawImage("toy:1", ("1.jpg",)), FoundImage(None, archive, "1.jpg"))], tmp_path / "out")
    assert not list(tmp_path.rglob("out/**/*.jpg"))


def test_different_pictures_never_get_the_same_name():
    images = [
        RawImage("saiapr:36979", ("36979.jpg",)),
        RawImage("flickr30k:36979", ("36979.jpg",)),
        RawImage("toy:a/1.jpg", ("a/1.jpg",)),
        RawImage("toy:b/1.jpg", ("b/1.jpg",)),
        RawImage("toy:1.jpg", ("1.jpg",)),
        RawImage("toy:x y.jpg", ("x y.jpg",)),
        RawImage("toy:x_y.jpg", ("x_y.jpg",)),
        RawImage("to y:1.jpg", ("1.jpg",)),
        RawImage("to_y:1.jpg", ("1.jpg",)),
        RawImage("../up:1", ("../../1.jpg",)),
        RawImage("toy:猫.jpg", ("猫.jpg",)),
        RawImage("toy:..", ("..",)),
        RawImage("toy:" + "n" * 500, ("n" * 500,)),
        RawImage("toy:" + "n" * 501, ("n" * 501,)),
    ]
    paths = [safe_path(image) for image in images]

    assert len(set(paths)) == len(images)
    for path in paths:
        assert len(path.parts) == 2
        assert len(path.name) < 200
        assert not any(part.startswith(".") for part in path.parts)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_measured_size_is_that_of_the_picture_as_it_is_read(tmp_path, file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = picture(tmp_path / "picture", (8, 6), file_format, exif=exif)
    height, width, _ = read_image(path).shape

    facts = probe(path)
    assert facts == decode(path)
    assert facts.size == (width, height)
    if file_format == "JPEG":
        assert facts.orientation == orientation
        assert facts.raw_size == (8, 6)
        assert (width, height) == ((6, 8) if orientation in (6, 8) else (8, 6))


def test_a_truncated_picture_has_a_size_but_cannot_be_decoded(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    path = tmp_path / "picture.jpg"
    noise.save(path)
    path.write_bytes(path.read_bytes()[:1500])

    assert probe(path).size == (80, 60)
    with pytest.raises(ImageError):
        decode(path)


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_what_is_no_picture_has_no_size(tmp_path, content):
    path = tmp_path / "picture.jpg"
    if content is not None:
        path.write_bytes(content)
    for measure in (probe, decode):
        with pytest.raises(ImageError):
            measure(path)
