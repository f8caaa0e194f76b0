"""Images are extracted from archives and measured as they will be read."""

import os

import numpy as np
import pytest
from image_files import COCO, tarred, write_image, zipped
from PIL import Image

from refcli.data.preparation.dataset_images import extract_images, safe_path
from refcli.data.preparation.image_roots import FoundImage, ImageRoots
from refcli.data.reading.images import probe, read_image, verify
from refcli.data.sources.record import RawImage
from refcli.errors import DataError, ImageError


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("is_root", [True, False])
def test_images_in_archives_are_found_and_extracted(tmp_path, kind, is_root):
    content = write_image(tmp_path / "nine.png").read_bytes()
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
    plain = write_image(tmp_path / "train2017" / "000000000009.jpg")
    zipped(tmp_path / "train2014.zip", {"COCO_train2014_000000000009.jpg": b"archived"})
    found = ImageRoots.open([tmp_path]).find(COCO)

    assert found == FoundImage(plain)
    assert extract_images([(COCO, found)], tmp_path / "out") == {}
    assert not (tmp_path / "out").exists()


def test_a_broken_archive_is_an_error_as_a_root_and_recorded_otherwise(tmp_path):
    archive = tmp_path / "train2014.zip"
    whole = zipped(archive, {f"{number}.jpg": os.urandom(100) for number in range(9)}).read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    lying_about = ImageRoots.open([tmp_path])

    assert lying_about.find(COCO) is None
    assert list(lying_about.unreadable) == [archive]
    with pytest.raises(DataError) as caught:
        ImageRoots.open([archive]).find(COCO)
    assert caught.value.where == str(archive)


def test_existing_files_are_kept_unless_their_size_differs(tmp_path):
    archive = zipped(tmp_path / "x.zip", {"1.jpg": b"one", "2.jpg": b"two"})
    images = [RawImage(f"toy:{name}", (name,)) for name in ("1.jpg", "2.jpg")]
    found = [(image, FoundImage(None, archive, image.names[0])) for image in images]
    folder = tmp_path / "out" / "toy"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"ONE")
    (folder / "2.jpg").write_bytes(b"half an image")
    extract_images(found, tmp_path / "out")

    assert (folder / "1.jpg").read_bytes() == b"ONE"
    assert (folder / "2.jpg").read_bytes() == b"two"
    assert sorted(path.name for path in folder.iterdir()) == ["1.jpg", "2.jpg"]


def test_a_member_that_is_too_large_is_refused(tmp_path):
    archive = zipped(tmp_path / "x.zip", {"1.jpg": b"0123456789"})

    with pytest.raises(DataError, match=r"1\.jpg"):
        extract_images(
            [(RawImage("toy:1", ("1.jpg",)), FoundImage(None, archive, "1.jpg"))], tmp_path / "out", max_bytes=9
        )
    assert not list(tmp_path.rglob("out/**/*.jpg"))


def test_different_images_never_get_the_same_name():
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
def test_the_measured_size_is_that_of_the_image_as_it_is_read(tmp_path, file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_image(tmp_path / "image", (8, 6), file_format, exif=exif)
    height, width, _ = read_image(path).shape

    facts = probe(path)
    assert facts == verify(path)
    assert facts.size == (width, height)
    if file_format == "JPEG":
        assert facts.orientation == orientation
        assert facts.raw_size == (8, 6)
        assert (width, height) == ((6, 8) if orientation in (6, 8) else (8, 6))


def test_a_truncated_image_has_a_size_but_cannot_be_decoded(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    path = tmp_path / "image.jpg"
    noise.save(path)
    path.write_bytes(path.read_bytes()[:1500])

    assert probe(path).size == (80, 60)
    with pytest.raises(ImageError):
        verify(path)


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_file_that_is_not_an_image_has_no_size(tmp_path, content):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    for measure in (probe, verify):
        with pytest.raises(ImageError):
            measure(path)
