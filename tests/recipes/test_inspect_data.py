"""inspect-data: statistics of the chosen splits, and drawings of their examples."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from refcli.contracts.example import RLE, Example, Region
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split
from refcli.drawing.colours import OVERLAY_COLOURS
from refcli.drawing.examples import CELL_WIDTH, answer_of
from refcli.drawing.overlays import SMALLEST_DRAWING
from refcli.errors import DataError, ExitCode, UsageError
from refcli.geometry.masks import encode_mask
from refcli.inference.output_manifest import INSPECTION_SCHEMA
from refcli.recipes.inspect_data import inspect_data

WIDTH, HEIGHT = 64, 48
BOX = (16.0, 12.0, 48.0, 36.0)


def examples_of(split, count, **changes):
    """Examples with one image each and one box in its middle."""
    return [
        replace(
            Example(
                id=f"{split}/{number}",
                dataset="toy",
                split=split,
                image=f"images/{split}-{number}.png",
                image_id=f"{split}-{number}",
                width=WIDTH,
                height=HEIGHT,
                expression=f"thing {number}",
                regions=(Region(BOX),),
            ),
            **changes,
        )
        for number in range(count)
    ]


def store_of(folder, *splits, size=(WIDTH, HEIGHT)):
    """A store of these lists of examples, with a grey image for each."""
    for examples in splits:
        write_manifest(folder, [write_split(folder, "toy", examples[0].split, examples)])
        for example in examples:
            file = folder / "toy" / example.image
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (90, 90, 90)).save(file)
    return folder


def colours_on(path):
    """The part of a drawing in the colour of the first region: (left, top, right, bottom) or None."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[: SMALLEST_DRAWING * HEIGHT // WIDTH]
    rows, columns = np.nonzero((abs(pixels - OVERLAY_COLOURS[0]) < 12).all(axis=2))
    return (columns.min(), rows.min(), columns.max(), rows.max()) if len(rows) else None


def rows_of(inspection, split):
    return [one.row for one in inspection.sample.drawn if one.split == split]


def test_all_splits_are_measured_by_default(tmp_path):
    store = store_of(tmp_path, examples_of("train", 3), examples_of("val", 2))

    assert [(one.name, one.expressions) for one in inspect_data(store).splits] == [("toy:train", 3), ("toy:val", 2)]
    assert [one.name for one in inspect_data(store, ["toy:val"]).splits] == ["toy:val"]
    assert inspect_data(store).sample is None
    assert inspect_data(store).exit_code is ExitCode.OK


def test_the_box_is_drawn_at_its_place(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 1))
    drawn = inspect_data(store, num_samples=1, out=tmp_path / "out").sample.drawn[0]
    factor = SMALLEST_DRAWING / WIDTH
    left, top, right, bottom = colours_on(tmp_path / "out" / drawn.file)

    assert drawn.file == "toy/train-000000.png"
    assert (left, right, bottom) == pytest.approx([factor * BOX[side] for side in (0, 2, 3)], abs=4)
    assert top <= factor * BOX[1] + 4  # a chip may sit on the upper side


def test_a_mask_is_tinted_and_the_rest_is_dimmed(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[12:36, 16:48] = True
    store = store_of(tmp_path / "store", examples_of("train", 1, regions=(Region(BOX, encode_mask(mask)),)))
    drawn = inspect_data(store, num_samples=1, out=tmp_path / "out").sample.drawn[0]
    pixels = np.asarray(Image.open(tmp_path / "out" / drawn.file).convert("RGB")).astype(int)

    assert pixels[240, 320, 0] > 120 > 90 > pixels[460, 10].max()


def test_an_expression_without_a_target_has_no_box(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 1, regions=()))
    drawn = inspect_data(store, num_samples=1, out=tmp_path / "out").sample.drawn[0]

    assert colours_on(tmp_path / "out" / drawn.file) is None
    assert answer_of(Store(store).split("toy:train")[0], WIDTH, HEIGHT).no_target


def test_an_image_of_unknown_size_is_drawn_at_its_own_size(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 1, width=0, height=0))
    inspection = inspect_data(store, num_samples=1, out=tmp_path / "out")
    left, _, right, _ = colours_on(tmp_path / "out" / inspection.sample.drawn[0].file)

    assert inspection.splits[0].unknown_size == 1
    assert (left, right) == pytest.approx((160, 480), abs=4)


def test_the_same_seed_draws_the_same_examples_whatever_else_is_drawn(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 30), examples_of("val", 30))
    both = inspect_data(store, num_samples=4, out=tmp_path / "a", seed=5)
    alone = inspect_data(store, ["toy:val"], num_samples=6, out=tmp_path / "b", seed=5)
    other = inspect_data(store, ["toy:val"], num_samples=6, out=tmp_path / "c", seed=6)

    assert rows_of(both, "toy:val") == rows_of(alone, "toy:val")[:4]
    assert rows_of(both, "toy:val") != rows_of(both, "toy:train")
    assert rows_of(alone, "toy:val") != rows_of(other, "toy:val")


