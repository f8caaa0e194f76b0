"""The instances head: seeds, matching and losses against brute force, and truth in, truth out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Regions, Targets
from refcli.errors import ConfigError
from refcli.heads.instances.decoder import QueryStage, box_prior
from refcli.heads.instances.head import InstancesHead, InstancesSettings
from refcli.heads.instances.losses import centre_focal, centre_truth
from refcli.heads.instances.matching import CENTRE_COST, GIOU_COST, L1_COST, SCORE_COST, match
from refcli.heads.instances.seeds import Seeds, find_seeds
from refcli.model.beit3 import Features

ROWS, COLUMNS, PATCH = 3, 4, 8
TOWER = TowerSettings(image_size=32, patch_size=PATCH, dim=24, layers=1, heads=2, ffn_dim=32, vocabulary_size=648)
SETTINGS = InstancesSettings(dim=16, mask_dim=8, queries=5, heads=2, ffn_dim=16, decoder_layers=1, score_threshold=0.7)


def make_regions(boxes, *, masks=None, known=None, separate=None) -> Regions:
    """Regions of samples given as lists of (centre x, centre y, width, height), all with filled boxes as masks."""
    most = max(map(len, boxes))
    padded = torch.zeros(len(boxes), most, 4)
    real = torch.zeros(len(boxes), most, dtype=torch.bool)
    pixels = torch.zeros(len(boxes), most, ROWS * PATCH, COLUMNS * PATCH, dtype=torch.bool)
    for sample, of_sample in enumerate(boxes):
        for number, (x, y, width, height) in enumerate(of_sample):
            padded[sample, number], real[sample, number] = torch.tensor([x, y, width, height]), True
            across = slice(round((x - width / 2) * COLUMNS * PATCH), round((x + width / 2) * COLUMNS * PATCH))
            down = slice(round((y - height / 2) * ROWS * PATCH), round((y + height / 2) * ROWS * PATCH))
            pixels[sample, number, down, across] = True
    known = real if known is None else real & torch.tensor(known)[:, None]
    separate = [True] * len(boxes) if separate is None else separate
    return Regions(padded, pixels, real, known, torch.tensor(separate))


def make_targets(regions: Regions) -> Targets:
    masks = regions.masks.any(1) if regions.masks.shape[1] else regions.masks.new_zeros(len(regions.masks), 24, 32)
    return Targets(
        regions.boxes_cxcywh[:, 0] if regions.boxes_cxcywh.shape[1] else torch.zeros(len(masks), 4),
        masks,
        regions.mask_is_known.any(1) | ~regions.is_real.any(1),
        regions.is_real.any(1),
        regions,
    )


def make_features(batch: int, *, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    vision = torch.randn(batch, 1 + ROWS * COLUMNS, TOWER.dim, generator=generator)
    text = torch.randn(batch, 4, TOWER.dim, generator=generator)
    is_pad = torch.zeros(batch, 4, dtype=torch.bool)
    return Features(vision, text, is_pad, (ROWS, COLUMNS), (ROWS * PATCH, COLUMNS * PATCH))


def random_stage(generator: np.random.Generator, queries: int) -> tuple[QueryStage, Seeds]:
    numbers = torch.from_numpy(generator.random((1, queries, 7))).float()
    stage = QueryStage(
        4 * numbers[..., 0] - 2, numbers[..., 1:5], torch.zeros(1, queries, 8), torch.zeros(1, queries, 12)
    )
    alive = torch.ones(1, queries, dtype=torch.bool)
    return stage, Seeds(torch.zeros(1, queries, dtype=torch.long), numbers[..., 0], alive, numbers[..., 5:7])


def naive_cost(stage: QueryStage, seeds: Seeds, query: int, box: list[float]) -> float:
    """One entry of the cost matrix, number by number."""
    ours = stage.boxes_cxcywh[0, query].tolist()
    (ax, ay, aw, ah), (bx, by, bw, bh) = ours, box
    l1 = sum(abs(a - b) for a, b in zip(ours, box, strict=True))
    width = max(0.0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
    height = max(0.0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
    union = aw * ah + bw * bh - width * height
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    giou = width * height / union - (hull - union) / hull
    seed = abs(seeds.points[0, query, 0].item() - bx) + abs(seeds.points[0, query, 1].item() - by)
    score = torch.sigmoid(stage.score_logits[0, query]).item()
    return L1_COST * l1 - GIOU_COST * giou + CENTRE_COST * seed - SCORE_COST * score


def test_matching_is_the_cheapest_of_all_assignments():
    generator = np.random.default_rng(3)
    for _ in range(60):
        queries, count = int(generator.integers(1, 6)), int(generator.integers(1, 4))
        stage, seeds = random_stage(generator, queries)
        boxes = generator.uniform(0.1, 0.9, (count, 4)).tolist()
        found = match(stage, seeds, make_regions([boxes]))
        cost = [[naive_cost(stage, seeds, query, box) for box in boxes] for query in range(queries)]
        pairs = min(queries, count)
        least = min(
            sum(cost[query][region] for query, region in zip(chosen, regions, strict=True))
            for chosen in itertools.permutations(range(queries), pairs)
            for regions in itertools.combinations(range(count), pairs)
        )
        assert len(found.queries) == len(set(found.queries.tolist())) == len(set(found.regions.tolist())) == pairs
        total = sum(cost[query][region] for query, region in zip(found.queries, found.regions, strict=True))
        assert total == pytest.approx(least, abs=1e-4)


def test_dead_queries_and_costs_that_are_not_finite_come_last():
    stage, seeds = random_stage(np.random.default_rng(0), 3)
    boxes = stage.boxes_cxcywh.clone()
    boxes[0, 0] = torch.nan
    seeds = seeds._replace(are_alive=torch.tensor([[True, False, True]]))
    stage = stage._replace(boxes_cxcywh=boxes)
    one = match(stage, seeds, make_regions([[(0.5, 0.5, 0.2, 0.2)]]))
    two = match(stage, seeds, make_regions([[(0.5, 0.5, 0.2, 0.2), (0.2, 0.2, 0.1, 0.1)]]))
    assert one.queries.tolist() == [2]
    assert sorted(two.queries.tolist()) == [1, 2]


def test_samples_without_separate_regions_are_not_matched():
    stage, seeds = random_stage(np.random.default_rng(0), 3)
    regions = make_regions([[(0.5, 0.5, 0.2, 0.2)]], separate=[False])
    assert len(match(stage, seeds, regions).queries) == 0


def test_seeds_are_the_local_maxima_in_order_with_ties_and_borders():
    logits = torch.full((1, 4, 6), -5.0)
    logits[0, 0, 0], logits[0, 3, 5], logits[0, 2, 2], logits[0, 2, 3] = 1.0, 3.0, 2.0, 2.0
    seeds = find_seeds(logits, 4)
    alive = int(seeds.are_alive.sum())
    assert seeds.patches[0, :3].tolist() == [23, 14, 0]
    assert seeds.logits[0, :3].tolist() == [3.0, 2.0, 1.0]
    assert seeds.points[0, 1].tolist() == pytest.approx([2.5 / 6, 2.5 / 4])
    assert alive >= 3
    assert 15 not in seeds.patches[0, :alive].tolist(), "of two equal neighbours the first is the maximum"


def test_the_truth_of_the_centre_map_is_a_gaussian_around_each_centre():
    regions = make_regions([[(0.375, 0.5, 0.5, 1 / 3), (0.875, 1 / 6, 0.1, 0.1)], []])
    truth, is_centre = centre_truth(regions, ROWS, COLUMNS)
    expected = torch.zeros(ROWS, COLUMNS)
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        for x, y, sigma_x, sigma_y in ((1.5, 1.5, 0.4, 0.4), (3.5, 0.5, 0.4, 0.4)):
            distance = ((column + 0.5 - x) / sigma_x) ** 2 + ((row + 0.5 - y) / sigma_y) ** 2
            expected[row, column] = max(expected[row, column].item(), float(np.exp(-distance / 2)))
    torch.testing.assert_close(truth[0], expected)
    assert is_centre[0].nonzero().tolist() == [[0, 3], [1, 1]]
    assert not truth[1].any() and not is_centre[1].any()
    logits = torch.where(is_centre, 12.0, -12.0)
    assert centre_focal(logits, regions).item() < 1e-3


def test_the_box_term_of_a_mask_is_zero_on_the_ellipse_in_the_box():
    prior = box_prior(torch.tensor([[[0.5, 0.5, 0.5, 0.25]]]), 40, 20).view(40, 20)
    centre_row, centre_column = 19.5, 9.5
    for row, column in itertools.product(range(40), range(20)):
        distance = ((column - centre_column) / 5) ** 2 + ((row - centre_row) / 5) ** 2
        assert prior[row, column].item() == pytest.approx(max(1 - distance, -4), abs=1e-4)


def test_losses_at_the_truth_vanish_and_only_matched_queries_learn_boxes_and_masks():
    regions = make_regions([[(0.25, 0.5, 0.25, 1 / 3), (0.75, 0.5, 0.25, 1 / 3)]])
    head = InstancesHead(SETTINGS, TOWER)
    output = head(make_features(1))
    boxes = torch.rand(1, 5, 4) * 0.3 + 0.1
    boxes[0, 3], boxes[0, 1] = regions.boxes_cxcywh[0]
    scores = torch.full((1, 5), -12.0)
    scores[0, [3, 1]] = 12.0
    points = torch.full((1, 5, 2), 0.1)
    points[0, [3, 1]] = regions.boxes_cxcywh[0, :, :2]
    masks = torch.where(regions.masks[0], 12.0, -12.0)
    planes = torch.zeros(1, 5, *masks.shape[1:])
    planes[0, 3], planes[0, 1] = masks
    seeds = output.seeds._replace(points=points, are_alive=torch.ones(1, 5, dtype=torch.bool))
    boxes, planes = boxes.requires_grad_(), planes.requires_grad_()
    coarse = torch.nn.functional.adaptive_avg_pool2d(planes.detach(), (ROWS, COLUMNS)).flatten(2)
    stage = QueryStage(scores, boxes, torch.zeros(1, 5, 8), coarse)
    output = replace(
        output, seeds=seeds, stages=(stage,), mask_logits=planes, union_mask_logits=planes.amax(1).detach()
    )
    losses = head.losses(output, make_targets(regions))
    for name in ("box_l1", "box_giou", "score_bce", "instance_bce"):
        assert losses[name].item() == pytest.approx(0, abs=1e-3), name
    (losses["box_l1"] + losses["instance_bce"]).backward()
    assert planes.grad.flatten(2).any(-1)[0].tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(("separate", "known"), [(False, True), (True, False)])
def test_a_union_trains_no_instance_and_a_box_trains_no_mask(separate, known):
    regions = make_regions([[(0.5, 0.5, 0.5, 0.5)]], separate=[separate], known=[known])
    head = InstancesHead(SETTINGS, TOWER)
    losses = head.losses(head(make_features(1)), make_targets(regions))
    trained = {name for name, loss in losses.items() if loss.item()}
    instances = {"centre_focal", "score_bce", "box_l1", "box_giou"}
    masks = {"instance_bce", "instance_dice", "union_bce", "union_dice"}
    if separate:
        assert trained == instances | {"existence_bce"}
    else:
        assert trained == (masks - {"instance_bce", "instance_dice"}) | {"existence_bce"}


def test_a_mirrored_image_gives_mirrored_boxes_and_masks():
    torch.manual_seed(1)
    head = InstancesHead(SETTINGS.model_copy(update={"decoder_layers": 0}), TOWER).eval()
    features = make_features(1)
    patches = features.patches.view(1, ROWS, COLUMNS, -1).flip(2).flatten(1, 2)
    mirrored = replace(features, vision=torch.cat((features.vision[:, :1], patches), 1))
    ours, theirs = head(features), head(mirrored)
    seeds = ours.seeds.points[ours.seeds.are_alive]
    flipped = theirs.seeds.points[theirs.seeds.are_alive]
    torch.testing.assert_close(torch.stack((1 - flipped[:, 0], flipped[:, 1]), 1), seeds)
    torch.testing.assert_close(theirs.stages[-1].score_logits, ours.stages[-1].score_logits)


def test_targets_without_regions_are_refused():
    head = InstancesHead(SETTINGS, TOWER)
    targets = make_targets(make_regions([[(0.5, 0.5, 0.5, 0.5)]]))
    with pytest.raises(ConfigError, match="needs the regions"):
        head.losses(head(make_features(1)), replace(targets, regions=None))


def test_a_few_samples_are_learnt_to_exact_sets():
    torch.manual_seed(0)
    boxes = [[(0.125, 0.5, 0.25, 1 / 3), (0.875, 0.5, 0.25, 1 / 3)], [(0.625, 1 / 6, 0.25, 1 / 3)], []]
    regions, features = make_regions(boxes), make_features(3, seed=5)
    head = InstancesHead(SETTINGS, TOWER)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(70):
        optimizer.zero_grad()
        sum(head.losses(head(features), make_targets(regions)).values()).backward()
        optimizer.step()
    with torch.no_grad():
        prediction = head.predict(head.eval()(features))
    kept = [(row >= prediction.score_threshold).sum().item() for row in prediction.scores]
    assert kept == [2, 1, 0]
    assert (prediction.existence > 0.5).tolist() == [True, True, False]
