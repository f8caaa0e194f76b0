"""Every command refuses a store with a damaged manifest or Parquet file, with one message."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refcli.config.schema import TowerSettings
from refcli.contracts.example import Example, Region
from refcli.data.store.read import Store, read_group
from refcli.data.store.write import write_manifest, write_split
from refcli.data.training.dataset import GroundingDataset
from refcli.errors import DataError

TOWER = TowerSettings(image_size=96, patch_size=8, dim=64, heads=4)


@pytest.fixture
def store(tmp_path):
    examples = [
        Example(
            id=f"toy/{number}",
            dataset="toy",
            split="test",
            image=f"{number}.jpg",
            image_id=f"toy:{number}",
            width=100,
            height=80,
            expression="the cup",
            regions=(Region((1.0, 2.0, 30.0, 40.0), None, str(number)),),
        )
        for number in range(5)
    ]
    write_manifest(tmp_path, [write_split(tmp_path, "toy", "test", examples)])
    return tmp_path


def refused_by_every_command(refcli, store):
    """The messages of the commands that read a split; each must be a refusal with exit code 5."""
    answers = store / "p.jsonl"
    answers.write_text("")
    messages = []
    for command in (
        ("inspect-data", store),
        ("audit", store),
        ("prepare-data", "--verify", store),
        ("evaluate", "--predictions", answers, "--data", store, "--split", "toy:test"),
    ):
        code, _, message = refcli(*command)
        assert (code, "unexpected" in message) == (5, False), (command[0], message)
        messages.append(message)
    return messages


def changed(value, *, at="test"):
    """A change of the manifest's entry of a split."""
    return lambda manifest: manifest["datasets"]["toy"]["splits"][at].update(value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (changed({"file": {}}), "file"),
        (changed({"file": None}), "file"),
        (changed({"examples": -1}), "examples"),
        (changed({"examples": 5.0}), "examples"),
        (changed({"examples": 10**30}), "examples"),
        (changed({"bytes": "5"}), "bytes"),
        (changed({"sha256": 5}), "sha256"),
        (changed({"images_at": ["x"]}), "images_at"),
        (changed({"images_at": "a\0b"}), "images_at"),
        (changed({"origin": " "}), "origin"),
        (changed({"origin": {"inputs": {"train": "x"}}}), "origin.inputs.train"),
        (changed({"origin": {"inputs": {"train": {"path": "\ud83d", "sha256": ""}}}}), "origin.inputs.train.path"),
        (changed({"outcome": []}), "outcome"),
        (changed({"parts": {}}), "num_parts"),
        (changed({"parts": {"1": {}}, "num_parts": 1}), "parts.1"),
        (changed({"parts": {"x": {}}, "num_parts": 1}), "parts"),
        (changed({"parts": {}, "num_parts": 10**18}), "num_parts"),
        (lambda manifest: manifest["datasets"]["toy"].update(splits=[]), "datasets.toy.splits"),
        (lambda manifest: manifest["datasets"].update(toy=None), "datasets.toy"),
        (lambda manifest: manifest.update(datasets="x"), "datasets"),
        (lambda manifest: manifest.pop("datasets"), "datasets"),
        (lambda manifest: manifest["datasets"]["toy"]["splits"]["test"].pop("sha256"), "sha256"),
    ],
)
def test_a_manifest_of_another_shape_names_the_key(refcli, store, change, key):
    file = store / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    for message in refused_by_every_command(refcli, store):
        assert key in message
        assert "manifest" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": "refcli.store/1", "datasets": NaN}',
        b'{"schema": "refcli.store/1", "datasets": ' + b"9" * 5000 + b"}",
        b'{"schema": ["refcli.store/1"], "datasets": {}}',
    ],
)
def test_a_manifest_of_another_kind_is_refused(refcli, store, content):
    (store / "manifest.json").write_bytes(content)
    refused_by_every_command(refcli, store)


def with_column(name, values, kind):
    """A change of a table: one column of other values."""
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, kind))


