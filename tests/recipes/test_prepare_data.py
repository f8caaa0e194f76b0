"""From published files to a store: counted, checked, repeatable, parallel, and atomic."""

import json
import pickle
import zipfile
from dataclasses import replace

import duckdb
import pytest
from PIL import Image

from refcli.data.preparation.origin import verify_store
from refcli.data.preparation.plan import plan_file, plan_named
from refcli.data.shard import Shard
from refcli.data.store.layout import read_manifest
from refcli.data.store.read import Store
from refcli.errors import ConfigError, DataError, UsageError
from refcli.recipes.prepare_data import Preparation, prepare

NUM_IMAGES = 40


def write_corpus(folder, *, refs=None):
    """A small release of RefCOCO: one ref with two sentences in each of 40 images, a fourth of them in val."""
    (folder / "refcoco").mkdir(parents=True)
    made = []
    annotations = []
    images = []
    for number in range(1, NUM_IMAGES + 1):
        x, y = number, number / 2
        square = [x, y, x + 20, y, x + 20, y + 10, x, y + 10]
        images.append({"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": 100, "height": 80})
        annotations.append(
            {"id": 500 + number, "image_id": number, "bbox": [x, y, 20, 10], "category_id": 1, "iscrowd": 0}
            | {"segmentation": [square], "area": 200.0}
        )
        sentences = [
            {"sent_id": 10 * number + k, "raw": f"Thing {number}!", "sent": f"thing {number} {k}", "tokens": ["thing"]}
            for k in range(2)
        ]
        made.append(
            {"ref_id": number, "ann_id": 500 + number, "category_id": 1, "image_id": number, "sentences": sentences}
            | {"split": "val" if number % 4 == 0 else "train", "sent_ids": [s["sent_id"] for s in sentences]}
            | {"file_name": f"COCO_train2014_{number:012d}_{number}.jpg"}
        )
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs or made, protocol=2))
    corpus = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "refcoco" / "instances.json").write_text(json.dumps(corpus))
    return made


def write_images(folder, numbers=range(1, NUM_IMAGES + 1)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (100, 80), (number, 0, 0)).save(folder / f"COCO_train2014_{number:012d}.jpg")


@pytest.fixture
def raw(tmp_path):
    write_corpus(tmp_path / "raw")
    return tmp_path / "raw"


def prepared(raw, overrides=None, **how):
    preparation = Preparation(**how)
    plan = plan_named("refcoco_unc", raw=raw, splits=preparation.splits, overrides=overrides)
    return prepare(plan, preparation)


def examples_of(store, name):
    split = Store(store).split(name)
    return [split[index] for index in range(len(split))]


def test_the_files_become_splits_with_boxes_masks_and_origin(tmp_path, raw):
    report = prepared(raw, out=tmp_path / "store")
    assert {split.split: split.examples for split in report.splits} == {"train": 60, "val": 20}
    one = examples_of(tmp_path / "store", "refcoco_unc:train")[0]
    assert (one.id, one.expression, one.image_id) == ("refcoco_unc/1/10", "thing 1 0", "coco:1")
    assert one.regions[0].box_xyxy == (1.0, 0.5, 21.0, 10.5)
    assert one.regions[0].mask.size == (80, 100)
    assert one.regions[0].source_id == "coco:501"
    origin = Store(tmp_path / "store").origin("refcoco_unc:train")
    assert set(origin["inputs"]) == {"refs", "instances"}
    assert origin["settings"]["text"] == "sent"
    assert verify_store(tmp_path / "store") == []


def test_a_setting_of_the_source_changes_what_is_read(tmp_path, raw):
    prepared(raw, out=tmp_path / "store", overrides={"text": "raw"})
    assert examples_of(tmp_path / "store", "refcoco_unc:val")[0].expression == "Thing 4!"
    with pytest.raises(ConfigError, match="texd"):
        prepared(raw, out=tmp_path / "store", overrides={"texd": "raw"})


