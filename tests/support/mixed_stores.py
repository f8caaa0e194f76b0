"""A family of small data sets with known overlaps, for tests of mixtures."""

from refcli.contracts.example import RLE, Example, Region
from refcli.data.spec import DatasetSpec
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split

MASK = RLE((20, 30), b"0T7")


def example(dataset, split, id_, image):
    return Example(
        id=id_,
        dataset=dataset,
        split=split,
        image=f"{image}.jpg",
        image_id=f"coco:{image}",
        width=30,
        height=20,
        expression=f"{id_} of {dataset}",
        regions=(Region((1.0, 2.0, 3.5, 4.25), MASK, f"object {id_}"), Region((0.0, 0.0, 1.0, 1.0))),
        kind="plain",
    )


def stored(out, dataset, split, images, images_at=None, prefix=None, **options):
    """A split with one row per number in `images`, the number of its image."""
    prefix = f"{dataset}/" if prefix is None else prefix
    rows = [example(dataset, split, f"{prefix}{number}", image) for number, image in enumerate(images)]
    write_manifest(out, [write_split(out, dataset, split, rows, **options)], images=images_at, origin={"made": dataset})
    return rows


def spec(**changes):
    values = {
        "description": "two together",
        "licence": "CC0-1.0",
        "origin": "a test",
        "mixture": {"train": ["left:train", "right:train"], "val": ["right:val"]},
        "family": ["left", "right"],
    }
    return DatasetSpec.model_validate(values | changes)


def family_store(tmp_path):
    """Training images 1 2 3 2 and 3 4 5; evaluation images 2 (left:testA), 4 6 (right:val), so 2 and 4 leak."""
    stored(tmp_path, "left", "train", [1, 2, 3, 2])
    stored(tmp_path, "left", "testA", [2])
    stored(tmp_path, "right", "train", [3, 4, 5])
    stored(tmp_path, "right", "val", [4, 6])
    return tmp_path


def images_of(store, name):
    return Store(store).split(name).column("image_id").to_pylist()
