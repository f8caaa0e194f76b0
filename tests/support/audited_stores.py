"""Stores with known overlaps, and images, for tests of the audit."""

import numpy as np
from PIL import Image

from refcli.contracts.example import Example, Region
from refcli.data.audit.overlaps import audit_store
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split

BOX = (1.0, 2.0, 11.0, 12.0)


OTHER_BOX = (20.0, 2.0, 31.0, 12.0)


def make_store(out, dataset="toy", **splits):
    """Splits of a data set: lists of (image id, text, regions), a region being a box or (box, source id)."""
    summaries = []
    for split, rows in splits.items():
        examples = [
            Example(
                id=f"{split}/{number}",
                dataset=dataset,
                split=split,
                image=f"{image_id.replace(':', '_')}.png",
                image_id=image_id,
                width=100,
                height=50,
                expression=text,
                regions=tuple(
                    Region(region) if isinstance(region[0], float) else Region(region[0], None, region[1])
                    for region in regions
                ),
            )
            for number, (image_id, text, regions) in enumerate(rows)
        ]
        summaries.append(write_split(out, dataset, split, examples))
    write_manifest(out, summaries)
    return Store(out)


def counts(overlap):
    return overlap.shared_images, overlap.shared_objects, overlap.identical_examples


def only_overlap(out, train, val):
    (overlap,) = audit_store(make_store(out, train=train, val=val)).overlaps
    assert (overlap.train, overlap.evaluation, overlap.near_duplicates) == ("toy:train", "toy:val", None)
    return counts(overlap)


def two_data_sets(out):
    """Data sets toy and other, which share only the image coco:1, in toy:train and other:val."""
    make_store(out, train=[("coco:1", "a cat", [BOX]), ("coco:4", "a cow", [BOX])], val=[("coco:2", "a dog", [BOX])])
    return make_store(
        out,
        "other",
        train=[("coco:7", "a cat", [BOX])],
        val=[("coco:1", "a cat", [BOX]), ("coco:8", "a", [BOX]), ("coco:1", "it", [OTHER_BOX])],
        test=[("coco:9", "a cat", [BOX])],
    )


def waves(seed, size=(320, 240)):
    """A smooth random image."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
