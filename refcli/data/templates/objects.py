"""From the regions of a labelled image to objects that can be described."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from refcli.contracts.example import Region
from refcli.data.sources.record import RawRegion
from refcli.data.templates.colours import UNKNOWN, ColourMeter, has_colour
from refcli.data.templates.graph import LabelledObject
from refcli.data.templates.names import readable_noun
from refcli.geometry.boxes import box_area
from refcli.geometry.masks import decode_mask, rle_area


def labelled_objects(
    labels: Sequence[RawRegion], regions: Sequence[Region], pixels: UInt8[np.ndarray, "height width 3"] | None
) -> tuple[LabelledObject, ...]:
    """The objects of an image, in order.

    Args:
        labels: the classes, in the order of `regions`.
        regions: the checked boxes and masks.
        pixels: the image in RGB, for colours; None: no colour word is used.
    """
    meter = None if pixels is None else ColourMeter(pixels)
    objects = []
    for number, (label, region) in enumerate(zip(labels, regions, strict=True)):
        noun = readable_noun(label.category or "")
        colours = UNKNOWN
        if meter is not None and noun is not None and has_colour(noun) and not label.is_crowd:
            mask = None if region.mask is None else decode_mask(region.mask)
            others = [one.box_xyxy for other, one in enumerate(regions) if other != number]
            colours = meter.measure(region.box_xyxy, mask, others)
        objects.append(
            LabelledObject(
                noun,
                region.box_xyxy,
                box_area(region.box_xyxy) if region.mask is None else float(rle_area(region.mask)),
                is_crowd=label.is_crowd,
                colour=colours.certain,
                possible_colours=colours.possible,
            )
        )
    return tuple(objects)
