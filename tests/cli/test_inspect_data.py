"""`refcli inspect-data`: tables or JSON on stdout, messages on stderr."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import typer
from PIL import Image

from refcli.cli.inspect_data import BAR_WIDTH, MOST_KINDS, bar, command
from refcli.cli.output import MAX_FAILURES_LISTED
from refcli.contracts.example import Example, Region
from refcli.data.store.write import write_manifest, write_split
from refcli.errors import ExitCode, UsageError
from refcli.geometry.masks import encode_mask

EXAMPLE = Example(
    id="",
    dataset="toy",
    split="train",
    image="a.png",
    image_id="a",
    width=30,
    height=20,
    expression="the left cup",
    regions=(Region((0.0, 0.0, 15.0, 20.0)),),
    kind="place",
)


def store_of(folder, *changes):
    """A store of one image and one example for each set of changes."""
    examples = [replace(EXAMPLE, id=str(number), **fields) for number, fields in enumerate(changes)]
    write_manifest(folder, [write_split(folder, "toy", "train", examples)])
    Image.new("RGB", (30, 20)).save(folder / "toy" / "a.png")
    return folder


def test_json_is_one_document_with_every_figure(tmp_path, capsys):
    command(store_of(tmp_path, {}, {"regions": (), "kind": None}), json_=True)
    report = json.loads(capsys.readouterr().out)
    split = report["splits"]["toy:train"]

    assert report["schema"] == "refcli.inspection/1"
    assert report["sample"] is None
    assert {key: split[key] for key in ("images", "expressions", "regions", "masks", "no_target", "kinds")} == {
        "images": 1,
        "expressions": 2,
        "regions": 1,
        "masks": 0,
        "no_target": 1,
        "kinds": {"place": 1},
    }
    assert split["box_area_share"]["mean"] == 0.5
    assert {"start": 3, "stop": 4, "count": 2} in split["expression_words"]["bins"]
    assert split["expression_words"]["bins"][-1]["stop"] is None


def test_tables_are_on_stdout_and_fit_a_page(tmp_path, capsys):
    command(store_of(tmp_path, {}, {}, {"expression": "cup"}, {"regions": ()}))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()

    assert lines[0].split() == ["split", "images", "expressions", "regions", "masks", "no", "target", "kinds"]
    assert lines[1].split() == ["toy:train", "1", "4", "3", "0", "1", "1"]
    assert captured.err == ""
    for words in ("words per expression", "box area, % of the image", "mean 2.5", "50-100", "75.0%", "place"):
        assert words in captured.out
    assert max(map(len, lines)) <= 120
    assert all(line == line.rstrip() for line in lines)


def test_images_of_unknown_size_are_mentioned(tmp_path, capsys):
    command(store_of(tmp_path, {"width": 0, "height": 0}))
    report = capsys.readouterr().out

    assert "size is unknown: 1 expressions" in report
    assert "box area" not in report


def test_ignored_pixels_are_mentioned_where_an_expression_has_some(tmp_path, capsys):
    mask = encode_mask(np.ones((20, 30), dtype=bool))
    command(store_of(tmp_path, {}, {"ignored": mask}))
    assert "with pixels that no mask metric counts: 1 expressions" in capsys.readouterr().out


def test_rare_kinds_are_counted_together(tmp_path, capsys):
    kinds = [{"kind": f"kind{number:02d}"} for number in range(MOST_KINDS) for _ in range(2)]
    command(store_of(tmp_path, *kinds, {"kind": "rare"}, {"kind": "rarer"}, {"kind": "rarest"}, {"kind": None}))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert next(row for row in rows if "others)" in row)[-2] == "3"
    assert next(row for row in rows if "(none)" in row)[-2] == "1"


def test_a_sample_is_drawn_and_its_path_reported(tmp_path, capsys):
    command(store_of(tmp_path / "store", {}, {}), sample=2, out=tmp_path / "out", json_=True)
    captured = capsys.readouterr()
    sample = json.loads(captured.out)["sample"]

    assert sorted(one["row"] for one in sample["drawn"]) == [0, 1]
    assert all((tmp_path / "out" / one["file"]).is_file() for one in sample["drawn"])
    assert (tmp_path / "out" / sample["sheet"]).is_file()
    assert str(tmp_path / "out" / "contact_sheet.png") in captured.err.replace("\n", "")


def test_missing_images_are_listed_and_set_the_exit_code(tmp_path, capsys):
    store = store_of(tmp_path / "store", {}, {"image": "gone.png"})
    with pytest.raises(typer.Exit) as left:
        command(store, sample=2, out=tmp_path / "out")
    report = capsys.readouterr().err

    assert left.value.exit_code == ExitCode.PARTIAL
    assert "failed: toy:train 1: there is no such image" in report
    assert "not drawn: 1\n" in report


def test_if_nothing_can_be_drawn_the_list_is_short_and_the_exit_code_is_1(tmp_path, capsys):
    missing = [{"image": "gone.png"} for _ in range(MAX_FAILURES_LISTED + 5)]
    with pytest.raises(typer.Exit) as left:
        command(store_of(tmp_path / "store", *missing), sample=1, out=tmp_path / "out")
    report = capsys.readouterr().err

    assert left.value.exit_code == ExitCode.FAILED
    assert report.count("failed: ") == MAX_FAILURES_LISTED
    assert f"not drawn: {len(missing)}, 5 more than are listed" in report
    assert "nothing could be drawn" in report


def test_neither_statistics_nor_drawings_need_torch(tmp_path):
    store = store_of(tmp_path / "store", {})
    code = f"""
import sys
from pathlib import Path
from refcli.cli.inspect_data import command
command(Path({str(store)!r}), sample=1, out=Path({str(tmp_path / "out")!r}))
assert "torch" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_a_sample_needs_a_folder(tmp_path):
    with pytest.raises(UsageError):
        command(store_of(tmp_path, {}), sample=3)


def test_bars_grow_with_the_share_and_every_positive_share_is_visible():
    assert (bar(0.0), bar(1.0), bar(0.5)) == ("", "█" * BAR_WIDTH, "█" * (BAR_WIDTH // 2))
    assert bar(1e-9) == "▏"
    assert (bar(0.0, is_ascii=True), bar(1.0, is_ascii=True), bar(1e-9, is_ascii=True)) == ("", "#" * BAR_WIDTH, "#")
    lengths = [len(bar(share / 100)) for share in range(101)]
    assert lengths == sorted(lengths)
