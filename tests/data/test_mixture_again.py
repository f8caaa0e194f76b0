"""When a mixture is made again, and what strictness and published counts refuse."""

import pytest
from mixed_stores import family_store, spec, stored

from refcli.data.preparation.counting import CountCheck
from refcli.data.store import write as store_writing
from refcli.data.store.read import Store
from refcli.data.store.write import SplitWriter
from refcli.data.training.mixtures import EVAL_IMAGE_KEYS, write_mixture
from refcli.errors import DataError, UsageError


@pytest.fixture
def store(tmp_path):
    return family_store(tmp_path)


PUBLISHED = {"train": {"images": 5, "refs": 7, "expressions": 8, "basis": "verified"}, "val": {"basis": "published"}}


def test_with_leaks_the_counts_are_compared_with_the_published_ones(store):
    report = write_mixture(store, "both", spec(splits=PUBLISHED), keep_leaks=True)
    assert report.counts == (
        CountCheck("train", "expressions", expected=8, found=7, is_certain=True),
        CountCheck("train", "images", expected=5, found=5, is_certain=True),
    )
    assert write_mixture(store, "both", spec(splits=PUBLISHED), keep_leaks=False).counts == ()


def test_strict_refuses_a_count_that_differs_and_leaves_the_store_as_it_was(store):
    before = (store / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="both:train has 7 expressions, 8 are expected"):
        write_mixture(store, "both", spec(splits=PUBLISHED), keep_leaks=True, strict=True)
    assert (store / "manifest.json").read_bytes() == before
    assert list((store / "both").iterdir()) == []
    write_mixture(store, "both", spec(splits=PUBLISHED), keep_leaks=True)
    with pytest.raises(DataError, match="8 are expected"):
        write_mixture(store, "both", spec(splits=PUBLISHED), keep_leaks=True, strict=True)


def test_what_is_unchanged_is_not_written_again_unless_forced(store):
    write_mixture(store, "both", spec(), keep_leaks=False)
    written = (store / "both" / "train.parquet").stat().st_ino
    again = write_mixture(store, "both", spec(), keep_leaks=False)
    assert (again.status, again.summaries) == ("unchanged", ())
    assert write_mixture(store, "both", spec(), keep_leaks=False, splits=["val"]).status == "unchanged"
    assert (store / "both" / "train.parquet").stat().st_ino == written
    assert write_mixture(store, "both", spec(), keep_leaks=False, force=True).status == "written"
    assert (store / "both" / "train.parquet").stat().st_ino != written


def _a_member_changes(store):
    stored(store, "right", "train", [3, 4, 5, 9])


def _an_evaluation_split_changes(store):
    stored(store, "left", "testA", [1])


def _a_member_moves(store):
    stored(store, "right", "train", [3, 4, 5], images_at="elsewhere")


def _a_file_is_gone(store):
    (store / "both" / "train.parquet").unlink()


def _the_list_of_pictures_is_gone(store):
    (store / "both" / EVAL_IMAGE_KEYS).unlink()


@pytest.mark.parametrize(
    "change",
    [_a_member_changes, _an_evaluation_split_changes, _a_member_moves, _a_file_is_gone, _the_list_of_pictures_is_gone],
)
def test_a_mixture_is_made_again_when(store, change):
    write_mixture(store, "both", spec(), keep_leaks=False)
    change(store)
    assert write_mixture(store, "both", spec(), keep_leaks=False).status == "written"
    assert (store / "both" / EVAL_IMAGE_KEYS).is_file()


def test_a_mixture_is_made_again_with_another_family_or_with_leaks(store):
    write_mixture(store, "both", spec(family=["right"]), keep_leaks=False)
    assert write_mixture(store, "both", spec(), keep_leaks=False).status == "written"
    assert write_mixture(store, "both", spec(), keep_leaks=True).status == "written"
    assert len(Store(store).split("both:train")) == 7


def test_a_training_split_whose_pictures_are_all_evaluated_is_an_error(store):
    stored(store, "left", "val", [1, 3])
    with pytest.raises(DataError, match="no examples"):
        write_mixture(store, "both", spec(mixture={"train": ["left:train"]}), keep_leaks=False)


def test_one_split_can_be_written_alone(store):
    report = write_mixture(store, "both", spec(), keep_leaks=False, splits=["val"])
    assert [summary.split for summary in report.summaries] == ["val"]
    assert "both:train" not in Store(store).names()
    with pytest.raises(UsageError) as caught:
        write_mixture(store, "both", spec(), keep_leaks=False, splits=["trian"])
    assert "did you mean 'train'" in caught.value.hint


def test_only_mixtures_can_be_mixed(store):
    with pytest.raises(DataError, match="not a mixture"):
        write_mixture(store, "left", spec(mixture={}, family=[], source="refer"), keep_leaks=False)


def test_row_groups_are_copied_one_after_the_other(store, monkeypatch):
    monkeypatch.setattr(store_writing, "ROWS_PER_GROUP", 2)
    stored(store, "left", "train", [1, 2, 3, 2, 9])
    sizes = []
    write = SplitWriter.write

    def watched(writer, table):
        sizes.append(len(table))
        write(writer, table)

    monkeypatch.setattr(SplitWriter, "write", watched)
    seen = []
    report = write_mixture(store, "both", spec(), keep_leaks=False, progress=lambda *now: seen.append(now))
    assert sizes[:3] == [1, 1, 1]
    assert seen[:3] == [("train", 2, 8), ("train", 4, 8), ("train", 5, 8)]
    assert (report.members[0].rows, report.members[0].dropped_rows, report.members[0].dropped_images) == (5, 2, 1)
