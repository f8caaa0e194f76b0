"""Small releases of the data sets that are JSON lines, JSON lists or folders of JSON files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from image_files import write_image
from PIL import Image
from pycocotools import mask as coco

from corpora.corpus import HEIGHT, WIDTH, Box, Corpus, Truth

LEFT: Box = (10.0, 20.0, 30.0, 60.0)
RIGHT: Box = (50.0, 20.0, 90.0, 60.0)


def text_mask(box: Box) -> dict[str, Any]:
    """The mask of a whole box with its run lengths as a text."""
    return {"size": [HEIGHT, WIDTH], "counts": coco.frPyObjects(list_mask(box), HEIGHT, WIDTH)["counts"].decode()}


def list_mask(box: Box) -> dict[str, Any]:
    """The mask of a whole box as uncompressed run lengths, column by column."""
    left, top, right, bottom = map(int, box)
    tall, gap = bottom - top, HEIGHT - bottom + top
    middle = [tall, gap] * (right - left - 1)
    counts = [left * HEIGHT + top, *middle, tall, HEIGHT - bottom + (WIDTH - right) * HEIGHT]
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def percent(box: Box) -> dict[str, Any]:
    """A box as Label Studio writes it."""
    left, top, right, bottom = box
    return {
        "x": 100 * left / WIDTH, "y": 100 * top / HEIGHT,
        "width": 100 * (right - left) / WIDTH, "height": 100 * (bottom - top) / HEIGHT,
        "original_width": WIDTH, "original_height": HEIGHT,
    }  # fmt: skip


def centred(box: Box) -> dict[str, float]:
    """A box as SK-VG writes it."""
    left, top, right, bottom = box
    return {"x": (left + right) / 2, "y": (top + bottom) / 2, "width": right - left, "height": bottom - top}


def square(left: int, top: int, side: int) -> list[list[float]]:
    """The corners of a square that covers side + 1 pixels in each direction, outline included."""
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


def _write_lines(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write_list(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))
    return path


def gseval_row(number: int, caption: str, box: Box, **fields: Any) -> dict[str, Any]:
    """A line of GSEval."""
    return {
        "idx": number, "image_path": f"unlabeled2017/{number:012d}.jpg", "class_id": 4, "label": "thing",
        "caption": caption, "box": list(box), "segmentation": list_mask(box), **fields,
    }  # fmt: skip


def write_gseval(path: Path) -> Path:
    return _write_lines(
        path,
        gseval_row(267, "the thing on the left", LEFT),
        gseval_row(268, "the right thing", RIGHT, segmentation=text_mask(RIGHT), class_id=1),
        gseval_row(269, "a thing", LEFT),
        gseval_row(269, "an id that was given before", LEFT),
    )


def write_humanref(path: Path) -> Path:
    common = {"sub_domain": "x", "candidate_boxes": [LEFT, RIGHT]}
    both = {"answer_boxes": [LEFT, RIGHT], "answer_segmentations": [list_mask(LEFT), text_mask(RIGHT)]}
    left = {"answer_boxes": [LEFT], "answer_segmentations": [list_mask(LEFT)]}
    none: dict[str, Any] = {"answer_boxes": [], "answer_segmentations": []}
    rows = (
        ("attribute", "everyone in red", both),
        ("celebrity", "the singer", left),
        ("rejection", "the man with an umbrella", none),
        ("rejection", "a rejection that has a box", left),
        ("position", "the person on the left", left),
    )
    return _write_lines(
        path,
        *(
            {"id": number, "image_name": f"{number}.jpg", "domain": domain, "referring": text, **common, **answer}
            for number, (domain, text, answer) in enumerate(rows)
        ),
    )


def write_openref(path: Path) -> Path:
    rows = (
        ("multi", "the cups", "the forks", [LEFT, RIGHT], 2),
        ("single", "the left cup", "", [LEFT], 1),
        ("none", "a cup of gold", "a spoon", [], 0),
        ("single", "a cup whose number of boxes is wrong", "a plate", [LEFT], 2),
    )
    return _write_list(
        path,
        *(
            {"image": f"{number}.jpg", "relation_type": relation, "positive": positive, "negative": negative}
            | {"bbox_num": count, "proposal": [percent(box) for box in boxes]}
            for number, (relation, positive, negative, boxes, count) in enumerate(rows)
        ),
    )


def write_reasonseg(folder: Path) -> Path:
    """Squares: a target with an ignored square in it, which has a target square in it."""
    folder.mkdir(parents=True)
    shapes = [
        {"label": "target", "points": square(40, 40, 4)},
        {"label": "ignore", "points": square(35, 35, 15)},
        {"label": "target", "points": square(20, 20, 40)},
        {"label": "flag", "points": square(0, 0, 70)},
    ]
    annotations = {
        "a": {"text": ["the café’s table", "where one eats"], "is_sentence": False, "shapes": shapes},
        "b": {"text": ["What is used to cut the bread?"], "is_sentence": True, "shapes": shapes[:1]},
        "c": {"text": ["where is the knife?"], "is_sentence": True, "shapes": shapes[2:]},
        "d": {"text": ["only ignored"], "is_sentence": True, "shapes": shapes[1:2]},
    }
    for name, annotation in annotations.items():
        text = json.dumps(annotation, ensure_ascii=False)
        (folder / f"{name}.json").write_bytes(text.encode("cp1252" if name == "a" else "utf-8"))
        write_image(folder / f"{name}.jpg", (WIDTH, HEIGHT))
    return folder


def write_sk_vg(path: Path) -> Path:
    rows = (
        ("her cup", LEFT),
        ("the guest's plate", RIGHT),
        ("the table", LEFT),
        ("a box in fractions", (0, 0, 0.5, 1)),
    )
    return _write_list(
        path,
        *(
            {"image_name": f"{number}.jpg", "knowledge": "Ann has a guest.", "ref_exp": text} | {"bbox": centred(box)}
            for number, (text, box) in enumerate(rows)
        ),
    )


def write_mmr(path: Path) -> Path:
    left, right = (
        {"segmentation": mask, "category_name": "cup:handle"} for mask in (list_mask(LEFT), text_mask(RIGHT))
    )
    image = {"height": HEIGHT, "width": WIDTH, "image_id": 7, "text_answers": []}
    return _write_list(
        path,
        {"file_name": "000000000007.jpg", "questions": ["What can be held?", "Where is it warm?", "What is nothing?"]}
        | {"annotations": [left, right], "answers": [[left, right], [right], []], **image},
        {"file_name": "000000000008.jpg", "questions": ["What is old?"], "annotations": [left], "answers": [[left]]}
        | image,
    )


def conversation(image: str, *values: str, **fields: Any) -> dict[str, Any]:
    """A training line; the human speaks first."""
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "x", "image": image, "width": WIDTH, "height": HEIGHT, "conversations": turns, **fields}


def write_llava(path: Path) -> Path:
    question = "<image>\nWhat is there?"
    return _write_list(
        path,
        conversation(
            "coco/train2014/COCO_train2014_000000000007.jpg",
            question,
            "<ref>a cup</ref><box>[[10, 20, 30, 60]]</box>, <ref>a plate</ref><box>[[50, 20, 90, 60]]</box>, "
            "<ref>light</ref>.",
        ),
        conversation("b.jpg", question, "<p>both cups</p> [10, 20, 30, 60] [50, 20, 90, 60]"),
    )


def png(colour: str) -> bytes:
    """An image file of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), colour).save(content, "PNG")
    return content.getvalue()


