"""Mixtures combine their members, and no training row shows an image of an evaluation split."""

import pytest
from mixed_stores import example, family_store, images_of, spec, stored

from refcli.data.preparation.counts import CountCheck
from refcli.data.preparation.plan import MixturePlan
from refcli.data.shard import Shard
from refcli.data.store.layout import read_manifest
from refcli.data.store.read import Store
from refcli.data.store.write import SplitWriter, write_manifest, write_split
from refcli.data.training.mixtures import EVAL_IMAGE_KEYS, write_mixture
from refcli.errors import DataError, UsageError


def mix(store, name, spec, *, keep_leaks, allow_missing=False, **options):
    return write_mixture(store, MixturePlan(name, spec, keep_leaks, allow_missing), **options)


@pytest.fixture
def store(tmp_path):
    return family_store(tmp_path)


def test_training_rows_with_an_evaluation_image_of_any_member_are_dropped_and_counted(store):
    report = mix(store, "both", spec(), keep_leaks=False)
    assert images_of(store, "both:train") == ["coco:1", "coco:3", "coco:3", "coco:5"]
    left, right, _ = report.members
    assert (left.split, left.member) == ("train", "left:train")
    assert (left.rows, left.images, left.dropped_rows, left.dropped_images) == (4, 3, 2, 1)
    assert (right.rows, right.images, right.dropped_rows, right.dropped_images) == (3, 3, 1, 1)
    assert sum(one.rows - one.dropped_rows for one in (left, right)) == report.summaries[0].examples == 4


def test_evaluation_splits_keep_all_rows(store):
    report = mix(store, "both", spec(), keep_leaks=False)
    assert images_of(store, "both:val") == images_of(store, "right:val")
    assert report.members[2].dropped_rows == 0


def test_keeping_leaks_is_the_plain_sum_and_still_counts_them(store):
    report = mix(store, "both", spec(), keep_leaks=True)
    assert images_of(store, "both:train") == images_of(store, "left:train") + images_of(store, "right:train")
    assert [(one.leaking_rows, one.leaking_images) for one in report.members] == [(2, 1), (1, 1), (0, 0)]
    assert [one.dropped_rows for one in report.members] == [0, 0, 0]
    assert report.keep_leaks


def test_rows_differ_from_their_members_in_data_set_split_and_image_only(store):
    stored(store, "left", "trainval", [1, 7])
    several = spec(mixture={"train": ["left:trainval"]}, family=[])
    mix(store, "both", several, keep_leaks=False)
    mixed = Store(store).split("both:train")
    original = Store(store).split("left:trainval")
    assert len(mixed) == 2
    for new, old in zip((mixed[0], mixed[1]), (original[0], original[1]), strict=True):
        assert (new.dataset, new.split) == ("both", "train")
        assert mixed.image_path(new) == original.image_path(old)
        for name in ("id", "image", "image_id", "width", "height", "expression", "regions", "kind"):
            assert getattr(new, name) == getattr(old, name), name


def test_the_evaluation_images_are_listed_beside_the_splits(store):
    report = mix(store, "both", spec(), keep_leaks=False)
    assert (store / "both" / EVAL_IMAGE_KEYS).read_text() == "coco:2\ncoco:4\ncoco:6\n"
    assert report.evaluation_images == 3


def test_ids_without_their_data_set_get_it_as_a_prefix(tmp_path):
    stored(tmp_path, "left", "train", [1, 2], prefix="")
    stored(tmp_path, "right", "train", [3, 4], prefix="")
    mix(tmp_path, "both", spec(mixture={"train": ["left:train", "right:train"]}), keep_leaks=False)
    assert Store(tmp_path).split("both:train").column("id").to_pylist() == ["left/0", "left/1", "right/0", "right/1"]


def test_ids_with_their_data_set_stay(store):
    mix(store, "both", spec(), keep_leaks=True)
    ids = Store(store).split("both:train").column("id").to_pylist()
    assert ids == ["left/0", "left/1", "left/2", "left/3", "right/0", "right/1", "right/2"]


def test_two_splits_of_one_data_set_may_use_the_same_ids(store):
    everything = spec(mixture={"train": ["left:train", "left:testA"]})
    mix(store, "both", everything, keep_leaks=True)
    ids = Store(store).split("both:train").column("id").to_pylist()
    assert len(set(ids)) == 5
    assert ids[0] == "left/train/left/0"
    assert ids[4] == "left/testA/left/0"


