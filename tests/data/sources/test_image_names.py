"""An image has one key and one name, however its path is spelled."""

import pytest

from refcli.data.sources.image_names import coco_image, named_flickr_image, named_image
from refcli.data.sources.jsonl import JsonlSettings, read_jsonl
from refcli.data.sources.record import Problems, RawImage
from refcli.errors import DataError


@pytest.mark.parametrize(
    "name", ["a/1.jpg", "./a/1.jpg", "a//1.jpg", "a/./1.jpg", "a\\1.jpg", ".\\a\\1.jpg", " /a/1.jpg "]
)
def test_spellings_of_one_path_are_one_image(name):
    assert named_image(name, dataset="pets", width=4, height=3) == RawImage("pets:a/1.jpg", ("a/1.jpg",), 4, 3)


def test_images_of_one_name_in_different_folders_are_different():
    assert named_image("a/1.jpg", dataset="pets").key != named_image("b/1.jpg", dataset="pets").key


def test_a_coco_name_keeps_its_folders_in_one_spelling_unless_they_lead_out():
    bare = coco_image(9)
    name = "train2014/COCO_train2014_000000000009.jpg"
    for spelling in (name, f"./{name}", f"/{name}", name.replace("/", "//")):
        assert named_image(spelling, dataset="pets") == RawImage("coco:9", (name, *bare.names))
    assert named_image(f"../coco/{name}", dataset="pets") == bare


@pytest.mark.parametrize("name", ["../1.jpg", "a/../../1.jpg", "a\\..\\1.jpg", "..", ".", "./", "/"])
def test_a_name_that_is_empty_or_leads_out_is_refused(name):
    with pytest.raises(DataError, match=r"leads out|names no file"):
        named_image(name, dataset="pets")


@pytest.mark.parametrize("name", ["..", "a/.."])
def test_a_flickr_name_is_that_of_a_file(name):
    assert named_flickr_image("../flickr30k/1.jpg", width=None, height=None).names == ("1.jpg",)
    with pytest.raises(DataError, match="leads out"):
        named_flickr_image(name, width=None, height=None)


def test_a_line_whose_image_leads_out_is_reported_and_the_others_are_read(tmp_path):
    path = tmp_path / "pets.jsonl"
    lines = [f'{{"image": "{name}", "expression": "a cat", "box": [1, 1, 9, 9]}}' for name in ("../1.jpg", "./a/1.jpg")]
    path.write_text("\n".join(lines))
    problems = Problems()
    records = list(read_jsonl({"train": path}, JsonlSettings(), dataset="pets", problems=problems))
    assert [record.image.key for record in records] == ["pets:a/1.jpg"]
    assert problems.counts == {"broken_line": 1}
    assert "'../1.jpg' leads out" in problems.places["broken_line"][0]
