"""An existing image is found however its name is written, or the report names the file found instead."""

import json
import os
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from refcli.data.store.read import Store


def image(path, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)
    return path


@pytest.fixture
def prepare(refcli, tmp_path):
    """prepare-data of one JSON line for each name (or whole line): exit code, the report as JSON, the messages."""

    def call(*lines, images="images", options=()):
        file = tmp_path / "lines_val.jsonl"
        base = {"expression": "the cup", "box": [1, 2, 30, 40]}
        rows = [base | ({"image": line} if isinstance(line, str) else line) for line in lines]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        roots = [part for root in np.atleast_1d(images) for part in ("--images", tmp_path / str(root))]
        code, out, err = refcli(
            "prepare-data",
            "--from",
            file,
            "--name",
            "mine",
            "--split",
            "val",
            *roots,
            "--out",
            tmp_path / "store",
            "--json",
            *options,
        )
        return code, json.loads(out)["datasets"][0] if out else None, err

    return call


def stored_images(tmp_path):
    split = Store(tmp_path / "store").split("mine:val")
    return [split.image_path(split[index]) for index in range(len(split))]


@pytest.mark.parametrize(
    "name",
    [
        "images/1/a.jpg",
        "upload/a.jpg",
        "C:\\Users\\me\\shots\\a.jpg",
        "D:/shots/a.jpg",
        "https://host.example/data/upload/1/a.jpg",
        "https://host.example/data/a.jpg?token=5#x",
        "https://host.example/data/a.jpg#x",
        "s3://bucket/some/where/a.jpg",
        "file:///home/me/a.jpg",
        "/data/local-files/?d=shots/1/a.jpg",
        "a.JPG",
        "./a.jpg",
    ],
)
def test_the_only_file_of_a_name_is_found(prepare, tmp_path, name):
    path = image(tmp_path / "images" / "a.jpg")
    code, report, _ = prepare(name)
    assert code == 0
    assert stored_images(tmp_path) == [path]
    if "shots" in name or "upload" in name:
        assert "is " + str(path) in report["places"]["image_found_by_name_only"][0]