@pytest.mark.parametrize(
    ("roots", "expected_root", "expected_images"),
    [
        ((None, None), ".", ["left/1.jpg", "right/2.jpg"]),
        (("photos", "photos/small"), "photos", ["1.jpg", "small/2.jpg"]),
        (("../left", "../right/train2014"), "..", ["left/1.jpg", "right/train2014/2.jpg"]),
        (("/photos/coco", "/photos/coco"), "/photos/coco", ["1.jpg", "2.jpg"]),
        (("/photos/coco", "/photos/saiapr"), "/photos", ["coco/1.jpg", "saiapr/2.jpg"]),
    ],
)
def test_image_paths_stay_valid_under_one_root(tmp_path, roots, expected_root, expected_images):
    out = tmp_path / "store"
    stored(out, "left", "train", [1], images_at=roots[0])
    stored(out, "right", "train", [2], images_at=roots[1])
    mix(out, "both", spec(mixture={"train": ["left:train", "right:train"]}), keep_leaks=False)
    opened = Store(out)
    mixed = opened.split("both:train")
    assert mixed.column("image").to_pylist() == expected_images
    assert read_manifest(out)["datasets"]["both"]["splits"]["train"]["images_at"] == expected_root
    for row, member in enumerate(("left:train", "right:train")):
        original = opened.split(member)
        assert mixed.image_path(mixed[row]).resolve() == original.image_path(original[0]).resolve()


def test_roots_inside_and_outside_the_store_meet_at_their_common_folder(tmp_path):
    out = tmp_path / "store"
    stored(out, "left", "train", [1])
    stored(out, "right", "train", [2], images_at=str(tmp_path / "photos"))
    mix(out, "both", spec(mixture={"train": ["left:train", "right:train"]}), keep_leaks=False)
    mixed = Store(out).split("both:train")
    assert mixed.image_root == tmp_path
    assert mixed.column("image").to_pylist() == ["store/left/1.jpg", "photos/2.jpg"]