def with_bad_text(table, name):
    """Bytes in a column that are not UTF-8, as in a damaged page."""
    data = b"\xff.jpg" * len(table)
    offsets = pa.array(range(0, len(data) + 1, 5), pa.int32())
    texts = pa.Array.from_buffers(pa.string(), len(table), [None, offsets.buffers()[1], pa.py_buffer(data)])
    return table.set_column(table.column_names.index(name), name, texts)


def with_region(**changes):
    """A change of a table: one region of the second row."""

    def change(table):
        rows = table.to_pylist()
        rows[1]["regions"][0] |= changes
        return pa.Table.from_pylist(rows, table.schema)

    return change


def renamed_region_field(table):
    lists = table["regions"].combine_chunks()
    fields = [lists.flatten().field(number) for number in range(6)]
    names = ["x1", "y1", "x2", "y2", "mask_co\0nts", "source_id"]
    regions = pa.ListArray.from_arrays(lists.offsets, pa.StructArray.from_arrays(fields, names))
    return table.set_column(table.column_names.index("regions"), "regions", regions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_column("width", ["a"] * 5, pa.string()), "complete Parquet file of a store"),
        (with_column("width", [2**40] * 5, pa.int64()), "complete Parquet file of a store"),
        (with_column("width", [100, -1, 1, 1, 1], pa.int32()), "has the size -1 x 80"),
        (with_column("height", [None, 80, 80, 80, 80], pa.int32()), "complete Parquet file of a store"),
        (with_column("image", ["a.jpg", "../a.jpg", "b", "c", "d"], pa.string()), "not a path inside"),
        (with_column("regions", [[1.0]] * 5, pa.list_(pa.float64())), "lacks the columns"),
        (with_column("regions", ["x"] * 5, pa.string()), "lacks the columns"),
        (renamed_region_field, "lacks the columns"),
        (with_region(x1=float("nan")), "left, top, right, bottom"),
        (with_region(x2=float("-inf")), "left, top, right, bottom"),
        (with_region(y2=0.5), "left, top, right, bottom"),
        (lambda table: table.drop_columns(["kind"]), "lacks the columns"),
        (lambda table: table.rename_columns(["id", "id", *table.column_names[2:]]), "lacks the columns"),
        (lambda table: table.slice(1), "has 4 rows"),
    ],
)
def test_a_parquet_file_of_another_shape_is_refused(refcli, store, change, message):
    file = store / "toy" / "test.parquet"
    table = change(pq.read_table(file))
    file.unlink()
    pq.write_table(table, file)
    with pytest.raises(DataError, match=message) as caught:
        list(Store(store).split("toy:test").tables())
    assert "test.parquet" in caught.value.where
    code, _, shown = refcli("prepare-data", "--verify", store)
    assert (code, "was changed" in shown) == (5, True)
    answers = store / "p.jsonl"
    answers.write_text("")
    code, _, shown = refcli("evaluate", "--predictions", answers, "--data", store, "--split", "toy:test")
    assert (code, "unexpected" in shown) == (5, False)


@pytest.mark.parametrize("name", ["id", "image", "expression", "kind"])
def test_text_that_is_not_utf8_is_refused(store, name):
    file = store / "toy" / "test.parquet"
    table = with_bad_text(pq.read_table(file), name)
    file.unlink()
    pq.write_table(table, file)
    with pytest.raises(DataError, match="UTF8"):
        Store(store).split("toy:test")[0]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_parquet_file_with_damaged_bytes_is_refused(refcli, store, share):
    file = store / "toy" / "test.parquet"
    content = bytearray(file.read_bytes())
    at = int(len(content) * share)
    content[at : at + 400] = bytes(400)
    file.unlink()
    file.write_bytes(content)
    assert "was changed" in refcli("prepare-data", "--verify", store)[2]
    (store / "p.jsonl").write_text("")
    code, _, message = refcli("evaluate", "--predictions", store / "p.jsonl", "--data", store, "--split", "toy:test")
    assert (code, "unexpected" in message) == (5, False)


