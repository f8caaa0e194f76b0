"""The script that trains the packaged tokenizer gives the same file for the same expressions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from refcli.config.schema import TextSettings
from refcli.text.tokenizer import Tokenizer

SCRIPT = Path(__file__).parents[2] / "tools" / "train_tokenizer.py"


def test_the_trained_tokenizer_has_one_piece_for_each_frequent_word_and_is_reproducible(tmp_path):
    files = [tmp_path / "first.spm", tmp_path / "second.spm"]
    for file in files:
        subprocess.run([sys.executable, str(SCRIPT), str(file), "--sentences", "2000"], check=True)

    assert files[0].read_bytes() == files[1].read_bytes()
    tokenizer = Tokenizer.load(TextSettings(tokenizer=str(files[0])))
    assert tokenizer.read("the red star").unknown_words == ()
    assert len(tokenizer.encode_batch(["the red star"])[0][0]) == 5
