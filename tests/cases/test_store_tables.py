"""Names and kinds from data files are shown literally in tables and never control the terminal."""

import json

import pytest

KINDS = ("k\x1b[31m", "k\x9b2J", "[red]k[/]", "[/]", "k\u202etext", "k\nk", "猫")


@pytest.fixture
def store(tmp_path, refcli):
    """A store of two splits with odd kinds in its rows, and the output of the command that made it."""
    shown = []
    for split in ("train", "val"):
        lines = [
            {
                "image": f"{number}.jpg",
                "expression": "t",
                "box": [1, 2, 30, 40],
                "kind": kind,
                "width": 99,
                "height": 80,
            }
            for number, kind in enumerate(KINDS)
        ]
        file = tmp_path / f"a_{split}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, out, err = refcli("prepare-data", "--from", file, "--name", "my [bold]set", "--out", tmp_path / "store")
        assert code == 0, err
        shown.append(out + err)
    return tmp_path / "store", "".join(shown)


def test_tables_of_prepare_data_inspect_data_and_audit_print_nothing_raw(refcli, store):
    folder, shown = store
    code, figures, message = refcli("inspect-data", folder)
    assert code == 0
    audit = refcli("audit", folder)
    assert audit[0] == 0
    for text in (shown, figures, message, audit[1], audit[2]):
        assert not set(text) & {"\x1b", "\x9b", "\u202e", "\x07"}
    assert "my [bold]set:train" in shown
    assert "my [bold]set:train" in figures
    assert "my [bold]set:train" in audit[2]
    for kind in ("k\\x1b[31m", "k\\x9b2J", "[red]k[/]", "[/]", "k\\u202etext", "k\\nk", "猫"):
        assert kind in figures


@pytest.mark.parametrize("split", ["tr\x1b[5m", "a/b", "x" * 300, "..", "a\0", ""])
def test_an_impossible_split_name_does_not_reach_the_terminal_or_the_disk(refcli, tmp_path, split):
    line = {"image": "p.jpg", "expression": "t", "box": [1, 2, 30, 40], "width": 100, "height": 80}
    file = tmp_path / "e_train.jsonl"
    file.write_text(json.dumps(line | {"split": split}) + "\n" + json.dumps(line | {"split": "val"}) + "\n")

    code, out, err = refcli("prepare-data", "--from", file, "--name", "e", "--out", tmp_path / "store")

    assert "\x1b" not in out + err
    assert "unexpected" not in err
    assert code in (0, 3, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["e_train.jsonl"], ["e_train.jsonl", "store"])