def test_the_sheet_has_every_drawing_and_no_other_file_remains(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 5), examples_of("val", 1))
    out = tmp_path / "out"
    sample = inspect_data(store, num_samples=5, out=out).sample
    sheet = Image.open(sample.sheet)
    one_row = Image.open(inspect_data(store, ["toy:val"], num_samples=1, out=tmp_path / "one").sample.sheet)

    assert len(sample.drawn) == 6
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "contact_sheet.png",
        "inspection.json",
        *(drawn.file for drawn in sample.drawn),
    }
    assert sheet.width > 4 * CELL_WIDTH
    assert sheet.height > 2 * one_row.height  # two rows of train, one of val


def test_an_example_that_cannot_be_drawn_is_listed_and_replaced(tmp_path):
    examples = examples_of("train", 8)
    damaged = RLE((HEIGHT, WIDTH), encode_mask(np.ones((HEIGHT * 2, WIDTH), dtype=bool)).counts)
    examples[3] = replace(examples[3], regions=(Region(BOX, damaged),))
    store = store_of(tmp_path / "store", examples)
    images = store / "toy" / "images"
    (images / "train-0.png").unlink()
    (images / "train-1.png").write_bytes(b"no image")
    Image.new("RGB", (HEIGHT, WIDTH)).save(images / "train-2.png")
    inspection = inspect_data(store, num_samples=8, out=tmp_path / "out")
    errors = {failure.row: failure.error for failure in inspection.sample.failures}

    assert sorted(rows_of(inspection, "toy:train")) == [4, 5, 6, 7]
    assert sorted(errors) == [0, 1, 2, 3]
    assert "no such image" in errors[0]
    assert "48 x 64" in errors[2]
    assert "mask" in errors[3]
    assert inspection.exit_code is ExitCode.PARTIAL
    few = inspect_data(store, num_samples=4, out=tmp_path / "few")
    assert len(few.sample.drawn) == 4


def test_a_split_without_images_stops_early_and_makes_no_sheet(tmp_path):
    write_manifest(tmp_path, [write_split(tmp_path, "toy", "train", examples_of("train", 40))])
    inspection = inspect_data(tmp_path, num_samples=3, out=tmp_path / "out", max_failures=5)

    assert len(inspection.sample.failures) == 5
    assert inspection.sample.sheet is None
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
    assert inspection.exit_code is ExitCode.FAILED


def test_impossible_requests_are_usage_errors(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 1))
    (tmp_path / "file").write_text("")
    for arguments, where in [
        ({"splits": ["toy:train", "toy:train"]}, "--split"),
        ({"num_samples": 2}, "--out"),
        ({"out": tmp_path / "out"}, "--sample"),
        ({"num_samples": 0, "out": tmp_path / "out"}, "--sample"),
        ({"num_samples": 100_000, "out": tmp_path / "out"}, "--sample"),
        ({"num_samples": 1, "out": tmp_path / "file"}, "--out"),
    ]:
        with pytest.raises(UsageError) as caught:
            inspect_data(store, **arguments)
        assert where in caught.value.where


def test_an_unknown_split_names_the_nearest(tmp_path):
    with pytest.raises(DataError) as caught:
        inspect_data(store_of(tmp_path, examples_of("train", 1)), ["toy:trian"])

    assert "did you mean 'toy:train'" in caught.value.hint


def test_drawings_go_into_an_empty_folder_and_replace_only_those_of_an_earlier_call(tmp_path):
    store = store_of(tmp_path / "store", examples_of("train", 30))
    out = tmp_path / "out"
    (out / "toy").mkdir(parents=True)
    (out / "contact_sheet.png").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            inspect_data(store, num_samples=2, out=out, force=force)
    assert (out / "contact_sheet.png").read_text() == "mine"

    (out / "contact_sheet.png").unlink()
    (out / "toy").rmdir()
    first = inspect_data(store, num_samples=2, out=out, seed=1).sample
    (out / "toy" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        inspect_data(store, num_samples=2, out=out, seed=2)
    second = inspect_data(store, num_samples=2, out=out, seed=2, force=True).sample

    assert {one.file for one in first.drawn}.isdisjoint({one.file for one in second.drawn})
    assert sorted(path.name for path in (out / "toy").iterdir()) == sorted(
        ["notes.txt", *(one.file.removeprefix("toy/") for one in second.drawn)]
    )


@pytest.mark.parametrize("name", ["../victim-000001.png", "toy/notes.txt", "contact_sheet.png.txt", "toy/a-000001.png"])
def test_a_list_of_drawings_can_name_drawings_inside_the_folder_only(tmp_path, name):
    store = store_of(tmp_path / "store", examples_of("train", 3))
    (tmp_path / "victim-000001.png").write_text("mine")
    out = tmp_path / "out"
    (out / "toy").mkdir(parents=True)
    (out / "toy" / "notes.txt").write_text("mine")
    (out / "toy" / "a-000001.png").symlink_to(tmp_path / "victim-000001.png")
    listed = {"schema": INSPECTION_SCHEMA, "sample": {"sheet": None, "drawn": [{"file": name}]}}
    (out / "inspection.json").write_text(json.dumps(listed))

    inspect_data(store, num_samples=1, out=out, force=True)

    assert (tmp_path / "victim-000001.png").read_text() == "mine"
    assert (out / "toy" / "notes.txt").read_text() == "mine"
    assert (out / "toy" / "a-000001.png").is_symlink()
