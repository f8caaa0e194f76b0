"""The options of the COCO-style JSON reader."""

from __future__ import annotations

from typing import Literal

from refcli.data.sources.image_names import ImageOrigin
from refcli.data.sources.labels import LabelSettings

Unit = Literal["caption", "phrase", "annotation"]


class CocoSettings(LabelSettings):
    """Options of the COCO-style JSON reader; with `expressions` other than `given`, no text of the file is read."""

    unit: Literal["auto", "caption", "phrase", "annotation"] = "auto"
    """What an expression is: a whole caption, a phrase of a caption, or the text of an annotation. `auto`, for each
    image row: annotation if one of its annotations has a text or there is no caption; else phrase if `dataset_name`
    (without one, a file name that starts with final_) contains flickr, mixed or gqa, or if the annotations of any
    caption in the file mark different words of it (unless `dataset_name` contains refcoco); else caption."""
    kind: Literal["none", "level"] = "none"
    """The kind of the expressions, by which reports divide their figures. `level`: "level_1" and so on, from the key
    `level` of the annotations (FineCops-Ref)."""
    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where the file shows it by a name COCO_train2014_..., by a COCO URL
    (coco_url), or by `original_id` with a `data_source` or `dataset_name` of COCO; `own`: the data set itself."""
    flickr_boxes: Literal["auto", "correct", "keep"] = "auto"
    """The boxes of MDETR's Flickr30k files are those of the XML: counted from 1, with a width and height one pixel
    short. `auto` corrects them where `dataset_name` (without one, a file name that starts with final_) contains flickr;
    `keep` takes the numbers as MDETR and its evaluator do."""