def test_a_store_may_be_moved_with_its_mixture(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    stored(old, "left", "train", [1])
    stored(old, "right", "train", [2])
    mix(old, "both", spec(mixture={"train": ["left:train", "right:train"]}), keep_leaks=False)
    old.rename(new)
    mixed = Store(new).split("both:train")
    assert [mixed.image_path(mixed[row]).resolve() for row in (0, 1)] == [new / "left/1.jpg", new / "right/2.jpg"]


def test_missing_members_are_named_with_the_command_that_makes_them(store):
    wanted = spec(mixture={"train": ["left:train", "middle:train", "upper:train", "upper:trainval"]})
    with pytest.raises(DataError) as caught:
        mix(store, "both", wanted, keep_leaks=False)
    assert caught.value.message.endswith("not in the store: middle:train, upper:train, upper:trainval")
    assert f"refcli prepare-data middle upper --raw DIR --images DIR --out {store}" in caught.value.hint
    assert not (store / "both").exists()


def test_a_folder_without_a_store_lacks_all_members(tmp_path):
    with pytest.raises(DataError, match="left:train, right:train, right:val"):
        mix(tmp_path, "both", spec(), keep_leaks=False)


def test_missing_evaluation_splits_of_published_data_sets_are_reported_if_allowed(store):
    wider = spec(family=["left", "right", "refcoco_unc"])
    report = mix(store, "both", wider, keep_leaks=False, allow_missing=True)
    assert report.missing_evaluation == ("refcoco_unc:val", "refcoco_unc:testA", "refcoco_unc:testB")
    assert Store(store).origin("both:train")["missing_evaluation"] == list(report.missing_evaluation)


def test_without_leaks_every_evaluation_split_of_the_family_is_required(store):
    stored(store, "refcoco_unc", "testA", [5])
    wider = spec(family=["left", "right", "refcoco_unc"])
    with pytest.raises(DataError) as caught:
        mix(store, "both", wider, keep_leaks=False)
    assert "refcoco_unc:val, refcoco_unc:testB" in caught.value.message
    assert "refcli prepare-data refcoco_unc " in caught.value.hint
    assert "--allow-missing" in caught.value.hint
    assert not (store / "both").exists()


def test_with_leaks_or_without_training_splits_no_evaluation_split_is_required(store):
    stored(store, "refcoco_unc", "testA", [5])
    wider = spec(family=["left", "right", "refcoco_unc"])
    report = mix(store, "both", wider, keep_leaks=True)
    assert report.members[1].leaking_images == 2
    assert mix(store, "both", wider, keep_leaks=False, splits=["val"]).summaries[0].examples == 2


def test_an_incomplete_evaluation_split_is_missing(store):
    rows = [example("left", "val", "left/0", 1)]
    write_manifest(store, [write_split(store, "left", "val", rows)], part=Shard(1, 2))
    with pytest.raises(DataError, match="not in the store: left:val"):
        mix(store, "both", spec(), keep_leaks=False)


PUBLISHED = {"train": {"images": 5, "refs": 7, "expressions": 8, "basis": "verified"}, "val": {"basis": "published"}}


def test_with_leaks_the_counts_are_compared_with_the_published_ones(store):
    report = mix(store, "both", spec(splits=PUBLISHED), keep_leaks=True)
    assert report.counts == (
        CountCheck("train", "expressions", expected=8, found=7, is_certain=True),
        CountCheck("train", "images", expected=5, found=5, is_certain=True),
    )
    assert mix(store, "both", spec(splits=PUBLISHED), keep_leaks=False).counts == ()


def test_strict_refuses_a_count_that_differs_and_leaves_the_store_unchanged(store):
    before = (store / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="both:train has 7 expressions, but 8 are expected"):
        mix(store, "both", spec(splits=PUBLISHED), keep_leaks=True, strict=True)
    assert (store / "manifest.json").read_bytes() == before
    assert list((store / "both").iterdir()) == []
    mix(store, "both", spec(splits=PUBLISHED), keep_leaks=True)
    with pytest.raises(DataError, match="8 are expected"):
        mix(store, "both", spec(splits=PUBLISHED), keep_leaks=True, strict=True)


def test_an_unchanged_mixture_is_not_written_again_unless_forced(store):
    mix(store, "both", spec(), keep_leaks=False)
    written = (store / "both" / "train.parquet").stat().st_ino
    again = mix(store, "both", spec(), keep_leaks=False)
    assert (again.status, again.summaries) == ("unchanged", ())
    assert mix(store, "both", spec(), keep_leaks=False, splits=["val"]).status == "unchanged"
    assert (store / "both" / "train.parquet").stat().st_ino == written
    assert mix(store, "both", spec(), keep_leaks=False, force=True).status == "written"
    assert (store / "both" / "train.parquet").stat().st_ino != written


def _a_member_changes(store):
    stored(store, "right", "train", [3, 4, 5, 9])


def _an_evaluation_split_changes(store):
    stored(store, "left", "testA", [1])


def _a_member_moves(store):
    stored(store, "right", "train", [3, 4, 5], images_at="elsewhere")


def _a_file_is_gone(store):
    (store / "both" / "train.parquet").unlink()


def _the_list_of_images_is_gone(store):
    (store / "both" / EVAL_IMAGE_KEYS).unlink()


@pytest.mark.parametrize(
    "change",
    [_a_member_changes, _an_evaluation_split_changes, _a_member_moves, _a_file_is_gone, _the_list_of_images_is_gone],
)
def test_a_mixture_is_written_again_when(store, change):
    mix(store, "both", spec(), keep_leaks=False)
    change(store)
    assert mix(store, "both", spec(), keep_leaks=False).status == "written"
    assert (store / "both" / EVAL_IMAGE_KEYS).is_file()


def test_a_mixture_is_written_again_with_another_family_or_with_leaks(store):
    mix(store, "both", spec(family=["right"]), keep_leaks=False)
    assert mix(store, "both", spec(), keep_leaks=False).status == "written"
    assert mix(store, "both", spec(), keep_leaks=True).status == "written"
    assert len(Store(store).split("both:train")) == 7


def test_a_training_split_whose_images_are_all_evaluated_is_an_error(store):
    stored(store, "left", "val", [1, 3])
    with pytest.raises(DataError, match="no examples"):
        mix(store, "both", spec(mixture={"train": ["left:train"]}), keep_leaks=False)


def test_one_split_can_be_written_alone(store):
    report = mix(store, "both", spec(), keep_leaks=False, splits=["val"])
    assert [summary.split for summary in report.summaries] == ["val"]
    assert "both:train" not in Store(store).names()
    with pytest.raises(UsageError) as caught:
        mix(store, "both", spec(), keep_leaks=False, splits=["trian"])
    assert "did you mean 'train'" in caught.value.hint


def test_only_mixtures_can_be_mixed(store):
    with pytest.raises(DataError, match="not a mixture"):
        mix(store, "left", spec(mixture={}, family=[], source="refer"), keep_leaks=False)


def test_row_groups_are_copied_one_after_the_other(store, monkeypatch):
    stored(store, "left", "train", [1, 2, 3, 2, 9], rows_per_group=2)
    sizes = []
    write = SplitWriter.write

    def watched(writer, table):
        sizes.append(len(table))
        write(writer, table)

    monkeypatch.setattr(SplitWriter, "write", watched)
    seen = []
    report = mix(store, "both", spec(), keep_leaks=False, progress=lambda *now: seen.append(now))
    assert sizes[:3] == [1, 1, 1]
    assert seen[:3] == [("train", 2, 8), ("train", 4, 8), ("train", 5, 8)]
    assert (report.members[0].rows, report.members[0].dropped_rows, report.members[0].dropped_images) == (5, 2, 1)
