"""The manifest and the Parquet files of a store."""

import io
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import NUM_INPUTS, damaged, fuzz, mutated_json_bytes
from hypothesis import strategies as st

from refcli.contracts.example import Example, Region
from refcli.data.audit.overlaps import audit_store, distinct_images
from refcli.data.preparation.origin import is_unchanged, verify_store
from refcli.data.shard import Shard
from refcli.data.store.layout import SCHEMA, examples_to_table
from refcli.data.store.read import Store
from refcli.data.store.statistics import split_statistics
from refcli.data.store.write import Listing, SplitWriter, list_splits, write_manifest, write_split
from refcli.errors import RefcliError
from refcli.evaluation.predictions import RowIndex
from refcli.geometry.masks import encode_mask

SPLITS = ("train", "val")


def examples(split):
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:9, 4:20] = True
    regions = (Region((4.0, 3.0, 20.0, 9.0), encode_mask(mask), "7"), Region((1.0, 2.0, 3.0, 4.5)))
    for number in range(6):
        yield Example(
            id=f"toy/{split}/{number}",
            dataset="toy",
            split=split,
            image=f"images/{number % 4}.png",
            image_id=f"toy:{number % 4}",
            width=30,
            height=20,
            expression=f"the cup № {number}",
            regions=regions[: number % 3],
            kind=["attribute", None][number % 2],
        )


@pytest.fixture
def store(tmp_path):
    summaries = [write_split(tmp_path, "toy", split, examples(split)) for split in SPLITS]
    origin = {"source": "jsonl", "settings": {"a": [1, 2.5]}, "inputs": {"train": {"path": "x", "sha256": "0" * 64}}}
    write_manifest(tmp_path, summaries, origin=origin, outcome={"splits": list(SPLITS), "missing_images": 0})
    return tmp_path


def read_everything(folder):
    """Read a store as all commands do; an error of one does not stop the others."""
    store = Store(folder)
    refusals = []
    attempts = [
        lambda: verify_store(folder),
        lambda: audit_store(store),
        lambda: distinct_images(store),
        lambda: is_unchanged(folder, "toy", {}, part=Shard(1, 2), strict=True),
    ]
    for name in store.names():
        attempts += [lambda name=name: read_split(store, name), lambda name=name: split_statistics(store.split(name))]
    for attempt in attempts:
        try:
            attempt()
        except RefcliError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def read_split(store, name):
    split = store.split(name)
    passing = store.split(name, groups_kept=4)
    RowIndex.of(passing)
    for index in range(len(split)):
        split.image_path(passing[index])
    store.origin(name)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_manifest_is_read_or_refused(store, num_inputs):
    manifest = json.loads((store / "manifest.json").read_text())
    parts = json.loads(json.dumps(manifest))
    splits = parts["datasets"]["toy"]["splits"]
    splits["train"] = {"num_parts": 2, "parts": {"1": splits["train"], "2": splits["val"]}, "origin": {}}

    def read(content):
        (store / "manifest.json").write_bytes(content)
        read_everything(store)

    fuzz(mutated_json_bytes([manifest, parts]), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_store_is_added_to_or_refused_and_nothing_else_changes(store, tmp_path_factory, num_inputs):
    manifest = json.loads((store / "manifest.json").read_text())
    whole = {path: path.read_bytes() for path in store.rglob("*.parquet")}
    outside = tmp_path_factory.mktemp("outside")
    (outside / "victim.parquet").write_bytes(b"precious")
    table = examples_to_table(list(examples("train")))

    def add(content):
        for path, parquet in whole.items():
            path.write_bytes(parquet)
        (store / "manifest.json").write_bytes(content.replace(b"/nonexistent/x", bytes(outside / "victim.parquet")))
        try:
            with SplitWriter(store, "toy", "train") as writer:
                writer.write(table.slice(0, 3))
                list_splits(store, [Listing(writer.finish(), writer=writer)])
        finally:
            assert [path.read_bytes() for path in outside.iterdir()] == [b"precious"]
        assert len(Store(store).split("toy:train")) == 3

    fuzz(mutated_json_bytes([manifest]), add, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_parquet_file_is_read_or_refused(store, num_inputs):
    file = store / "toy" / "train.parquet"
    whole = file.read_bytes()
    kept = shutil.copy(file, store / "kept.parquet")

    def read(content):
        file.unlink()  # other pages, in case the old ones are still mapped
        file.write_bytes(content)
        read_everything(store)

    fuzz(st.one_of(damaged([whole]), changed_tables(pq.read_table(kept))), read, num_inputs)


@st.composite
def changed_tables(draw, table):
    """A table of rows with one to three columns of other types, names or values, as a file."""
    rows = table.to_pylist()
    types = {field.name: field.type for field in SCHEMA}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(types)))
        match draw(st.sampled_from(("value", "value", "type", "drop", "rename"))):
            case "value":
                row = draw(st.sampled_from(rows))
                row[name] = draw(st.sampled_from(VALUES))
            case "type":
                types[name] = draw(st.sampled_from(TYPES))
            case "drop":
                types.pop(name)
            case "rename":
                types[draw(st.sampled_from(("", "ID", "regions")))] = types.pop(name)
    random.Random(draw(st.integers(0, 9))).shuffle(rows)
    arrays = {name: array_of([row.get(name) for row in rows], kind) for name, kind in types.items()}
    sink = io.BytesIO()
    pq.write_table(
        pa.table(arrays) if arrays else pa.table({"x": [1] * len(rows)}), sink, row_group_size=draw(st.integers(1, 6))
    )
    return sink.getvalue()


def array_of(values, kind):
    """The values with a type, those that it cannot hold replaced by null."""
    made = []
    for value in values:
        try:
            made += pa.array([value], kind).to_pylist()
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            made.append(None)
    return pa.array(made, kind)


def region(**changes):
    return [{"x1": 1.0, "y1": 1.0, "x2": 5.0, "y2": 5.0, "mask_counts": None, "source_id": None} | changes]


VALUES = (
    None,
    "",
    " ",
    "x" * 5000,
    "a\0b",
    "../../x",
    "/etc/passwd",
    "\x1b[31m",
    0,
    -1,
    2**31 - 1,
    -(2**31),
    [],
    region(x1=float("nan")),
    region(x2=float("inf")),
    region(x2=-1e308),
    region(x1=-1e308, x2=1e308),
    region(mask_counts=b""),
    region(mask_counts=b"\xff" * 50),
    region(source_id=""),
    region() * 300,
)
TYPES = (
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.int8(),
    pa.int32(),
    pa.int64(),
    pa.float64(),
    pa.bool_(),
    pa.null(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.list_(pa.string()),
    pa.large_list(SCHEMA.field("regions").type.value_type),
    pa.list_(pa.struct([pa.field("x1", pa.float64())])),
    pa.struct([pa.field("x1", pa.float64())]),
    pa.timestamp("ns"),
    pa.decimal128(20, 2),
)