def test_wider_column_types_of_other_programs_are_read(store):
    file = store / "toy" / "test.parquet"
    table = pq.read_table(file)
    before = [Store(store).split("toy:test")[number] for number in range(5)]
    wide = pa.table({name: table[name] for name in reversed(table.column_names)})
    wide = wide.set_column(wide.column_names.index("width"), "width", pc.cast(wide["width"], pa.int64()))
    wide = wide.set_column(wide.column_names.index("id"), "id", pc.cast(wide["id"], pa.large_string()))
    file.unlink()
    pq.write_table(wide.append_column("note", pa.array(["mine"] * 5)), file)
    split = Store(store).split("toy:test")
    assert [split[number] for number in range(5)] == before


def test_one_large_value_that_every_row_refers_to_does_not_fill_the_memory(store):
    file = store / "toy" / "test.parquet"
    table = with_column("expression", ["x" * 30_000] * 5, pa.string())(pq.read_table(file))
    file.unlink()
    pq.write_table(table, file)
    assert file.stat().st_size < 20_000
    with pytest.raises(DataError, match="memory"):
        read_group(file, 0, max_bytes=100_000, batch_bytes=50_000)


def test_rows_that_would_fill_the_memory_are_refused(store):
    with pytest.raises(DataError, match="memory"):
        read_group(store / "toy" / "test.parquet", 0, max_bytes=500)


def test_verify_lists_all_differences(refcli, store, tmp_path):
    manifest = json.loads((store / "manifest.json").read_text())
    splits = manifest["datasets"]["toy"]["splits"]
    splits["gone"] = splits["test"] | {"file": "toy/gone.parquet"}
    splits["miscounted"] = splits["test"] | {"examples": 6}
    splits["in_parts"] = {"num_parts": 2, "parts": {"2": splits["test"]}}
    inputs = {"train": {"path": "/dev", "sha256": "0"}, "val": {"path": "x" * 5000, "sha256": "0"}}
    splits["test"] = splits["test"] | {"origin": {"inputs": inputs}}
    (store / "manifest.json").write_text(json.dumps(manifest))
    code, _, message = refcli("prepare-data", "--verify", store)
    assert code == 5
    for part in ("toy:gone", "is gone", "toy:miscounted", "lists 6", "parts [1] of 2", "input train", "input val"):
        assert part in message


@pytest.mark.parametrize("counts", [b"", b"0", b"\xff" * 50, b"PPP0000", b"PP" * 5000, b"PPPPPPPPPPPo0"])
def test_a_damaged_mask_ends_in_one_error_that_names_its_example(refcli, store, counts):
    file = store / "toy" / "test.parquet"
    table = with_region(mask_counts=counts)(pq.read_table(file))
    file.unlink()
    pq.write_table(table, file)
    target = {"box": [1, 2, 30, 40], "score": 1.0, "mask": {"size": [80, 100], "counts": [0, 8000]}}
    answer = {"schema": "refcli.prediction/1", "id": "toy/1", "image": "1.jpg", "expression": "the cup"}
    answer |= {"width": 100, "height": 80, "targets": [target], "no_target": False, "error": None}
    (store / "p.jsonl").write_text(json.dumps(answer) + "\n")
    answers = ("--predictions", store / "p.jsonl")
    code, _, message = refcli("evaluate", *answers, "--data", store, "--split", "toy:test", "--missing", "wrong")
    assert (code, "unexpected" in message, "toy/1" in message) == (5, False, True)
    Image.new("RGB", (100, 80)).save(store / "toy" / "1.jpg")
    code, _, message = refcli("inspect-data", store, "--sample", 5, "--out", store / "drawn")
    assert (code, "unexpected" in message) == (1, False)
    assert "toy:test toy/1: " in message
    dataset = GroundingDataset(Store(store), ["toy:test"], tower=TOWER, augment=None)
    with pytest.raises(DataError, match=r"run length|mask") as caught:
        dataset[1, 0]
    assert "toy/1" in caught.value.where
