"""`refcli audit`: findings on stderr or as JSON on stdout, and a gate."""

import json

import numpy as np
import pytest
import typer
from PIL import Image

from refcli.cli.audit import command
from refcli.contracts.example import Example, Region
from refcli.data.store.write import write_manifest, write_split
from refcli.errors import DataError, ExitCode, GateError

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))


def make_store(out, *, train, val):
    """Two splits with one expression for each image id; all images are the same."""
    summaries = []
    for split, image_ids in {"train": train, "val": val}.items():
        examples = [
            Example(
                id=f"{split}/{image_id}",
                dataset="toy",
                split=split,
                image=f"{image_id}.png",
                image_id=image_id,
                width=9,
                height=8,
                expression="the cat",
                regions=(Region((0.0, 0.0, 5.0, 5.0)),),
            )
            for image_id in image_ids
        ]
        summaries.append(write_split(out, "toy", split, examples))
        for image_id in image_ids:
            IMAGE.save(out / "toy" / f"{image_id}.png")
    write_manifest(out, summaries)
    return out


def test_the_findings_as_json_are_on_stdout(tmp_path, capsys):
    command(make_store(tmp_path, train=["a", "b"], val=["b", "c"]), as_json=True)
    captured = capsys.readouterr()
    report = json.loads(captured.out)

    assert report["overlaps"] == [
        {
            "train": "toy:train",
            "evaluation": "toy:val",
            "shared_images": 1,
            "shared_objects": 1,
            "identical_examples": 1,
            "look_alikes": None,
        }
    ]
    assert [row["name"] for row in report["splits"]] == ["toy:train", "toy:val"]
    assert captured.err == ""


def test_without_json_stdout_is_empty_and_stderr_has_the_tables(tmp_path, capsys):
    command(make_store(tmp_path, train=["a", "b"], val=["b", "c"]))
    captured = capsys.readouterr()

    assert captured.out == ""
    assert "toy:train" in captured.err
    assert "1 of 1 pairs of training and evaluation splits share images" in captured.err


def test_the_gate_fails_for_shared_images_only_if_requested(tmp_path, capsys):
    store = make_store(tmp_path, train=["a", "b"], val=["b", "c"])
    command(store)
    with pytest.raises(GateError) as caught:
        command(store, as_json=True, fail_on_overlap=True)

    assert caught.value.exit_code == ExitCode.GATE == 4
    assert "toy:train holds 1 images of toy:val" in caught.value.where
    assert json.loads(capsys.readouterr().out)["overlaps"]


def test_the_gate_passes_without_shared_images(tmp_path):
    command(make_store(tmp_path, train=["a"], val=["c"]), fail_on_overlap=True)


def test_near_duplicates_are_reported_if_images_are_checked(tmp_path, capsys):
    store = make_store(tmp_path, train=["a"], val=["c"])
    command(store, check_images=True, fail_on_overlap=True)
    assert "near-duplicate: a (training), c (evaluation), 0 bits differ" in capsys.readouterr().err
    command(store, check_images=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["look_alikes"] == [{"train": "a", "evaluation": "c", "distance": 0}]


def test_unreadable_images_are_listed_and_make_the_audit_partial(tmp_path, capsys):
    store = make_store(tmp_path, train=["a"], val=["c"])
    (store / "toy" / "c.png").write_bytes(b"no image")
    with pytest.raises(typer.Exit) as caught:
        command(store, check_images=True, as_json=True)
    captured = capsys.readouterr()

    assert caught.value.exit_code == ExitCode.PARTIAL == 3
    assert list(json.loads(captured.out)["unreadable_pictures"]) == [str(store / "toy" / "c.png")]
    assert "1 images could not be compared" in captured.err


def test_a_folder_without_a_store_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no store"):
        command(tmp_path)
