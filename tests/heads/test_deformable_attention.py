"""Deformable attention: against a loop over every point, and its start."""

import math

import pytest
import torch
import torch.nn.functional as F

from refcli.heads.rela.deformable_attention import DeformableAttention, places_of, read_bilinear, sample_levels

SIZES = ((2, 3), (4, 5), (7, 9))
NUM_TOKENS = sum(rows * columns for rows, columns in SIZES)
CPU = torch.device("cpu")


def read(values: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """What lies at (x, y), fractions of the frame, in a map of (rows, columns, channels): bilinear, 0 outside."""
    rows, columns, channels = values.shape
    column, row = x * columns - 0.5, y * rows - 0.5
    left, top = math.floor(column), math.floor(row)
    found = torch.zeros(channels)
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < rows and 0 <= c < columns:
                found += (1 - abs(row - r)) * (1 - abs(column - c)) * values[r, c]
    return found


def sampled_one_by_one(values, points, weights):
    batch, num_queries, heads, num_levels, num_points, _ = points.shape
    result = torch.zeros(batch, num_queries, heads, values.shape[-1])
    levels = values.split([rows * columns for rows, columns in SIZES], 1)
    for b in range(batch):
        for q in range(num_queries):
            for h in range(heads):
                for level in range(num_levels):
                    maps = levels[level][b, :, h].view(*SIZES[level], -1)
                    for p in range(num_points):
                        x, y = points[b, q, h, level, p].tolist()
                        result[b, q, h] += weights[b, q, h, level, p] * read(maps, x, y)
    return result.flatten(2)


def test_sampling_equals_the_weighted_sum_of_a_plain_loop():
    torch.manual_seed(0)
    values = torch.randn(2, NUM_TOKENS, 2, 3)
    points = 1.4 * torch.rand(2, 4, 2, 3, 2, 2) - 0.2  # some of them outside
    weights = torch.rand(2, 4, 2, 3, 2)
    expected = sampled_one_by_one(values, points, weights)
    torch.testing.assert_close(sample_levels(values, SIZES, points, weights), expected, rtol=1e-5, atol=1e-5)


def test_the_attention_is_its_equation():
    torch.manual_seed(0)
    attention = DeformableAttention(8, heads=2, num_levels=3, num_points=2)
    for parameter in attention.parameters():
        parameter.data.normal_(std=0.5)
    queries, tokens = torch.randn(1, NUM_TOKENS, 8), torch.randn(1, NUM_TOKENS, 8)
    offsets = attention.offsets(queries).view(1, NUM_TOKENS, 2, 3, 2, 2)
    weights = attention.weights(queries).view(1, NUM_TOKENS, 2, 6).softmax(-1).view(1, NUM_TOKENS, 2, 3, 2)
    sides = torch.tensor([[3.0, 2.0], [5.0, 4.0], [9.0, 7.0]])
    centres = [((c + 0.5) / columns, (r + 0.5) / rows) for rows, columns in SIZES for r in range(rows)
               for c in range(columns)]  # fmt: skip
    points = torch.tensor(centres)[None, :, None, None, None] + offsets / sides[None, None, None, :, None]
    expected = attention.out(sampled_one_by_one(attention.value(tokens).view(1, NUM_TOKENS, 2, 4), points, weights))
    result = attention(queries, tokens, places_of(SIZES, device=CPU))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_it_starts_as_the_mean_over_a_star_around_each_place():
    torch.manual_seed(0)
    attention = DeformableAttention(8, heads=4, num_levels=1, num_points=2)
    attention.value.weight.data, attention.out.weight.data = torch.eye(8), torch.eye(8)
    maps = torch.randn(5, 6, 8)
    result = attention(torch.randn(1, 30, 8), maps.view(1, 30, 8), places_of([(5, 6)], device=CPU)).view(5, 6, 4, 2)
    for head, (right, down) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for row, column in ((2, 2), (0, 5)):
            places = [(row + step * down, column + step * right) for step in (1, 2)]
            found = [maps[r, c, 2 * head : 2 * head + 2] for r, c in places if 0 <= r < 5 and 0 <= c < 6]
            expected = sum(found, torch.zeros(2)) / 2
            torch.testing.assert_close(result[row, column, head], expected, rtol=1e-4, atol=1e-5)


def test_the_directions_of_eight_heads_reach_the_same_ring():
    offsets = DeformableAttention(8, heads=8, num_levels=3, num_points=4).offsets.bias.view(8, 3, 4, 2)
    torch.testing.assert_close(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))
    torch.testing.assert_close(offsets[1, 0, 1], torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_sampling_is_done_in_float32(how, monkeypatch):
    seen, sample = [], F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda *args, **named: seen.append(args) or sample(*args, **named))
    attention, tokens = DeformableAttention(8, heads=2, num_levels=1, num_points=2), torch.randn(1, 12, 8)
    places = places_of([(3, 4)], device=CPU)
    if how == "weights":
        result = attention.bfloat16()(tokens.bfloat16(), tokens.bfloat16(), places)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = attention(tokens, tokens, places)
    assert result.dtype == torch.bfloat16
    assert [tensor.dtype for call in seen for tensor in call] == [torch.float32] * 2


def test_places_are_the_centres_of_cells_row_by_row():
    places = places_of([(1, 2), (2, 1)], device=CPU)
    assert places.centres_xy.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
    assert places.sides_xy.tolist() == [[2, 1], [1, 2]]


def test_reading_by_gathers_is_grid_sampling_to_the_gradients():
    torch.manual_seed(0)
    maps = torch.randn(4, 8, 7, 9, dtype=torch.float64, requires_grad=True)
    points = (1.4 * torch.rand(4, 20, 3, 2, dtype=torch.float64) - 0.2).requires_grad_()  # some of them outside
    ours = read_bilinear(maps, points)
    theirs = F.grid_sample(maps, 2 * points - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((found * weights).sum(), (maps, points)) for found in (ours, theirs)]
    torch.testing.assert_close(*gradients)
