"""Tables import rows on first use, and hints about unknown names suggest the nearest one."""

from __future__ import annotations

import pytest

from refcli.errors import ConfigError
from refcli.tables import did_you_mean, lookup

TABLE = {"json": "json:loads", "path": "pathlib:Path"}


def test_a_row_is_imported():
    assert lookup(TABLE, "json", what="reader")("[1]") == [1]


def test_an_unknown_row_is_an_error_with_a_hint():
    with pytest.raises(ConfigError, match="there is no reader called 'jsn'") as caught:
        lookup(TABLE, "jsn", what="reader")
    assert caught.value.hint == "did you mean 'json'? known: json, path"


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("trian", ["val", "train"], "did you mean 'train'? known: val, train"),
        ("xyz", ["val", "train"], "known: val, train"),
        ("xyz", [], "known: none"),
    ],
)
def test_a_hint_lists_the_known_names_in_their_order(name, known, hint):
    assert did_you_mean(name, iter(known)) == hint


def test_a_hint_may_end_with_other_words():
    assert did_you_mean("trian", ["train"], rest="see the list") == "did you mean 'train'? see the list"
    assert did_you_mean("xyz", ["train"], rest="see the list") == "see the list"
