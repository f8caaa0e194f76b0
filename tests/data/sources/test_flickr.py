"""Flickr30k Entities: phrases of captions, boxes by chain, and phrases without boxes."""

import gzip
import os
import zipfile
from pathlib import Path

import pytest

from refcli.data.sources.flickr import SOURCE, FlickrSettings, parse_boxes, parse_caption
from refcli.data.sources.record import Problems
from refcli.errors import DataError

CAPTIONS = (
    "[/EN#1/people Two men] in [/EN#3/clothing/other green shirts] stand in [/EN#9/scene a yard] .\n"
    "[/EN#2/people A man] enjoys [/EN#0/notvisual the time] with [/EN#5/other nobody] [ sic ] .\n"
    "\n"
    "[/EN#4/bodyparts Hände] of [/EN#1/people two] ."
)
BOXES = """<annotation><filename>77.jpg</filename>
<size><width>333</width><height>500</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>159</xmin><ymin>125</ymin><xmax>219</xmax><ymax>335</ymax></bndbox></object>
<object><name>1</name><name>2</name>
  <bndbox><xmin>197</xmin><ymin>110</ymin><xmax>261</xmax><ymax>373</ymax></bndbox></object>
<object><name>3</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>333</xmax><ymax>500</ymax></bndbox></object>
<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>4</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>"""
FIRST, SECOND = (158.0, 124.0, 219.0, 335.0), (196.0, 109.0, 261.0, 373.0)

REAL = Path(os.environ.get("REFCLI_REALDATA", "")) / "flickr30k_entities"
needs_real_data = pytest.mark.skipif(
    "REFCLI_REALDATA" not in os.environ or not REAL.is_dir(), reason="REFCLI_REALDATA has no flickr30k_entities"
)


def files_in(folder, *, captions=CAPTIONS, boxes=BOXES, encoding="utf-8", **lists):
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "Sentences" / "77.txt").write_bytes(captions.encode(encoding))
    (folder / "Annotations" / "77.xml").write_text(boxes)
    files = {"annotations": folder / "Annotations"}
    for split, ids in (lists or {"train": "77\n"}).items():
        files[split] = folder / f"{split}.txt"
        files[split].write_text(ids)
    return files


def read(files, **settings):
    problems = Problems()
    return list(SOURCE.read(files, FlickrSettings(**settings), dataset="flickr", problems=problems)), problems


def test_each_phrase_with_boxes_becomes_a_record_with_all_boxes_of_its_chain(tmp_path):
    records, _ = read(files_in(tmp_path))
    assert [(*r.expressions[0], r.kind, tuple(region.box_xyxy for region in r.regions)) for r in records] == [
        ("77/0/0", "Two men", "people", (FIRST, SECOND)),
        ("77/0/1", "green shirts", "clothing", ((0, 0, 333, 500),)),
        ("77/1/0", "A man", "people", (SECOND,)),
        ("77/3/1", "two", "people", (FIRST, SECOND)),
    ]
    assert {r.split for r in records} == {"train"}
    assert {(r.image.key, r.image.names, r.image.width, r.image.height) for r in records} == {
        ("flickr30k:77", ("77.jpg",), 333, 500)
    }
    assert [region.source_id for region in records[0].regions] == ["flickr30k:77/1/0", "flickr30k:77/1/1"]


def test_a_box_that_covers_all_pixels_counted_from_one_covers_the_image(tmp_path):
    records, _ = read(files_in(tmp_path))
    shirts = records[1]
    assert shirts.regions[0].box_xyxy == (0, 0, shirts.image.width, shirts.image.height)


def test_phrases_without_a_box_are_left_out_and_counted_by_reason(tmp_path):
    _, problems = read(files_in(tmp_path))
    assert problems.counts == {
        "phrase_without_box_scene": 1,
        "phrase_without_box_chain_0": 1,
        "phrase_without_box_nobndbox": 1,
        "phrase_without_box": 1,
    }
    assert problems.places["phrase_without_box"] == ["Sentences/77.txt: line 2: nobody"]


def test_a_chain_of_zero_has_no_box_even_if_the_xml_has_one(tmp_path):
    boxes = BOXES.replace("<name>3</name>", "<name>0</name>")
    records, problems = read(files_in(tmp_path, boxes=boxes))
    assert "the time" not in [r.expressions[0].text for r in records]
    assert problems.counts["phrase_without_box_chain_0"] == 1


def test_scenes_get_the_whole_image_on_request(tmp_path):
    records, problems = read(files_in(tmp_path), scene_boxes=True)
    scene = next(r for r in records if r.kind == "scene")
    assert scene.expressions[0] == ("77/0/2", "a yard")
    assert [region.box_xyxy for region in scene.regions] == [(0, 0, 333, 500)]
    assert "phrase_without_box_scene" not in problems.counts


