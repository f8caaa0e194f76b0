"""Scaled attention looks at the open keys only, whether they are the same for all queries or not."""

import pytest
import torch

from refcli.model.attention import scaled_attention

BATCH, HEADS, QUERIES, KEYS, DIM = 2, 3, 4, 5, 8


def one_by_one(query, key, value, is_open):
    """Every head and query by itself, with the closed keys taken out."""
    out = torch.empty_like(query)
    for sample in range(BATCH):
        for head in range(HEADS):
            for number in range(QUERIES):
                seen = is_open.expand(BATCH, 1, QUERIES, KEYS)[sample, 0, number]
                scores = key[sample, head, seen] @ query[sample, head, number] / DIM**0.5
                out[sample, head, number] = scores.softmax(0) @ value[sample, head, seen]
    return out


@pytest.mark.parametrize("how", ["sdpa", "explicit", "auto"])
@pytest.mark.parametrize("rows", [1, QUERIES])
def test_closed_keys_take_no_part(how, rows):
    torch.manual_seed(0)
    query = torch.randn(BATCH, HEADS, QUERIES, DIM)
    key, value = torch.randn(2, BATCH, HEADS, KEYS, DIM)
    is_open = torch.rand(BATCH, 1, rows, KEYS) < 0.5
    is_open[..., 0] = True  # every query needs an open key
    mixed = scaled_attention(query, key, value, is_open, attention_implementation=how)
    torch.testing.assert_close(mixed, one_by_one(query, key, value, is_open))
