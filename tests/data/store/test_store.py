"""Store: examples survive a round trip, access is fast, and errors name the faulty example or file."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from call_counting import num_calls

from refcli.contracts.example import Example, Region
from refcli.data.shard import Shard
from refcli.data.store.layout import examples_to_table, read_manifest
from refcli.data.store.read import Store
from refcli.data.store.write import SplitWriter, write_manifest, write_split
from refcli.errors import DataError
from refcli.files import file_sha256
from refcli.geometry.masks import encode_mask, mask_box


def example(number, **changes):
    mask = np.zeros((20, 30), dtype=bool)
    mask[number % 10 : number % 10 + 5, 3:9] = True
    rle = encode_mask(mask)
    base = Example(
        id=f"toy/{number}",
        dataset="toy",
        split="train",
        image=f"images/{number}.png",
        image_id=str(number),
        width=30,
        height=20,
        expression=f"Größe № {number} 猫",
        regions=(Region(mask_box(rle), rle, f"object {number}"),),
        kind=["attribute", "ordinal", None][number % 3],
    )
    return replace(base, **changes)


def written(out, examples, dataset="toy", split="train", **options):
    summary = write_split(out, dataset, split, examples, **options)
    write_manifest(out, [summary])
    return summary


def varied_examples():
    one, two = example(0).regions[0], example(4).regions[0]
    return [
        example(0),
        example(1, regions=()),
        example(2, regions=(one, two, Region((0.1, 1 / 3, 12.5, 19.0)))),
        example(3, kind=None, expression='a\nb\t"c"'),
        example(4, regions=(replace(one, source_id=None),)),
        example(5, regions=(Region((-1.5, 0.0, 31.0, 20.0), None, ""),), ignored=two.mask),
    ]


def test_written_examples_are_read_back_unchanged(tmp_path):
    examples = varied_examples()
    written(tmp_path, iter(examples))
    split = Store(tmp_path).split("toy:train")
    assert len(split) == len(examples)
    assert [split[index] for index in range(len(examples))] == examples


def test_files_of_earlier_versions_have_no_ignored_regions(tmp_path):
    summary = written(tmp_path, [example(0), example(5, ignored=example(4).regions[0].mask)])
    file = tmp_path / summary.file
    pq.write_table(pq.read_table(file).drop_columns(["ignored_counts"]), file)
    split = Store(tmp_path).split("toy:train")
    assert [split[0], split[1]] == [example(0), example(5)]
    assert [table["ignored_counts"].null_count for table in split.tables(("id", "ignored_counts"))] == [2]


def test_examples_are_read_across_row_groups(tmp_path):
    examples = [example(number) for number in range(11)]
    written(tmp_path, examples, rows_per_group=4)
    split = Store(tmp_path).split("toy:train")
    assert pq.read_metadata(split.files[0][0]).num_row_groups == 3
    assert [split[index] for index in (10, 0, 3, 4, 7, 8)] == [examples[index] for index in (10, 0, 3, 4, 7, 8)]
    for index in (-1, 11):
        with pytest.raises(IndexError):
            split[index]


def test_the_summary_and_the_manifest_count_the_examples(tmp_path):
    summary = written(tmp_path, varied_examples())
    assert (summary.examples, summary.images, summary.regions, summary.masks, summary.no_target) == (6, 6, 7, 5, 1)
    entry = json.loads((tmp_path / "manifest.json").read_text())["datasets"]["toy"]["splits"]["train"]
    file = tmp_path / entry["file"]
    assert entry["sha256"] == file_sha256(file)
    assert entry["bytes"] == file.stat().st_size
    assert entry["examples"] == 6


def test_a_new_split_leaves_the_others_listed_and_a_repeated_one_replaces_its_own(tmp_path):
    written(tmp_path, [example(0)])
    written(tmp_path, [example(1, split="val"), example(2, split="val")], split="val")
    written(tmp_path, [example(3, dataset="other")], dataset="other")
    written(tmp_path, [example(4), example(5), example(6)])
    store = Store(tmp_path)
    assert store.names() == ["other:train", "toy:train", "toy:val"]
    assert [len(store.split(name)) for name in store.names()] == [1, 3, 2]


def test_any_parquet_reader_sees_plain_columns(tmp_path):
    written(tmp_path, varied_examples())
    rows = pq.read_table(tmp_path / "toy" / "train.parquet").to_pylist()
    assert rows[2]["regions"][2] == {
        "x1": 0.1,
        "y1": 1 / 3,
        "x2": 12.5,
        "y2": 19.0,
        "mask_counts": None,
        "source_id": None,
    }
    assert rows[0]["expression"] == "Größe № 0 猫"
    assert rows[0]["regions"][0]["mask_counts"] == example(0).regions[0].mask.counts


def test_examples_are_written_as_a_stream(tmp_path, monkeypatch):
    num_made = 0
    made_before_rows_were_written = []
    write = SplitWriter.write

    def spy(writer, table):
        made_before_rows_were_written.append(num_made)
        write(writer, table)

    monkeypatch.setattr(SplitWriter, "write", spy)

    def examples():
        nonlocal num_made
        for number in range(35):
            num_made += 1
            yield example(number)

    written(tmp_path, examples(), rows_per_group=10)
    assert made_before_rows_were_written == [10, 20, 30, 35]


def test_parts_written_by_several_processes_make_one_split(tmp_path):
    examples = [example(number) for number in range(10)]
    for number, chosen in ((2, examples[6:]), (1, examples[:6])):
        with SplitWriter(tmp_path, "toy", "train", part=Shard(number, 2)) as writer:
            writer.write(examples_to_table(chosen))
            summary = writer.finish()
            writer.publish()
        write_manifest(tmp_path, [summary], origin={"source": "toy"}, part=Shard(number, 2))
        if number == 2:
            with pytest.raises(DataError, match=r"parts \[1\] of 2") as caught:
                Store(tmp_path).split("toy:train")
            assert "--shard 1/2" in caught.value.hint

    split = Store(tmp_path).split("toy:train")
    assert [split[index] for index in range(len(split))] == examples
    entry = read_manifest(tmp_path)["datasets"]["toy"]["splits"]["train"]
    assert (entry["examples"], entry["images"], entry["regions"]) == (10, 10, 10)


def test_an_image_of_unknown_size_may_have_boxes_but_no_masks(tmp_path):
    box = Region((1.0, 2.0, 3.0, 4.0))
    written(tmp_path, [example(0, width=0, height=0, regions=(box,))])
    assert Store(tmp_path).split("toy:train")[0].regions == (box,)
    table = examples_to_table([example(1)])
    for name in ("width", "height"):
        column = pa.array([0], pa.int32())
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    with SplitWriter(tmp_path, "toy", "train") as writer, pytest.raises(DataError, match="size is unknown"):
        writer.write(table)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (example(7, split="val"), "belongs to toy:val"),
        (example(0), "occurs twice"),
        (example(7, expression=" \n"), "blank"),
        (example(7, image="../secret.png"), "not a path inside"),
        (example(7, image="/etc/passwd"), "not a path inside"),
        (example(7, width=0, regions=()), "size 0 x 20"),
        (example(7, width=-3, height=-3, regions=()), "size -3 x -3"),
        (example(7, regions=(Region((5.0, 5.0, 4.0, 9.0)),)), "left, top, right, bottom"),
        (example(7, regions=(Region((0.0, 0.0, float("nan"), 9.0)),)), "left, top, right, bottom"),
        (example(7, height=21), "a mask has the size"),
    ],
)
def test_an_invalid_example_is_named_and_leaves_the_old_split_alone(tmp_path, bad, message):
    written(tmp_path, [example(1)])
    with pytest.raises(DataError, match=message) as caught:
        written(tmp_path, [example(0), bad])
    assert bad.id in caught.value.where
    assert Store(tmp_path).split("toy:train")[0] == example(1)
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["train.parquet"]


def test_a_crash_while_writing_leaves_nothing_behind(tmp_path):
    def examples():
        yield example(0)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_split(tmp_path, "toy", "train", examples())
    assert list((tmp_path / "toy").iterdir()) == []


def test_an_empty_split_and_an_impossible_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="no examples"):
        write_split(tmp_path, "toy", "train", [])
    for name in ("a:b", "../up", "", ".hidden"):
        with pytest.raises(DataError, match="cannot be the name"):
            write_split(tmp_path, "toy", name, [example(0)])


def test_an_unknown_split_names_the_nearest(tmp_path):
    written(tmp_path, [example(0)])
    with pytest.raises(DataError) as caught:
        Store(tmp_path).split("toy:trian")
    assert "did you mean 'toy:train'" in caught.value.hint


def test_a_folder_that_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="no store here"):
        Store(tmp_path)
    for content, message in [
        ("{", "cannot be read"),
        ('{"schema": "refcli.store/99"}', "refcli.store/99"),
        ("[]", "None"),
        ('{"schema": "refcli.store/1", "datasets": {"toy": {"splits": {"train": {}}}}}', "incomplete"),
    ]:
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=message):
            Store(tmp_path)


def test_a_missing_truncated_or_changed_file_is_detected(tmp_path):
    written(tmp_path, [example(0), example(1)])
    file = tmp_path / "toy" / "train.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        Store(tmp_path).split("toy:train")
    write_split(tmp_path, "toy", "train", [example(0)])
    with pytest.raises(DataError, match="has 1 rows, but the manifest lists 2"):
        Store(tmp_path).split("toy:train")
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        Store(tmp_path).split("toy:train")


def test_images_lie_beside_the_split_unless_the_manifest_names_another_root(tmp_path):
    written(tmp_path, [example(0)])
    assert Store(tmp_path).split("toy:train").image_path(example(0)) == tmp_path / "toy" / "images" / "0.png"
    elsewhere = tmp_path.parent / "coco"
    write_manifest(tmp_path, [write_split(tmp_path, "toy", "train", [example(0)])], images=str(elsewhere))
    split = Store(tmp_path).split("toy:train")
    assert split.image_path(example(0)) == elsewhere / "images" / "0.png"
    for image in ("../../etc/passwd", "/etc/passwd"):
        with pytest.raises(DataError, match="leaves the image root"):
            split.image_path(example(0, image=image))


def test_a_pickled_split_does_not_carry_its_rows(tmp_path):
    examples = [example(number) for number in range(2000)]
    written(tmp_path, examples)
    split = Store(tmp_path).split("toy:train")
    split.load()
    letter = pickle.dumps(split)
    assert len(letter) < 1000
    code = "import pickle, sys; split = pickle.load(sys.stdin.buffer); print(len(split), split[1234].id)"
    answer = subprocess.run([sys.executable, "-c", code], input=letter, capture_output=True, check=True)
    assert answer.stdout.split() == [b"2000", b"toy/1234"]


def test_reading_one_example_costs_the_same_however_large_the_split_is(tmp_path):
    def calls_of(size):
        written(tmp_path / str(size), (example(number) for number in range(size)))
        split = Store(tmp_path / str(size)).split("toy:train")
        split.load()
        return num_calls(lambda: split[7])

    assert calls_of(3000) == calls_of(10) < 100
