"""Answers as Label Studio tasks with pre-annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from refcli.answers.written import AnsweredImage, Written, by_image, categories, json_parts, usable, xml_text
from refcli.contracts.prediction import Answer, Target
from refcli.files import open_atomically, write_atomically
from refcli.geometry.brush_masks import brush_run_lengths

FILE = "label_studio.json"
CONFIG_FILE = "label_studio.xml"
IMAGE, BOXES, MASKS = "image", "box", "mask"
"""Names of the tags of the labelling configuration."""
PATH = "{image}"
"""Stands for the path of an image in an address."""
LABELLING_CONFIG = """<View>
  <Table name="answers" value="$answers"/>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image">
{labels}
  </RectangleLabels>
  <BrushLabels name="mask" toName="image">
{labels}
  </BrushLabels>
</View>
"""


def write_label_studio(
    answers: Iterable[Answer], out: Path, *, min_score: float = 0.0, image_url: str | None = None
) -> Written:
    """Write `label_studio.json`, one task per image, and `label_studio.xml`, a labelling configuration to paste.

    Boxes are rectangles in percent of the image; masks are brush masks in Label Studio's own run lengths. The label is
    the expression; `box-N` and `mask-N` belong to one target. The data of a task lists all `expressions`, also those
    without a target, so that an export shows which were asked.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
        image_url: the address of an image in Label Studio, such as `/data/local-files/?d={image}`; `{image}` stands for
            its path, percent-encoded, which is appended if there is no `{image}`. None: the path as it is.
    """
    written = Written([FILE, CONFIG_FILE])
    images = by_image(usable(answers, written, min_score=min_score))
    with open_atomically(out / FILE) as file:
        file.writelines(json_parts(task(image, image_url=image_url) for image in images))
    write_atomically(out / CONFIG_FILE, labelling_config(images).encode())
    return written


def task(image: AnsweredImage, *, image_url: str | None = None) -> dict[str, Any]:
    """The task of one image; the score of its prediction is the mean of the targets' scores."""
    targets = list(image.found)
    results = [result for number, (answer, target) in enumerate(targets) for result in _results(number, answer, target)]
    score = sum(target.score for _, target in targets) / len(targets) if targets else None
    counts: Counter[str] = Counter()
    for answer in image.answers:
        counts[xml_text(answer.expression)] += len(answer.targets)
    data = {
        "image": image.image if image_url is None else _address(image_url, image.image),
        "image_path": image.image,
        "width": image.width,
        "height": image.height,
        "expressions": list(counts),
        "answers": {expression: _counted(number) for expression, number in counts.items()},
    }
    return {
        "data": data,
        "predictions": [{"model_version": image.answers[0].weights or "refcli", "score": score, "result": results}],
    }


def _address(image_url: str, image: str) -> str:
    template = image_url if PATH in image_url else image_url + PATH
    return template.replace(PATH, quote(PurePath(image).as_posix(), errors="replace"))


def _counted(number: int) -> str:
    if not number:
        return "no target"
    return "1 region" if number == 1 else f"{number} regions"


def labelling_config(images: Iterable[AnsweredImage]) -> str:
    """The XML that declares the labels of these images."""
    labels = "\n".join(f"    <Label value={quoteattr(xml_text(name))}/>" for name in categories(images))
    return LABELLING_CONFIG.format(labels=labels)


def _results(number: int, answer: Answer, target: Target) -> list[dict[str, Any]]:
    shared = {
        "to_name": IMAGE,
        "original_width": answer.width,
        "original_height": answer.height,
        "image_rotation": 0,
        "score": round(target.score, 5),
    }
    label = [xml_text(answer.expression)]
    x1, y1, x2, y2 = target.box_xyxy
    box = {
        "x": 100 * x1 / answer.width,
        "y": 100 * y1 / answer.height,
        "width": 100 * (x2 - x1) / answer.width,
        "height": 100 * (y2 - y1) / answer.height,
        "rotation": 0,
        "rectanglelabels": label,
    }
    results = [shared | {"id": f"box-{number}", "from_name": BOXES, "type": "rectanglelabels", "value": box}]
    if target.mask is not None:
        brush = {"format": "rle", "rle": brush_run_lengths(target.mask), "brushlabels": label}
        results.append(shared | {"id": f"mask-{number}", "from_name": MASKS, "type": "brushlabels", "value": brush})
    return results
