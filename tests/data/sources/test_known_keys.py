"""Keys that change what a record means are refused by readers that do not know them."""

import pytest

from refcli.data.sources.known_keys import KnownKeys, MeaningError, check_meaning

LINE = KnownKeys("line", frozenset({"expression"}))


@pytest.mark.parametrize("key", ["negative_type", "negative_level", "negative_cate", "neg_type"])
def test_the_reason_why_an_expression_is_negative_refuses_the_record(key):
    with pytest.raises(MeaningError, match="may have no target"):
        check_meaning(key, "relation", LINE, "a.jsonl: line 1")
    check_meaning(key, None, LINE, "a.jsonl: line 1")