def test_counts_are_compared_with_the_published_ones_and_strict_refuses_others(tmp_path, raw):
    report = prepared(raw, out=tmp_path / "store")
    wrong = {(check.split, check.what): check for check in report.counts if not check.agrees}
    assert wrong["train", "expressions"].expected == 120_624
    assert wrong["train", "expressions"].found == 60
    with pytest.raises(DataError, match="are expected"):
        prepared(raw, out=tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict" / "manifest.json").exists()
    assert not list((tmp_path / "strict").rglob("*.parquet"))


def test_unchanged_data_is_not_prepared_again(tmp_path, raw):
    store = tmp_path / "store"
    prepared(raw, out=store)
    file = store / "refcoco_unc" / "train.parquet"
    before = file.stat().st_mtime_ns
    assert prepared(raw, out=store).status == "unchanged"
    assert file.stat().st_mtime_ns == before
    assert prepared(raw, out=store, force=True).status == "written"
    assert file.stat().st_mtime_ns > before
    file.write_bytes(file.read_bytes()[:-1])
    assert prepared(raw, out=store).status == "written"
    (raw / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(write_corpus(tmp_path / "other")[:20], protocol=2))
    assert prepared(raw, out=store).status == "written"
    assert len(Store(store).split("refcoco_unc:train")) == 30


def test_missing_images_are_searched_for_again(tmp_path, raw):
    write_images(tmp_path / "coco", range(1, 31))
    how = {"out": tmp_path / "store", "images": (tmp_path / "coco",)}
    assert prepared(raw, **how).problems.counts["missing_image"] == 10
    write_images(tmp_path / "coco")
    assert prepared(raw, **how).status == "written"
    assert len(Store(tmp_path / "store").split("refcoco_unc:train")) == 60
    assert prepared(raw, **how).status == "unchanged"


def test_strict_does_not_accept_the_result_of_a_lenient_run(tmp_path, raw):
    prepared(raw, out=tmp_path / "store")
    with pytest.raises(DataError, match="are expected"):
        prepared(raw, out=tmp_path / "store", strict=True)


def test_a_split_that_another_run_has_replaced_is_prepared_again(tmp_path, raw):
    store = tmp_path / "store"
    prepared(raw, out=store)
    prepared(raw, out=store, splits=("val",), overrides={"text": "raw"})
    assert examples_of(store, "refcoco_unc:val")[0].expression == "Thing 4!"
    assert prepared(raw, out=store).status == "written"
    assert examples_of(store, "refcoco_unc:val")[0].expression == "thing 4 0"


def test_a_split_without_a_single_usable_record_is_an_error(tmp_path, raw):
    write_images(tmp_path / "coco", [number for number in range(1, NUM_IMAGES + 1) if number % 4])
    with pytest.raises(DataError, match="no record of refcoco_unc:val"):
        prepared(raw, out=tmp_path / "store", images=(tmp_path / "coco",))


def test_workers_and_inputs_in_gzip_change_nothing(tmp_path, raw):
    import gzip

    prepared(raw, out=tmp_path / "one")
    prepared(raw, out=tmp_path / "two", workers=2)
    for file in (raw / "refcoco").iterdir():
        (raw / "refcoco" / (file.name + ".gz")).write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    prepared(raw, out=tmp_path / "gz")
    contents = {name: (tmp_path / name / "refcoco_unc" / "train.parquet").read_bytes() for name in ("one", "two", "gz")}
    assert len(set(contents.values())) == 1


def test_shards_make_the_same_split_together(tmp_path, raw):
    prepared(raw, out=tmp_path / "whole")
    for number in (3, 1, 2):
        prepared(raw, out=tmp_path / "parts", shard=Shard(number, 3))
    for split in ("train", "val"):
        name = f"refcoco_unc:{split}"
        whole, parts = examples_of(tmp_path / "whole", name), examples_of(tmp_path / "parts", name)
        assert sorted(parts, key=lambda one: one.id) == sorted(whole, key=lambda one: one.id)
        entry = read_manifest(tmp_path / "parts")["datasets"]["refcoco_unc"]["splits"][split]
        assert entry["images"] == len({one.image for one in whole})


def test_shards_without_records_of_a_split_still_complete_it(tmp_path, raw):
    count = 30
    for number in range(1, count + 1):
        prepared(raw, out=tmp_path / "parts", shard=Shard(number, count))
        whole = Store(tmp_path / "parts").complete_names()
        assert whole == (["refcoco_unc:train", "refcoco_unc:val"] if number == count else [])
    assert len(Store(tmp_path / "parts").split("refcoco_unc:val")) == 20
    assert prepared(raw, out=tmp_path / "parts", shard=Shard(1, count)).status == "unchanged"


def test_files_of_an_older_layout_are_removed(tmp_path, raw):
    store = tmp_path / "store"
    prepared(raw, out=store)
    for number in (1, 2):
        prepared(raw, out=store, shard=Shard(number, 2))
    names = sorted(path.name for path in (store / "refcoco_unc").glob("*.parquet"))
    assert names == [f"{split}.{number}-of-2.parquet" for split in ("train", "val") for number in (1, 2)]
    abandoned = store / "refcoco_unc" / ".train.parquet.4194999.part"
    abandoned.write_bytes(b"half")
    prepared(raw, out=store)
    assert sorted(path.name for path in (store / "refcoco_unc").glob("*.part*")) == []
    assert not abandoned.exists()
    assert len(Store(store).split("refcoco_unc:train")) == 60


def test_images_are_found_and_records_with_missing_ones_left_out(tmp_path, raw):
    write_images(tmp_path / "coco" / "train2014", range(1, 31))
    report = prepared(raw, out=tmp_path / "store", images=(tmp_path / "coco",))
    assert report.problems.counts["missing_image"] == 10
    assert "000000000031" in report.problems.places["missing_image"][0]
    assert report.lost == {"train": 14, "val": 6}
    split = Store(tmp_path / "store").split("refcoco_unc:train")
    assert all(split.image_path(split[index]).is_file() for index in range(len(split)))
    with pytest.raises(DataError, match=r"missing image|are expected"):
        prepared(raw, out=tmp_path / "strict", images=(tmp_path / "coco",), strict=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no record of refcoco_unc can be used") as caught:
        prepared(raw, out=tmp_path / "none", images=(tmp_path / "empty",))
    assert "--images" in caught.value.hint


def test_images_are_extracted_from_an_archive(tmp_path, raw):
    write_images(tmp_path / "loose")
    with zipfile.ZipFile(tmp_path / "train2014.zip", "w") as archive:
        for path in (tmp_path / "loose").iterdir():
            archive.write(path, f"train2014/{path.name}")
        archive.writestr("train2014/unwanted.jpg", b"not needed")
    prepared(raw, out=tmp_path / "store", images=(tmp_path / "train2014.zip",), check_images=True)
    split = Store(tmp_path / "store").split("refcoco_unc:val")
    assert all(split.image_path(split[index]).is_file() for index in range(len(split)))
    assert not list((tmp_path / "store").rglob("*unwanted*"))


def test_a_hostile_pickle_never_runs_and_leaves_the_store_unchanged(tmp_path, raw):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    prepared(raw, out=tmp_path / "store")
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    (raw / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(DataError) as caught:
        prepared(raw, out=tmp_path / "store")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "ran").exists()
    after = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert after == before


def test_a_contradiction_in_the_middle_of_a_file_leaves_no_partial_store(tmp_path):
    refs = write_corpus(tmp_path / "good")
    refs[30] = {**refs[30], "image_id": 7}
    write_corpus(tmp_path / "bad", refs=refs)
    with pytest.raises(DataError):
        prepared(tmp_path / "bad", out=tmp_path / "store")
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_verification_finds_changed_files_and_changed_inputs(tmp_path, raw):
    store = tmp_path / "store"
    prepared(raw, out=store)
    (raw / "refcoco" / "instances.json").write_text("{}")
    assert ["instances" in line for line in verify_store(store)] == [True, True]
    (store / "refcoco_unc" / "val.parquet").write_bytes(b"rubbish")
    (store / "refcoco_unc" / "train.parquet").unlink()
    wrong = verify_store(store)
    assert any("train.parquet is gone" in line for line in wrong)
    assert any("val.parquet was changed" in line for line in wrong)


def test_the_store_opens_in_duckdb(tmp_path, raw):
    prepared(raw, out=tmp_path / "store")
    query = f"""select split, count(*), sum(len(regions)), min(regions[1].x1), any_value(expression)
                from '{tmp_path}/store/refcoco_unc/*.parquet' group by split order by split"""
    assert duckdb.sql(query).fetchall()[1] == ("val", 20, 20, 4.0, "thing 4 0")


def test_a_custom_file_is_read_by_its_format(tmp_path, raw):
    how = Preparation(out=tmp_path / "store")
    file = raw / "refcoco" / "refs(unc).p"
    plan = plan_file(file, name="mine")
    assert plan.source_name == "refer"
    assert plan.files["instances"] == raw / "refcoco" / "instances.json"
    prepare(plan, how)
    assert Store(tmp_path / "store").names() == ["mine:train", "mine:val"]
    with pytest.raises(UsageError, match="has no file called 'masks'"):
        plan_file(file, name="mine", form="refer", beside={"masks": file})
    (raw / "refcoco" / "instances.json").unlink()
    with pytest.raises(DataError, match="also needs its instances") as caught:
        plan_file(file, name="mine", form="refer")
    assert "--with instances=FILE" in caught.value.hint
    with pytest.raises(DataError, match="no such file"):
        plan_file(raw / "none", name="mine")


def test_a_split_that_does_not_exist_is_refused(tmp_path, raw):
    with pytest.raises((UsageError, DataError), match=r"tset|split"):
        prepared(raw, out=tmp_path / "store", splits=("tset",))
    report = prepared(raw, out=tmp_path / "store", splits=("val",))
    assert [split.split for split in report.splits] == ["val"]
    assert replace(report, status="unchanged").to_json()["splits"][0]["examples"] == 20
