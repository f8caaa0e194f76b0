"""The files that a manifest names lie in its store; a store is never in an intermediate state."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from refcli.contracts.example import Example, Region
from refcli.data.store.layout import examples_to_table
from refcli.data.store.read import Store
from refcli.data.store.write import Listing, SplitWriter, list_splits, write_manifest, write_split
from refcli.errors import DataError
from refcli.files import remove_stale_temporaries

LINE = {"image": "a.jpg", "expression": "the red cup", "box": [10, 20, 110, 220]}
EVIL_FILES = (
    "../../victim",
    "toy/../../../victim",
    "../victim.parquet",
    "other/train.parquet",
    "toy/sub/train.parquet",
    "toy/.hidden.parquet",
    "toy/a\0b.parquet",
    "toy\\..\\..\\victim.parquet",
    "toy/report.json",
    "manifest.json",
    "toy/",
    "",
)
EVIL_NAMES = (
    "../climbed",
    "/tmp/absolute",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "C:x",
    ".hidden",
    "a\nb",
    "\x1b[31m",
    "\ud83d",
)


def example(number, split="train", expression="the cup"):
    return Example(
        id=f"toy/{split}/{number}",
        dataset="toy",
        split=split,
        image=f"{number}.jpg",
        image_id=f"toy:{number}",
        width=100,
        height=80,
        expression=expression,
        regions=(Region((1.0, 2.0, 30.0, 40.0)),),
    )


def make_store(folder, numbers=(0, 1)):
    write_manifest(folder, [write_split(folder, "toy", "train", map(example, numbers))])
    return folder


def change_manifest(store, change):
    file = store / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest["datasets"])
    file.write_text(json.dumps(manifest))


def every_command(refcli, store, tmp_path):
    """The exit codes and messages of the commands that read a store."""
    (tmp_path / "p.jsonl").write_text("")
    return [
        refcli("inspect-data", store, "--sample", 1, "--out", tmp_path / "out"),
        refcli("prepare-data", "--verify", store),
        refcli("audit", store),
        refcli("evaluate", "--predictions", tmp_path / "p.jsonl", "--data", store, "--split", "toy:train"),
    ]


@pytest.fixture
def victim(tmp_path):
    """A file outside of the store; the test fails if it changes."""
    file = tmp_path / "victim.parquet"
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine_train.jsonl"
    file.write_text(json.dumps(LINE) + "\n")
    return file


@pytest.mark.parametrize("file", [*EVIL_FILES, "VICTIM"])
def test_a_manifest_that_names_another_file_is_refused_and_nothing_is_removed(refcli, tmp_path, victim, mine, file):
    store = make_store(tmp_path / "store")
    change_manifest(store, lambda sets: sets["toy"]["splits"]["train"].update(file=file.replace("VICTIM", str(victim))))

    code, _, message = refcli("prepare-data", "--from", mine, "--name", "toy", "--out", store)

    assert code == 5
    assert "manifest is damaged" in message
    assert (store / "toy" / "train.parquet").is_file()


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("is_split", [True, False])
def test_names_in_a_manifest_never_lead_outside_the_store(refcli, tmp_path, name, is_split):
    store = make_store(tmp_path / "store")

    def rename(sets):
        place, old = (sets["toy"]["splits"], "train") if is_split else (sets, "toy")
        place[name] = place.pop(old)

    change_manifest(store, rename)
    before = set(tmp_path.rglob("*"))

    for code, _, message in every_command(refcli, store, tmp_path):
        assert (code, "unexpected" in message, "\x1b" in message) == (5, False, False)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "p.jsonl"}


def test_links_in_a_store_are_not_followed(refcli, tmp_path, mine):
    outside = make_store(tmp_path / "outside")
    content = (outside / "toy" / "train.parquet").read_bytes()
    store = make_store(tmp_path / "store")
    (store / "toy" / "train.parquet").unlink()
    (store / "toy" / "train.parquet").symlink_to(outside / "toy" / "train.parquet")
    for code, _, message in every_command(refcli, store, tmp_path):
        assert (code, "link" in message) == (5, True)
    assert refcli("prepare-data", "--from", mine, "--name", "toy", "--out", store)[0] == 0
    assert not (store / "toy" / "train.parquet").is_symlink()
    assert (outside / "toy" / "train.parquet").read_bytes() == content

    linked = make_store(tmp_path / "linked")
    (linked / "toy" / "train.parquet").unlink()
    (linked / "toy").rmdir()
    (linked / "toy").symlink_to(outside / "toy")
    code, _, message = refcli("prepare-data", "--from", mine, "--name", "toy", "--out", linked)
    assert (code, "is a link" in message) == (5, True)
    assert (outside / "toy" / "train.parquet").read_bytes() == content


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path, victim):
    store = make_store(tmp_path / "store")
    (store / ".manifest.json.lock").unlink(missing_ok=True)
    (store / ".manifest.json.lock").symlink_to(victim)
    make_store(store, (3, 4, 5))
    assert len(Store(store).split("toy:train")) == 3


def test_drawings_do_not_leave_their_folder_through_a_link(refcli, tmp_path):
    store = make_store(tmp_path / "store")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    refcli("inspect-data", store, "--sample", 1, "--out", tmp_path / "out")  # without images nothing is drawn
    (tmp_path / "out" / "toy").rmdir()
    (tmp_path / "out" / "toy").symlink_to(tmp_path / "elsewhere")
    code, _, message = refcli("inspect-data", store, "--sample", 1, "--out", tmp_path / "out", "--force")
    assert (code, "link" in message) == (2, True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("image", ["../a.jpg", "/etc/passwd", "a\0b.jpg", ""])
def test_an_image_path_in_a_row_never_leads_outside_the_image_root(tmp_path, image):
    split = Store(make_store(tmp_path / "store")).split("toy:train")
    with pytest.raises(DataError, match="image"):
        split.image_path(replace(example(0), image=image))


class KilledError(BaseException):
    """A simulated kill: nothing after it reaches the disk."""


def killed_at(monkeypatch, number):
    """Stop all changes of folders from call number `number` on, as if the process had been killed."""
    count = 0

    def dying(call):
        def counted(*arguments, **options):
            nonlocal count
            count += 1
            if count >= number:
                raise KilledError
            return call(*arguments, **options)

        return counted

    for name in ("replace", "link", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


def replace_splits(store):
    """Put other content into both splits, as prepare-data does."""
    with (
        SplitWriter(store, "toy", "train") as train,
        SplitWriter(store, "toy", "val") as val,
    ):
        listings = []
        for writer, split in ((train, "train"), (val, "val")):
            writer.write(examples_to_table([example(number, split, "the new cup") for number in range(7)]))
            listings.append(Listing(writer.finish(), writer=writer))
        list_splits(store, listings)


def contents(store):
    opened = Store(store)
    return {
        name: [one.expression for one in map(opened.split(name).__getitem__, range(len(opened.split(name))))]
        for name in opened.names()
    }


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_a_killed_process_leaves_the_old_or_the_new_store(tmp_path, monkeypatch, has_hard_links):
    old = {"toy:train": ["the cup"] * 2}
    new = {"toy:train": ["the new cup"] * 7, "toy:val": ["the new cup"] * 7}
    seen = []
    for number in range(1, 40):
        store = make_store(tmp_path / str(number))
        with monkeypatch.context() as patched, pytest.MonkeyPatch.context() as lacking:
            if not has_hard_links:
                lacking.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError()))
            killed_at(patched, number)
            try:
                replace_splits(store)
                is_killed = False
            except KilledError:
                is_killed = True
        seen.append(contents(store))
        assert seen[-1] in (old, new), number
        if not is_killed:
            break
        remove_stale_temporaries(store / "toy")
        replace_splits(store)
        assert contents(store) == new
        assert sorted(path.name for path in (store / "toy").iterdir()) == ["train.parquet", "val.parquet"], number
    assert seen[0] == old
    assert seen[-1] == new
    assert not is_killed


def test_a_failed_write_of_the_manifest_leaves_the_store_unchanged(refcli, tmp_path, mine, monkeypatch):
    store = make_store(tmp_path / "store")
    before = {path: path.read_bytes() for path in store.rglob("*.*") if path.is_file()}

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("refcli.data.store.write.write_atomically", full)
    code, _, message = refcli("prepare-data", "--from", mine, "--name", "toy", "--out", store)

    assert (code, "No space left" in message) == (1, True)
    assert {path: path.read_bytes() for path in store.rglob("*.*") if path.is_file()} == before
    assert contents(store) == {"toy:train": ["the cup"] * 2}


def test_other_synthetic_images_do_not_overwrite_those_of_the_listed_split(refcli, tmp_path):
    store = tmp_path / "store"
    assert refcli("prepare-data", "synthetic", "--size", 2, "--split", "train", "--out", store)[0] == 0
    before = {path: path.read_bytes() for path in store.rglob("*.jpg")}

    assert refcli("prepare-data", "synthetic", "--size", 2, "--split", "train", "--seed", 9, "--out", store)[0] == 0

    assert {path: path.read_bytes() for path in before} == before
    split = Store(store).split("synthetic:train")
    assert split.image_path(split[0]).is_file()
    assert split.image_path(split[0]) not in before
    assert refcli("prepare-data", "--verify", store)[0] == 0


def test_row_groups_are_full_whatever_the_batches(tmp_path):
    with SplitWriter(tmp_path, "toy", "train", rows_per_group=4) as writer:
        for start in (0, 3, 6, 9):
            writer.write(examples_to_table([example(number) for number in range(start, start + 3)]))
        list_splits(tmp_path, [Listing(writer.finish(), writer=writer)])
    split = Store(tmp_path).split("toy:train")
    assert [split[number].id for number in range(12)] == [example(number).id for number in range(12)]
    assert np.diff(split.group_starts).tolist() == [4, 4, 4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["manifest.json", "toy/train.parquet"])
def test_a_pipe_in_place_of_a_file_does_not_block(refcli, tmp_path, mine, name):
    store = make_store(tmp_path / "store")
    (store / name).unlink()
    os.mkfifo(store / name)
    for code, _, message in every_command(refcli, store, tmp_path):
        assert (code, "unexpected" in message) == (5, False)
    code, _, message = refcli("prepare-data", "--from", mine, "--name", "toy", "--out", store)
    assert "unexpected" not in message
    assert code == (5 if name == "manifest.json" else 0)


def test_the_name_of_the_report_stays_short_for_many_splits(refcli, tmp_path):
    names = [f"val_{number:03}" for number in range(60)]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(LINE | {"split": name}) + "\n" for name in names))
    options = [part for name in names for part in ("--split", name)]
    code, _, message = refcli("prepare-data", "--from", file, "--name", "toy", *options, "--out", tmp_path / "store")
    assert code == 0, message
    assert len(Store(tmp_path / "store").names()) == 60
    assert len(list((tmp_path / "store" / "toy").glob("report.*.json"))) == 1


def test_a_store_that_cannot_be_extended_is_refused_before_any_work(refcli, tmp_path, mine):
    store = make_store(tmp_path / "store")
    (store / "manifest.json").write_text("{")
    before = set(store.rglob("*"))
    code, _, message = refcli("prepare-data", "--from", mine, "--name", "other", "--out", store, "--force")
    assert (code, "new store" in message) == (5, True)
    assert set(store.rglob("*")) == before


def test_large_rows_make_small_row_groups(tmp_path):
    examples = [example(number, expression="the cup " * 20) for number in range(40)]
    with SplitWriter(tmp_path, "toy", "train", bytes_per_group=2_000) as writer:
        for start in range(0, 40, 10):
            writer.write(examples_to_table(examples[start : start + 10]))
        list_splits(tmp_path, [Listing(writer.finish(), writer=writer)])
    split = Store(tmp_path).split("toy:train")
    assert max(np.diff(split.group_starts)) < 10
    assert [split[number] for number in range(40)] == examples


@pytest.mark.parametrize("name", ["train.parquet", "report.json"])
@pytest.mark.parametrize("content", [b"mine", b'{"mine": 1}', None])
def test_a_foreign_file_with_the_name_of_a_store_file_is_kept(refcli, tmp_path, mine, name, content):
    own = tmp_path / "toy" / name
    own.parent.mkdir()
    if content is None:
        (tmp_path / "elsewhere").write_bytes(b"{}")
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.write_bytes(content)
    before = own.read_bytes()
    for options in ((), ("--force",)):
        code, _, message = refcli("prepare-data", "--from", mine, "--name", "toy", "--out", tmp_path, *options)
        assert (code in (2, 5), "has the name of the" in message, "move it" in message) == (True, True, True)
        assert own.read_bytes() == before
        assert {path.name for path in own.parent.iterdir()} == {name}


def test_a_file_that_an_earlier_run_left_unlisted_is_replaced(refcli, tmp_path, mine):
    write_split(tmp_path, "toy", "train", map(example, range(3)))
    assert refcli("prepare-data", "--from", mine, "--name", "toy", "--out", tmp_path)[0] == 0
    assert len(Store(tmp_path).split("toy:train")) == 1


def test_a_listed_file_that_was_damaged_is_replaced(refcli, tmp_path, mine):
    store = make_store(tmp_path / "store")
    (store / "toy" / "train.parquet").write_bytes(b"damaged")
    assert refcli("prepare-data", "--from", mine, "--name", "toy", "--out", store)[0] == 0
    assert refcli("prepare-data", "--verify", store)[0] == 0
