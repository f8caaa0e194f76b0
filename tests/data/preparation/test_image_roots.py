"""Images are found in every usual layout of folders."""

import pytest
from image_files import COCO, write_image, zipped
from PIL import Image

from refcli.data.preparation.image_roots import FoundImage, ImageRoots
from refcli.data.sources.record import RawImage
from refcli.errors import DataError


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
def test_a_coco_image_is_found_in_every_usual_layout(tmp_path, place):
    path = write_image(tmp_path / place, file_format="JPEG")

    assert ImageRoots.open([tmp_path]).find(COCO) == FoundImage(path)


def test_a_missing_image_is_not_found(tmp_path):
    write_image(tmp_path / "000000000008.jpg")
    (tmp_path / "000000000009.jpg.txt").write_text("no image")

    assert ImageRoots.open([tmp_path]).find(COCO) is None


def test_the_same_case_wins_over_another(tmp_path):
    write_image(tmp_path / "a" / "X.jpg")
    path = write_image(tmp_path / "b" / "x.jpg")

    assert ImageRoots.open([tmp_path]).find(RawImage("toy:x", ("x.jpg",))) == FoundImage(path)


def test_an_earlier_name_wins_over_a_later_one(tmp_path):
    write_image(tmp_path / "a" / "000000000009.jpg")
    path = write_image(tmp_path / "b" / "COCO_train2014_000000000009.jpg")

    assert ImageRoots.open([tmp_path]).find(COCO) == FoundImage(path)


def test_among_files_of_one_name_the_given_path_wins_then_the_trailing_folders(tmp_path):
    exact = write_image(tmp_path / "VG_100K" / "1.jpg")
    deep = write_image(tmp_path / "more" / "vg" / "VG_100K_2" / "1.jpg")
    write_image(tmp_path / "more" / "vg" / "VG_100K" / "1.jpg")
    saiapr = write_image(tmp_path / "saiapr" / "1.jpg")
    roots = ImageRoots.open([tmp_path])

    assert roots.find(RawImage("vg:1", ("VG_100K/1.jpg",))) == FoundImage(exact)
    assert roots.find(RawImage("vg:1", ("VG_100K_2/1.jpg",))) == FoundImage(deep)
    assert roots.find(RawImage("saiapr:1", ("images/saiapr/1.jpg",))) == FoundImage(saiapr)


def test_the_root_itself_counts_as_a_folder(tmp_path):
    write_image(tmp_path / "flickr30k" / "1.jpg")
    path = write_image(tmp_path / "saiapr" / "1.jpg")
    roots = ImageRoots.open([tmp_path / "flickr30k", tmp_path / "saiapr"])

    assert roots.find(RawImage("saiapr:1", ("saiapr/1.jpg",))) == FoundImage(path)


def test_among_equal_matches_the_right_size_wins_and_without_a_size_the_first(tmp_path):
    write_image(tmp_path / "a" / "1.jpg", (5, 5))
    fitting = write_image(tmp_path / "b" / "1.jpg", (7, 4))
    broken = tmp_path / "0" / "1.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"broken")
    roots = ImageRoots.open([tmp_path])

    assert roots.find(RawImage("toy:1", ("1.jpg",), 7, 4)) == FoundImage(fitting)
    assert roots.find(RawImage("coco:1", ("1.jpg",), 7, 4)) == FoundImage(fitting)
    assert roots.find(RawImage("coco:1", ("1.jpg",), 9, 9)) == FoundImage(broken)
    assert roots.find(RawImage("toy:1", ("1.jpg",))) == FoundImage(broken)


def test_a_file_of_the_same_name_in_another_folder_is_another_image(tmp_path):
    write_image(tmp_path / "vg" / "VG_100K_2" / "1.jpg")
    write_image(tmp_path / "vg" / "2.jpg")
    flat = write_image(tmp_path / "VG_100K" / "3.jpg")
    zipped(tmp_path / "vg" / "VG_100K_3.zip", {"4.jpg": b"four", "part/VG_100K/5.jpg": b"five"})
    roots = ImageRoots.open([tmp_path / "vg", tmp_path / "VG_100K"])

    for name in ("VG_100K/1.jpg", "VG_100K/2.jpg", "VG_100K/4.jpg", "whole/VG_100K/5.jpg", "../1.jpg"):
        assert roots.find(RawImage(f"vg:{name}", (name,))) is None
    assert roots.find(RawImage("vg:3", ("/elsewhere/images/VG_100K/3.jpg",))) == FoundImage(flat)
    assert roots.find(RawImage("vg:5", ("VG_100K/5.jpg",))).member == "part/VG_100K/5.jpg"


def test_a_coco_image_is_found_in_any_folder_whatever_folder_its_name_has(tmp_path):
    path = write_image(tmp_path / "images" / "000000000009.jpg")
    image = RawImage("coco:9", ("train2014/COCO_train2014_000000000009.jpg", *COCO.names), 80, 60)

    assert ImageRoots.open([tmp_path]).find(image) == FoundImage(path)


def test_a_file_of_another_size_is_another_image_even_if_it_is_the_only_one(tmp_path):
    path = write_image(tmp_path / "a" / "1.jpg", (7, 4))
    (tmp_path / "a" / "2.jpg").write_bytes(b"broken")
    archive = zipped(tmp_path / "more.zip", {"a/2.jpg": b"not looked into"})
    roots = ImageRoots.open([tmp_path])

    assert roots.find(RawImage("toy:1", ("1.jpg",), 7, 4)) == FoundImage(path)
    assert roots.find(RawImage("toy:1", ("1.jpg",), 4, 7)) is None
    assert roots.find(RawImage("toy:1", ("a/1.jpg",), 7, 5)) is None
    assert roots.find(RawImage("toy:2", ("2.jpg",), 7, 5)) == FoundImage(None, archive, "a/2.jpg")


def test_a_rotated_file_fits_the_annotated_size_in_both_orientations(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_image(tmp_path / "1.jpg", (7, 4), exif=exif)
    roots = ImageRoots.open([tmp_path])

    for width, height in ((7, 4), (4, 7)):
        assert roots.find(RawImage("toy:1", ("1.jpg",), width, height)) == FoundImage(path)
    assert roots.find(RawImage("toy:1", ("1.jpg",), 7, 7)) is None


def test_links_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "root"
    path = write_image(tmp_path / "elsewhere" / "1.jpg")
    real = write_image(root / "z" / "2.jpg")
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


def test_hidden_files_and_files_outside_the_roots_are_not_found(tmp_path):
    write_image(tmp_path / "outside.jpg")
    root = tmp_path / "root"
    write_image(root / "._1.jpg")
    write_image(root / ".cache" / "2.jpg")
    roots = ImageRoots.open([root])

    for name in ("._1.jpg", "2.jpg", "../outside.jpg", str(tmp_path / "outside.jpg")):
        assert roots.find(RawImage("toy:1", (name,))) is None


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_an_empty_root_is_refused(tmp_path, kind):
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("text")
    with pytest.raises(DataError) as caught:
        ImageRoots.open([root])
    assert caught.value.where == str(root)