def test_a_scene_in_an_image_of_unknown_size_cannot_get_a_box(tmp_path):
    boxes = BOXES.replace("<size><width>333</width><height>500</height><depth>3</depth></size>", "")
    files = files_in(tmp_path, boxes=boxes)
    assert read(files)[0][0].image.width is None
    with pytest.raises(DataError, match="size is unknown"):
        read(files, scene_boxes=True)


def test_unrelated_captions_are_dropped_only_on_request_and_their_phrases_counted(tmp_path):
    files = files_in(tmp_path)
    with pytest.raises(DataError, match="unrelated captions"):
        read(files, unrelated_captions="drop")
    files["unrelated"] = tmp_path / "UNRELATED_CAPTIONS"
    files["unrelated"].write_text("# format: <imageID> <sentence number>\n77 1\n8 2\n")
    assert len(read(files)[0]) == 4
    records, problems = read(files, unrelated_captions="drop")
    assert [r.expressions[0].id for r in records] == ["77/1/0", "77/3/1"]
    assert problems.counts["phrase_of_unrelated_caption"] == 3
    files["unrelated"].write_text("77 first\n")
    with pytest.raises(DataError, match="<sentence number>"):
        read(files, unrelated_captions="drop")


def test_the_published_zip_and_a_folder_of_both_folders_read_alike(tmp_path):
    files = files_in(tmp_path)
    records, problems = read(files)
    packed = tmp_path / "annotations.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("README.txt", "about")
        archive.writestr("Sentences/README.txt", "about")
        archive.writestr("Sentences/77.txt", CAPTIONS)
        archive.writestr("Annotations/77.xml", BOXES)
        archive.writestr("__MACOSX/Annotations/._77.xml", b"\0")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "Sentences").rename(moved / "captions")
    for changes in (
        {"annotations": packed},
        {"annotations": tmp_path, "sentences": moved / "captions"},
        {"sentences": moved / "captions"},
    ):
        again, found = read({**files, **changes})
        assert again == records
        assert found.counts == problems.counts
    with pytest.raises(DataError, match="captions are missing"):
        read(files)


def test_captions_beside_a_zip_that_has_none_are_read(tmp_path):
    files = files_in(tmp_path)
    expected, _ = read(files)
    files["annotations"] = tmp_path / "annotations.zip"
    with zipfile.ZipFile(files["annotations"], "w") as archive:
        archive.writestr("Annotations/77.xml", BOXES)
    with pytest.raises(DataError, match=r"no \.txt file in Sentences"):
        read(files)
    files["sentences"] = tmp_path / "Sentences"
    assert read(files)[0] == expected


def test_split_lists_may_be_compressed_and_may_name_files(tmp_path):
    files = files_in(tmp_path)
    files["val"] = tmp_path / "val.txt.gz"
    files["val"].write_bytes(gzip.compress(b"77.jpg\r\n"))
    del files["train"]
    records, _ = read(files)
    assert {(r.split, r.image.key) for r in records} == {("val", "flickr30k:77")}


def test_an_image_without_files_is_counted_and_the_others_are_read(tmp_path):
    files = files_in(tmp_path, test="5\n77\n6\n")
    (tmp_path / "Sentences" / "6.txt").write_text("nothing")
    records, problems = read(files)
    assert len(records) == 4
    assert problems.counts["image_without_annotation"] == 2
    assert problems.places["image_without_annotation"] == ["test.txt: 5: no captions", "test.txt: 6: no XML"]


def test_an_image_twice_in_one_list_is_read_once(tmp_path):
    once, _ = read(files_in(tmp_path / "once", test="5\n77\n"))
    twice, problems = read(files_in(tmp_path / "twice", test="77\n5\n77\n"))
    assert len(twice) == len(once)
    assert problems.places["repeated_image"] == ["test.txt: line 3: 77"]


def test_an_image_in_two_splits_is_refused(tmp_path):
    with pytest.raises(DataError, match="77 is already in train"):
        read(files_in(tmp_path, train="77\n", val="1\n77\n"))


def test_the_lists_of_splits_are_required(tmp_path):
    files = files_in(tmp_path)
    with pytest.raises(DataError, match="list of the images of a split"):
        read({"annotations": files["annotations"]})


def test_a_malformed_caption_is_counted_and_the_others_are_read(tmp_path):
    captions = "[/EN#1/people Two men look\n[/EN#2/people A man] .\n"
    records, problems = read(files_in(tmp_path, captions=captions))
    assert [r.expressions[0].id for r in records] == ["77/1/0"]
    assert problems.counts == {"malformed_caption": 1}


