"""The text tokenizer that settings name, also where it is the official one and only `refcli weights pull` has it."""

from __future__ import annotations

from pathlib import Path

from refcli.config.schema import TextSettings
from refcli.text.tokenizer import OFFICIAL_NAME, Tokenizer
from refcli.weights.catalog import TOKENIZER
from refcli.weights.locate import has_home, is_file, pulled_directory


def pulled_tokenizer() -> Path | None:
    """The `beit3.spm` that `refcli weights pull` got, if it did."""
    path = pulled_directory(TOKENIZER) / OFFICIAL_NAME if has_home() else None
    return path if path is not None and is_file(path) else None


def find_tokenizer(text: TextSettings) -> TextSettings:
    """The settings with the path of the pulled `beit3.spm` in place of one that is called so and is not there.

    Settings that are to be stored stay as they were: another machine has its own place for what it pulled.
    """
    path, pulled = Path(text.tokenizer), pulled_tokenizer()
    if path.name != OFFICIAL_NAME or path.is_file() or pulled is None:
        return text
    return text.model_copy(update={"tokenizer": str(pulled)})


def load_tokenizer(text: TextSettings) -> Tokenizer:
    """The tokenizer of some settings; errors as `Tokenizer.load`."""
    return Tokenizer.load(find_tokenizer(text))
