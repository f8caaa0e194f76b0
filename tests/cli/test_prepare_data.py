"""`refcli prepare-data`: a store on disk, a summary on stderr, JSON on stdout."""

import json

import pytest

from refcli.cli.prepare_data import command
from refcli.data.reading.images import read_image
from refcli.data.spec import list_specs
from refcli.data.store.read import Store
from refcli.errors import ConfigError, DataError, UsageError


def test_the_summary_as_json_equals_the_store(tmp_path, capsys):
    command(["synthetic"], out=tmp_path / "store", size=2, seed=3, split=["tiny", "other"], as_json=True)
    report = json.loads(capsys.readouterr().out)
    store = Store(tmp_path / "store")
    assert report["store"] == str(tmp_path / "store")
    rows = report["datasets"][0]["splits"]
    assert [row["split"] for row in rows] == ["tiny", "other"]
    assert store.names() == ["synthetic:other", "synthetic:tiny"]
    for row in rows:
        split = store.split(f"synthetic:{row['split']}")
        assert row["examples"] == len(split)
        assert row["images"] == 2
        shape = read_image(split.image_path(split[0])).shape
        assert shape == (split[0].height, split[0].width, 3)


def test_without_json_stdout_is_the_store_and_stderr_the_summary(tmp_path, capsys):
    command(["synthetic"], out=tmp_path, size=2, seed=3, split=["tiny"])
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}\n"
    assert "synthetic:tiny" in captured.err


def test_the_list_has_every_source_with_its_licence(capsys):
    command(list_=True, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list_specs()
    assert all(row["licence"] and row["description"] and row["origin"] for row in rows)


def test_an_unknown_source_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError) as caught:
        command(["syntetic"], out=tmp_path / "store")
    assert "did you mean 'synthetic'" in caught.value.hint
    assert not (tmp_path / "store").exists()


def test_missing_or_impossible_options_are_usage_errors(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, where in [
        ({"names": None, "out": tmp_path}, "NAME"),
        ({"names": ["synthetic"], "from_": file, "out": tmp_path}, "NAME"),
        ({"names": ["synthetic"]}, "--out"),
        ({"names": ["synthetic"], "out": file}, "--out"),
        ({"names": ["synthetic"], "out": tmp_path, "split": ["a", "a"]}, "--split"),
        ({"names": ["refcoco_unc"], "out": tmp_path}, "--raw"),
        ({"names": ["synthetic"], "out": tmp_path, "images": [tmp_path / "none"]}, "--images"),
        ({"names": ["synthetic"], "out": tmp_path, "shard": "3/2"}, "--shard 3/2"),
        ({"from_": file, "out": tmp_path}, "--name"),
        ({"from_": file, "name": "mine", "out": tmp_path, "with_": ["instances"]}, "--with instances"),
    ]:
        with pytest.raises(UsageError) as caught:
            command(**arguments)
        assert where in caught.value.where


def test_expressions_about_labelled_boxes_are_counted_by_kind_and_their_options_need_them(tmp_path, capsys):
    file, out = tmp_path / "instances_val.json", tmp_path / "store"
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 80} for n in (1, 2)]
    cups = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [60 * n, 20, 30, 30]} for n in (0, 1)]
    categories = [{"id": 1, "name": "cup"}]
    file.write_text(json.dumps({"images": images, "annotations": cups, "categories": categories}))
    given = {"from_": str(file), "name": "mine", "out": out}
    command(**given, expressions="template", dry_run=True, seed=5, set_=["expressions_per_image=3"])
    shown = capsys.readouterr().err
    assert "'exhaustive': True, 'seed': 5, 'expressions_per_image': 3" in shown
    command(**given, expressions="template", seed=5)
    captured = capsys.readouterr()
    rows = list(Store(out).split("mine:val"))
    assert "mine: expressions about 2 of 2 labelled images" in captured.err
    assert f"no_target {sum(not row.regions for row in rows)}" in captured.err
    with pytest.raises(DataError, match="no certain expression, 1 times"):
        command(**given, expressions="template", not_exhaustive=True)
    for options, where in [
        ({"seed": 5}, "--seed"),
        ({"expressions": "category", "not_exhaustive": True}, "--not-exhaustive"),
        ({"expressions": "sentences"}, "--expressions sentences"),
    ]:
        with pytest.raises(UsageError) as caught:
            command(**given, **options)
        assert caught.value.where == where