def test_a_malformed_annotation_is_counted_and_the_other_images_are_read(tmp_path):
    files = files_in(tmp_path, train="5\n77\n")
    (tmp_path / "Sentences" / "5.txt").write_text(CAPTIONS)
    (tmp_path / "Annotations" / "5.xml").write_text(BOXES.replace("</annotation>", ""))
    records, problems = read(files)
    assert {r.image.key for r in records} == {"flickr30k:77"}
    assert problems.counts["malformed_annotation"] == 1
    assert problems.places["malformed_annotation"][0].startswith("Annotations/5.xml: ")
    (tmp_path / "Annotations" / "5.xml").write_text(BOXES.replace("<xmin>159</xmin>", ""))
    assert read(files)[1].places["malformed_annotation"][0].startswith("Annotations/5.xml: object 0: <xmin>")


def test_captions_in_latin_1_with_windows_line_ends_are_read(tmp_path):
    captions = "[/EN#1/people Zwei Männer] .\r\n[/EN#2/people Ein Mann\xa0alt] .\r\n"
    records, _ = read(files_in(tmp_path, captions=captions, encoding="latin-1"))
    assert [r.expressions[0] for r in records] == [("77/0/0", "Zwei Männer"), ("77/1/0", "Ein Mann alt")]


def test_spans_cut_the_phrases_out_of_the_caption():
    line = "[/EN#1/people Two young , White males] are [ outside ] near [/EN#4/scene/other many [big] bushes] ."
    caption = parse_caption(line, where="here")
    assert caption.text == "Two young , White males are [ outside ] near many [big] bushes ."
    assert [caption.text[p.begin : p.end] for p in caption.phrases] == ["Two young , White males", "many [big] bushes"]
    assert [(p.chain, p.types) for p in caption.phrases] == [("1", ("people",)), ("4", ("scene", "other"))]


def test_the_same_words_twice_have_different_spans():
    caption = parse_caption("[/EN#1/people a man] and [/EN#2/people a man]", where="here")
    assert [(p.begin, p.end) for p in caption.phrases] == [(0, 5), (10, 15)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[/EN#1/people a man and [/EN#2/people a dog] .", "inside another"),
        ("[/EN#1/people a man", "never closed"),
        ("[/EN#x/people a man]", "no number"),
    ],
)
def test_brackets_that_do_not_match_are_refused(line, complaint):
    with pytest.raises(DataError, match=complaint):
        parse_caption(line, where="here")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("<xmin>159</xmin>", "<xmin>left</xmin>", "whole number"),
        ("<ymax>335</ymax>", "", "<ymax> should be a whole number"),
        ("<name>3</name>", "<name>3</name><nobndbox>1</nobndbox>", "marked as having none"),
        ("</annotation>", "", "not valid XML"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "document type"),
    ],
)
def test_a_contradictory_or_invalid_annotation_is_refused(old, new, complaint):
    with pytest.raises(DataError, match=complaint):
        parse_boxes(BOXES.replace(old, new, 1).encode(), "77", where="77.xml")


def test_the_format_is_recognised_by_its_two_folders(tmp_path):
    files_in(tmp_path)
    packed, foreign = tmp_path / "annotations.zip", tmp_path / "images.zip"
    for path, names in ((packed, ("a/Sentences/1.txt", "a/Annotations/1.xml")), (foreign, ("Annotations/1.json",))):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "")
    (tmp_path / "other").mkdir()
    assert SOURCE.sniff(packed)
    assert SOURCE.sniff(tmp_path)
    assert SOURCE.sniff(tmp_path / "Annotations")
    for path in (foreign, tmp_path / "other" / "absent", tmp_path / "train.txt"):
        assert not SOURCE.sniff(path)


@needs_real_data
def test_the_union_of_the_boxes_of_two_young_guys_is_the_published_one():
    files = {"annotations": REAL, **{split: REAL / f"{split}.txt" for split in ("train", "val", "test")}}
    records, problems = read(files)
    guys = next(r for r in records if r.expressions[0].text == "Two young guys")
    corners = list(zip(*(region.box_xyxy for region in guys.regions), strict=True))
    assert (min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3])) == (158, 109, 261, 373)
    assert problems.counts["image_without_annotation"] == 29_783 + 1_000 + 1_000 - 1
    texts = [line.strip() for line in (REAL / "Sentences" / "1000092795.txt").read_text().splitlines() if line.strip()]
    assert len(texts) == 5
    assert sum(text.count("[/EN#") for text in texts) == len(records) + sum(
        count for kind, count in problems.counts.items() if kind.startswith("phrase_without_box")
    )