def write_rex_tsv(folder: Path) -> Path:
    """Two images, the second annotated first; the first has a phrase twice, and one that has no target."""
    lines = [
        name.encode() + b"\t" + base64.b64encode(png(colour)) + b"\n"
        for name, colour in (("a.png", "red"), ("b.png", "blue"))
    ]
    (folder / "mine_train.images.tsv").write_bytes(b"".join(lines))
    rows = (
        (len(lines[0]), [{"bbox": LEFT, "phrase": "lamp"}]),
        (0, [{"bbox": LEFT, "phrase": "cup"}, {"bbox": None, "phrase": "fork"}, {"bbox": RIGHT, "phrase": "Cup"}]),
        (5, [{"bbox": LEFT, "phrase": "an offset inside of a line"}]),
    )
    path = folder / "mine_train.annotations.tsv"
    path.write_text("".join(f"{offset}\t{json.dumps({'boxes': boxes})}\n" for offset, boxes in rows))
    (folder / "mine_train.annotations.tsv.lineidx").write_text("0\n")
    return path


JSON_SETS: dict[str, Corpus] = {
    "gseval": Corpus(
        lambda folder: write_gseval(folder / "GroundingSuite_test.jsonl"),
        num_expressions=3,
        families=frozenset({"coco"}),
        problems={"broken_line": 1},
        truth=Truth("tiny/268", "test", "the right thing", "coco:268", (RIGHT,), (40 * 40,)),
    ),
    "humanref": Corpus(
        lambda folder: write_humanref(folder / "annotations_test.jsonl"),
        num_expressions=4,
        families=frozenset({"tiny"}),
        problems={"broken_line": 1},
        truth=Truth("tiny/0", "test", "everyone in red", "tiny:0.jpg", (LEFT, RIGHT), (20 * 40, 40 * 40)),
    ),
    "openref": Corpus(
        lambda folder: write_openref(folder / "val.json"),
        num_expressions=5,
        families=frozenset({"tiny"}),
        problems={"broken_row": 1},
        truth=Truth("tiny/1/positive", "val", "the cups", "tiny:0.jpg", (LEFT, RIGHT), (None, None)),
    ),
    "reasonseg": Corpus(
        lambda folder: write_reasonseg(folder / "val"),
        num_expressions=4,
        families=frozenset({"tiny"}),
        problems={"broken_file": 1},
        truth=Truth(
            "tiny/a/1", "val", "where one eats", "tiny:val/a.jpg", ((20.0, 20.0, 61.0, 61.0),), (41**2 - 16**2 + 5**2,)
        ),
    ),
    "sk_vg": Corpus(
        lambda folder: write_sk_vg(folder / "train.json"),
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"broken_row": 1},
        truth=Truth("tiny/2", "train", "the guest's plate", "tiny:1.jpg", (RIGHT,), (None,), size=(0, 0)),
    ),
    "mmr": Corpus(
        lambda folder: write_mmr(folder / "MMR_val.json"),
        num_expressions=3,
        families=frozenset({"coco"}),
        problems={"question_without_answer": 1},
        truth=Truth("tiny/1/0", "val", "What can be held?", "coco:7", (LEFT, RIGHT), (20 * 40, 40 * 40)),
    ),
    "llava": Corpus(
        lambda folder: write_llava(folder / "mine_train.json"),
        num_expressions=3,
        families=frozenset({"coco", "tiny"}),
        problems={"phrase_without_box": 1},
        truth=Truth("tiny/2/0", "train", "both cups", "tiny:b.jpg", (LEFT, RIGHT), (None, None)),
        settings={"coordinates": "pixels"},
    ),
    "rex_tsv": Corpus(
        write_rex_tsv,
        num_expressions=3,
        families=frozenset({"tiny"}),
        problems={"broken_line": 1},
        truth=Truth(
            "tiny/2/0", "train", "cup", f"tiny:{sha256(png('red')).hexdigest()[:32]}/a.png", (LEFT, RIGHT), (None, None)
        ),
    ),
}
"""Row of the table of sources -> its corpus."""
