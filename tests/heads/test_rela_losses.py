"""ReLA's losses: against torch's own, and the truth of the minimap at every size."""

import pytest
import torch
import torch.nn.functional as F

from refcli.heads.rela.losses import balanced_cross_entropy, minimap_truth


def difference(pairs: torch.Tensor) -> torch.Tensor:
    return pairs[:, 1] - pairs[:, 0]


def square(x: int, y: int, *, size: int = 480, side: int = 40) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, y : y + side, x : x + side] = True
    return mask


@pytest.mark.parametrize(("corner", "centre", "area"), [(100, 1, 1), (76, 0, 1)])
def test_the_published_minimap_can_lose_a_small_thing_and_ours_cannot(corner, centre, area):
    mask = square(corner, corner)
    assert minimap_truth(mask, 10, "centre").sum() == centre
    assert minimap_truth(mask, 10, "area").sum() >= area
    soft = minimap_truth(mask, 10, "soft").view(10, 10)
    cells = mask[0].view(10, 48, 10, 48).float().mean((1, 3))
    torch.testing.assert_close(soft, cells)


@pytest.mark.parametrize("size", [224, 400, 448, 480, 512])
def test_the_published_minimap_of_everything_is_full_at_every_size(size):
    for side in (8, 10, 12):
        assert minimap_truth(square(0, 0, size=size, side=size), side, "centre").all()


def test_a_cell_of_the_published_minimap_needs_every_pixel_around_its_centre():
    torch.manual_seed(0)
    mask = torch.rand(1, 44, 44) > 0.2  # 44 = 8 * 5.5: a centre is a pixel, or the corner of four, or between
    cells = minimap_truth(mask, 8, "centre").view(8, 8)
    for row in range(8):
        for column in range(8):
            y, x = 5.5 * (row + 0.5) - 0.5, 5.5 * (column + 0.5) - 0.5
            around = mask[0, int(y) : int(-(-y // 1)) + 1, int(x) : int(-(-x // 1)) + 1]
            assert cells[row, column] == around.all()


def test_the_minimap_by_area_has_half_covered_cells_or_the_fullest_one_and_none_without_a_mask():
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, :4, :6] = True  # all of the first cell and half of the second
    mask[1, 6:, 7] = True  # an eighth of the last
    expected = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert torch.equal(minimap_truth(mask, 2, "area"), expected)


def test_pixels_that_no_cells_share_evenly_belong_to_one_cell_each():
    torch.manual_seed(0)
    mask = torch.rand(1, 5, 7) > 0.5
    rows, columns = [0, 2, 4, 5], [0, 3, 5, 7]  # a cell begins where a pixel's corner lies in it
    for cell, covered in enumerate(minimap_truth(mask, 3, "soft")[0].tolist()):
        y, x = divmod(cell, 3)
        assert covered == pytest.approx(
            mask[0, rows[y] : rows[y + 1], columns[x] : columns[x + 1]].float().mean().item()
        )


def test_the_balanced_cross_entropy_equals_torchs_with_class_weights_over_the_samples_that_count():
    torch.manual_seed(0)
    pairs, truth = torch.randn(3, 2, 7), torch.randint(0, 2, (3, 7))
    counts = torch.tensor([True, False, True])
    expected = F.cross_entropy(pairs[counts], truth[counts], weight=torch.tensor([0.9, 1.1]))
    torch.testing.assert_close(balanced_cross_entropy(difference(pairs), truth.float(), counts), expected)
    assert balanced_cross_entropy(difference(pairs), truth.float(), torch.zeros(3) > 0) == 0


def test_the_mean_over_two_processes_is_the_mean_over_all_samples_that_count(monkeypatch):
    torch.manual_seed(0)
    logits, truth, counts = torch.randn(4, 7), (torch.rand(4, 7) > 0.5).float(), torch.tensor([1, 1, 0, 1]) > 0
    expected = balanced_cross_entropy(logits, truth, counts)
    halves = (slice(0, 3), slice(3, 4))
    weights = [((0.9 + 0.2 * truth[half]) * counts[half, None]).sum() for half in halves]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    printed = []
    for half, others in zip(halves, reversed(weights), strict=True):
        monkeypatch.setattr("torch.distributed.all_reduce", lambda total, others=others: total.add_(others))
        printed.append(balanced_cross_entropy(logits[half], truth[half], counts[half]))
    torch.testing.assert_close(sum(printed) / 2, expected)