@pytest.mark.parametrize(
    "name", ["my%20caf%C3%A9.jpg", "my café.jpg", "my cafe\u0301.jpg", "MY CAFÉ.jpg", "my%20caf%E9.jpg"]
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_and_quotes_do_not_hide_a_file(prepare, tmp_path, name, form):
    path = image(tmp_path / "images" / unicodedata.normalize(form, "my café.jpg"))
    code, report, _ = prepare(name)
    assert (code, report["problems"]) == (0, {})
    assert stored_images(tmp_path) == [path]


def test_a_file_with_quotes_in_its_name_is_found_by_the_name_without(prepare, tmp_path):
    path = image(tmp_path / "images" / "my%20cup.jpg")
    assert prepare("my cup.jpg")[0] == 0
    assert stored_images(tmp_path) == [path]


def test_a_quoted_name_is_found_in_an_archive_too(prepare, tmp_path):
    path = image(tmp_path / "a b.jpg")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(path, "photos/a b.jpg")
    assert prepare("photos/a%20b.jpg", images="images.zip")[0] == 0
    assert len(stored_images(tmp_path)) == 1


def test_a_name_that_two_images_have_is_not_found_by_the_name_alone(prepare, tmp_path):
    image(tmp_path / "images" / "a.jpg")
    code, report, message = prepare("1/a.jpg", "2/a.jpg")
    assert code == 5
    assert "there is a.jpg, in another folder" in message
    code, report, _ = prepare("a.jpg", "2/a.jpg")
    assert (code, report["problems"]) == (0, {"missing_image": 1})


@pytest.mark.parametrize(("root", "file"), [("train2014", "a.jpg"), ("images", "train/a.jpg"), ("images", "2/a.jpg")])
def test_folders_of_a_name_still_distinguish_files(prepare, tmp_path, root, file):
    image(tmp_path / root / file)
    image(tmp_path / root / "b.jpg")
    code, report, _ = prepare("val/a.jpg", "b.jpg", images=root)
    assert (code, report["problems"]) == (0, {"missing_image": 1})
    assert f"val/a.jpg (there is {file}, in another folder)" in report["places"]["missing_image"][0]


def test_with_two_roots_the_folders_distinguish_files(prepare, tmp_path):
    image(tmp_path / "one" / "a.jpg")
    image(tmp_path / "two" / "b.jpg")
    code, report, _ = prepare("two/a.jpg", "two/b.jpg", images=["one", "two"])
    assert (code, report["problems"]) == (0, {"missing_image": 1})


def test_an_image_of_another_size_is_reported_with_both_sizes(prepare, tmp_path):
    image(tmp_path / "images" / "a.jpg", (46, 38))
    image(tmp_path / "images" / "b.jpg", (60, 40))
    sizes = {"width": 130, "height": 106}
    lines = [{"image": "a.jpg", **sizes}, {"image": "b.jpg", "width": 60, "height": 40}, {"image": "c.jpg", **sizes}]
    for options in ((), ("--check-images", "--force")):
        code, report, _ = prepare(*lines, options=options)
        assert (code, report["problems"]) == (0, {"image_of_another_size": 1, "missing_image": 1})
        assert "a.jpg is 46 x 38, its annotation says 130 x 106" in report["places"]["image_of_another_size"][0]
        assert report["left_out"] == {"val": 2}


def test_swapped_sides_are_named_if_nothing_is_left(prepare, tmp_path):
    image(tmp_path / "images" / "1" / "a.jpg", (60, 40))
    code, _, message = prepare({"image": "1/a.jpg", "width": 40, "height": 60})
    assert code == 5
    assert "image of another size" in message
    assert "1/a.jpg is 60 x 40, its annotation says 40 x 60" in message


def test_a_file_that_is_not_an_image_and_one_with_another_suffix_are_distinguished_from_a_missing_one(
    prepare, tmp_path
):
    image(tmp_path / "images" / "ok.jpg")
    image(tmp_path / "images" / "b.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    sizes = {"width": 60, "height": 40}
    code, report, _ = prepare(*({"image": name, **sizes} for name in ("ok.jpg", "broken.jpg", "b.jpg", "nowhere.jpg")))
    assert (code, report["problems"]) == (0, {"unusable_picture": 1, "missing_image": 2})
    assert "b.jpg (there is b.png)" in report["places"]["missing_image"][0]
    assert report["places"]["missing_image"][1].endswith("nowhere.jpg")


def test_repaired_images_are_read_again(prepare, tmp_path):
    image(tmp_path / "images" / "a.jpg", (46, 38))
    image(tmp_path / "images" / "b.jpg")
    lines = [{"image": name, "width": 60, "height": 40} for name in ("a.jpg", "b.jpg")]
    assert prepare(*lines)[1]["left_out"] == {"val": 1}
    image(tmp_path / "images" / "a.jpg")
    code, report, _ = prepare(*lines)
    assert (code, report["status"], report["left_out"]) == (0, "written", {})


@pytest.mark.parametrize("suffix", ["jpe", "ppm", "tga", "jfif"])
def test_a_file_is_found_whatever_its_suffix(prepare, tmp_path, suffix):
    path = tmp_path / "images" / f"a.{suffix}"
    path.parent.mkdir()
    Image.new("RGB", (60, 40)).save(path, format={"ppm": "PPM", "tga": "TGA"}.get(suffix, "JPEG"))
    assert prepare({"image": path.name, "width": 60, "height": 40})[0] == 0
    assert stored_images(tmp_path) == [path]


@pytest.mark.parametrize("name", ["../x", "a/b", "manifest.json", ".x", "", "a\nb"])
def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_written(refcli, tmp_path, name):
    image(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.jpg", "a.jpg")
    file = tmp_path / "val.jsonl"
    file.write_text(json.dumps({"image": "a.jpg", "expression": "x", "box": [1, 2, 30, 40]}) + "\n")
    before = set(tmp_path.rglob("*"))
    images = tmp_path / "images.zip"
    code, _, _ = refcli(
        "prepare-data", "--from", file, "--name", name, "--images", images, "--out", tmp_path / "s" / "t"
    )
    assert code == 2
    assert set(tmp_path.rglob("*")) == before


def test_only_the_images_of_a_folder_whose_name_is_not_utf8_are_missing(prepare, tmp_path):
    image(tmp_path / "images" / "ok.jpg")
    folder = tmp_path / "images" / os.fsdecode(b"b\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    image(tmp_path / "a.jpg").rename(folder / "a.jpg")
    code, report, _ = prepare("a.jpg", "ok.jpg")
    assert (code, report["problems"]) == (0, {"unusable_picture": 1})
    assert "not UTF-8" in report["places"]["unusable_picture"][0]


@pytest.mark.parametrize("name", ["my+cup.jpg", "my%20cup.jpg", "my%2520cup.jpg", "https://host.example/my+cup.jpg"])
def test_a_blank_is_found_however_it_is_quoted(prepare, tmp_path, name):
    image(tmp_path / "images" / "my cup.jpg")
    code, report, err = prepare({"image": name})
    assert (code, report["problems"].get("missing_image")) == (0, None), err


def test_images_in_archives_that_do_not_fit_are_named_as_others_are(prepare, tmp_path):
    image(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for member in ("1/a.jpg", "b.jpg", "ok.jpg"):
            archive.write(tmp_path / "a.jpg", member)
    lines = [
        {"image": "b.jpg", "width": 64, "height": 48},
        {"image": "2/a.jpg"},
        {"image": "b.png"},
        {"image": "b"},
        {"image": "ok.jpg"},
    ]
    code, report, _ = prepare(*lines, images="images.zip")
    assert (code, report["problems"]) == (0, {"image_of_another_size": 1, "missing_image": 3})
    assert "60 x 40, its annotation says 64 x 48" in report["places"]["image_of_another_size"][0]
    reasons = ("there is 1/a.jpg, in another folder", "there is b.jpg", "there is b.jpg")
    for place, reason in zip(report["places"]["missing_image"], reasons, strict=True):
        assert reason in place
