"""Patches are masked as in the paper and the official code, sample by sample the same."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from refcli.config.pretraining import ImageMaskingSettings
from refcli.pretraining.draws import SampleDraws, sample_keys
from refcli.pretraining.image_masking import (
    BLOCK_ROUNDS,
    BLOCK_STREAM,
    PATCH_STREAM,
    block_age,
    mask_patches,
    referred_rectangle,
)

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("uniform", "block", "vanilla")
GRIDS = [(24, 24), (14, 14), (20, 28)]


def keys(num: int) -> torch.Tensor:
    return sample_keys([f"sample {n}" for n in range(num)])


def boxes(num: int) -> torch.Tensor:
    """Boxes of all sizes; some stick out of the frame."""
    middle = SampleDraws(0, 0, keys(num)).uniforms(2, stream=50)
    sides = SampleDraws(0, 0, keys(num)).uniforms(2, stream=51)
    return torch.cat([middle, sides**2], dim=1)


def yes(num: int) -> torch.Tensor:
    return torch.ones(num, dtype=torch.bool)


def test_rectangles_and_counts_are_the_official_ones(fixtures):
    all_boxes = torch.from_numpy(np.load(fixtures / "masking" / "visual_target_relation.npz")["boxes_cxcywh"]).float()
    cases = json.loads((fixtures / "masking" / "dynamic_mim_stats.json").read_text())
    assert len(cases) == 48
    for case in cases:
        grid = rows, columns = tuple(case["grid"])
        settings = ImageMaskingSettings(region_ratio=case["dynamic_mask_ratio"], context_ratio=case["mim_mask_ratio"])
        num = max(case["draws"], 800)
        box = all_boxes[case["box"]].repeat(num, 1)
        rectangle = [int(edge[0]) for edge in referred_rectangle(box[:1], yes(1), grid, margin=1)]
        assert rectangle == case["rect_x0y0x1y1"]
        masks = mask_patches(box, yes(num), grid, settings, SampleDraws(0, 0, keys(num))).unflatten(1, grid)
        x0, y0, x1, y1 = rectangle
        inside = masks[:, y0:y1, x0:x1].sum((1, 2))
        assert case["masked_in_min"] == inside.min() == inside.max() == case["masked_in_max"]
        if case["cells_out"]:
            outside = (masks.sum((1, 2)) - inside).double()
            error = case["masked_out_std"] / case["draws"] ** 0.5
            assert abs(outside.mean() - case["ratio_out_mean"] * case["cells_out"]) < 4 * error
            assert outside.std() == pytest.approx(case["masked_out_std"], rel=4 / (2 * case["draws"]) ** 0.5)
        else:
            assert (rows * columns) == (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", METHODS)
def test_masks_equal_those_of_a_plain_loop(method, grid):
    loop_mask = runpy.run_path(str(ROOT / "benchmarks" / "masking.py"))["loop_mask"]
    settings = ImageMaskingSettings(method=method, region_ratio=0.6)
    exists = torch.arange(40) % 5 > 0
    draws = SampleDraws(3, 11, keys(40))
    masks = mask_patches(boxes(40), exists, grid, settings, draws)
    order = draws.integers(grid[0] * grid[1], stream=PATCH_STREAM).tolist()
    blocks = draws.uniforms(4 * BLOCK_ROUNDS, stream=BLOCK_STREAM).tolist()
    samples = zip(boxes(40).tolist(), exists.tolist(), order, blocks, strict=True)
    assert masks.tolist() == [
        loop_mask(box, there, grid, settings, ranks, draws) for box, there, ranks, draws in samples
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_is_masked_alone_as_in_any_batch(method):
    settings = ImageMaskingSettings(method=method)
    everything = mask_patches(boxes(9), yes(9), (14, 20), settings, SampleDraws(1, 2, keys(9)))
    for chosen in ([4], [8, 4, 0]):
        some = mask_patches(boxes(9)[chosen], yes(len(chosen)), (14, 20), settings, SampleDraws(1, 2, keys(9)[chosen]))
        assert torch.equal(some, everything[chosen])
    for seed, step in ((1, 3), (2, 2)):
        other = mask_patches(boxes(9), yes(9), (14, 20), settings, SampleDraws(seed, step, keys(9)))
        assert (other != everything).any(1).all()


@pytest.mark.parametrize("gamma", [0.0, 0.55, 0.8, 1.0])
@pytest.mark.parametrize("method", ["uniform", "block"])
def test_the_number_masked_in_the_rectangle_is_exact(method, gamma):
    settings = ImageMaskingSettings(method=method, region_ratio=gamma, context_ratio=0.5)
    masks = mask_patches(boxes(200), yes(200), (24, 24), settings, SampleDraws(0, 0, keys(200))).unflatten(1, (24, 24))
    for mask, x0, y0, x1, y1 in zip(masks, *referred_rectangle(boxes(200), yes(200), (24, 24), margin=1), strict=True):
        num_patches = int((x1 - x0) * (y1 - y0))
        assert mask[y0:y1, x0:x1].sum() == num_patches - int(num_patches * (1 - gamma))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_referent_the_context_rate_holds_everywhere(method):
    settings = ImageMaskingSettings(method=method)
    masks = mask_patches(torch.zeros(2000, 4), ~yes(2000), (24, 24), settings, SampleDraws(0, 0, keys(2000)))
    assert (masks.sum(1) == 202).all()
    rate = 202 / 576
    assert ((masks.float().mean(0) - rate).abs() < 5 * (rate * (1 - rate) / 2000) ** 0.5).all()


def test_vanilla_masking_does_not_look_at_the_box():
    draws = SampleDraws(0, 0, keys(5))
    settings = ImageMaskingSettings(method="vanilla", context_ratio=0.4)
    masks = mask_patches(boxes(5), yes(5), (14, 14), settings, draws)
    assert torch.equal(masks, mask_patches(boxes(5).flip(0), ~yes(5), (14, 14), settings, draws))


def test_blocks_leave_larger_holes_than_single_patches():
    def neighbours(method: str) -> float:
        """Share of the masked patches whose right neighbour is masked too, half of a 24 x 24 frame being masked."""
        settings = ImageMaskingSettings(method=method, region_ratio=0.5)
        box = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(300, 1)
        masks = mask_patches(box, yes(300), (24, 24), settings, SampleDraws(0, 0, keys(300))).unflatten(1, (24, 24))
        return float((masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum())

    assert neighbours("uniform") == pytest.approx(0.5, abs=0.01)
    assert neighbours("block") > 0.75


def test_every_referent_has_a_patch_even_without_a_margin():
    edges = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.99, 0.01, 0.3, 0.3]])
    rectangle = referred_rectangle(edges, yes(4), (10, 20), margin=0)
    assert torch.stack(rectangle, dim=1).tolist() == [[10, 5, 11, 6], [19, 9, 20, 10], [0, 0, 1, 1], [16, 0, 20, 1]]
    assert torch.stack(referred_rectangle(edges, ~yes(4), (10, 20), margin=0)).eq(0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_masks_the_same_patches(method):
    settings = ImageMaskingSettings(method=method)
    here = mask_patches(boxes(64), yes(64), (24, 24), settings, SampleDraws(1, 2, keys(64)))
    there = mask_patches(boxes(64).cuda(), yes(64).cuda(), (24, 24), settings, SampleDraws(1, 2, keys(64).cuda()))
    assert torch.equal(there.cpu(), here)


def test_blocks_cover_93_percent_of_what_is_masked_in_the_whole_frame_and_more_in_smaller_rectangles():
    """The figure at `BLOCK_ROUNDS`: the rest are single patches."""

    def share_of_blocks(side: float) -> float:
        box = torch.tensor([0.5, 0.5, side, side]).repeat(2000, 1)
        rectangle = referred_rectangle(box, yes(2000), (24, 24), margin=0)
        num_inside = (rectangle.x1 - rectangle.x0) * (rectangle.y1 - rectangle.y0)
        num_wanted = num_inside - (num_inside.double() * (1 - ImageMaskingSettings().region_ratio)).long()
        draws = SampleDraws(0, 0, keys(2000)).uniforms(4 * BLOCK_ROUNDS, stream=BLOCK_STREAM)
        age = block_age(rectangle, (24, 24), num_wanted, draws, min_aspect=ImageMaskingSettings().min_aspect)
        covered = (age > 0).sum((1, 2)).minimum(num_wanted)
        return float(covered.sum() / num_wanted.sum())

    assert share_of_blocks(1.0) == pytest.approx(0.93, abs=0.005)
    assert share_of_blocks(0.17) == pytest.approx(0.98, abs=0.005)  # 5 x 5 patches
    assert share_of_blocks(0.125) > 0.995  # 3 x 3
