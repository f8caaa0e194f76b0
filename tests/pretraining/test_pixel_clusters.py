"""k-means finds what is there, and its means are the codes."""

import itertools

import numpy as np
import pytest
import torch

from refcli.config.pretraining import VisualCodeSettings
from refcli.config.schema import TowerSettings
from refcli.data.training.transforms import letterbox
from refcli.pretraining.pixel_clusters import PATCHES_PER_IMAGE, PixelClusters, k_means, spread_start
from refcli.pretraining.visual_codes import build_visual_codes, cut_patches, visual_pixels

TOWER = TowerSettings(image_size=16, patch_size=4)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def checkered(seed, count=8):
    """Normalised images of 4x4 patches, each of one of five colours, and the number of each patch's colour."""
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, len(COLOURS), size=(count, 4, 4))
    levels = np.array(COLOURS, np.uint8)[colours].repeat(4, axis=1).repeat(4, axis=2)
    images = torch.from_numpy(np.stack([letterbox(pixels, TOWER)[0] for pixels in levels]))
    return images, torch.from_numpy(colours).flatten(1)


def blobs(*, num=6, members=40):
    centres = torch.randn(num, 5, generator=generator(1)) * 20
    vectors = centres.repeat_interleave(members, 0) + torch.randn(num * members, 5, generator=generator(2))
    return centres, vectors


def test_well_separated_groups_are_found_and_their_means_are_exact():
    _, vectors = blobs()
    means = k_means(vectors, 6, generator=generator())
    truth = vectors.view(6, 40, 5).mean(1)
    nearest = torch.cdist(truth, means).argmin(1)
    assert sorted(nearest.tolist()) == list(range(6))
    torch.testing.assert_close(means[nearest], truth)


def test_every_mean_is_that_of_the_vectors_nearest_to_it():
    vectors = torch.rand(300, 3, generator=generator(3))
    means = k_means(vectors, 4, generator=generator())
    ids = torch.cdist(vectors, means).argmin(1)
    for number in range(4):
        torch.testing.assert_close(means[number], vectors[ids == number].mean(0), rtol=0, atol=2e-3)


def test_k_means_explains_more_than_its_start():
    vectors = torch.rand(500, 6, generator=generator(4))
    start, means = spread_start(vectors, 8, generator=generator()), k_means(vectors, 8, generator=generator())
    before, after = (torch.cdist(vectors, each).amin(1).square().mean() for each in (start, means))
    assert after < 0.9 * before


def test_the_start_has_one_vector_of_every_distant_group():
    centres, vectors = blobs()
    hits = [
        len(torch.cdist(spread_start(vectors, 6, generator=generator(seed)), centres).argmin(1).unique())
        for seed in range(20)
    ]
    assert np.mean(hits) > 5.7  # six vectors drawn evenly hit 4 groups on average


def test_a_mean_that_lost_its_vectors_moves_to_one_that_lies_far_off(monkeypatch):
    vectors = torch.cat([torch.zeros(50, 2), torch.ones(50, 2), torch.full((1, 2), 9.0)])
    unlucky = torch.tensor([[0.5, 0.5], [-70.0, 0.0], [-80.0, 0.0]])  # nothing is near the second and the third
    monkeypatch.setattr("refcli.pretraining.pixel_clusters.spread_start", lambda *args, **options: unlucky)
    means = k_means(vectors, 3, generator=generator())
    assert sorted(means[:, 0].tolist()) == [0, 1, 9]


def test_fewer_different_vectors_than_means_are_each_their_own_mean():
    vectors = torch.eye(3).repeat(2, 1)
    means = k_means(vectors, 8, generator=generator())
    assert torch.cdist(vectors, means).amin(1).max() == 0
    assert means.isfinite().all()


def test_patches_of_equal_colour_share_a_code_and_others_do_not():
    codes = build_visual_codes(VisualCodeSettings(source="pixel_clusters", num_codes=5), TOWER, device="cpu")
    assert not codes.is_fitted
    codes.fit([checkered(0)[0], checkered(1)[0]], seed=0)
    assert codes.is_fitted
    images, colours = checkered(2)
    ids = codes.code_ids(images)
    assert ids.shape == (8, 16)
    pairs = set(zip(colours.flatten().tolist(), ids.flatten().tolist(), strict=True))
    assert len(pairs) == len(COLOURS) == len({code for _, code in pairs})


def test_the_code_is_that_of_the_mean_at_the_least_distance():
    codes = PixelClusters(20, 4)
    codes.fit([torch.randn(8, 3, 16, 16, generator=generator(5))], seed=0)
    images = torch.randn(4, 3, 16, 16, generator=generator(6))
    patches = cut_patches(visual_pixels(images), 4).double()
    distances = (patches[:, :, None] - codes.means.double()).square().sum(-1)
    assert torch.equal(codes.code_ids(images), distances.argmin(-1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes.code_ids(images), distances.argmin(-1))


def test_the_same_seed_gives_the_same_codes_and_another_seed_others():
    fitted = [PixelClusters(6, 4) for _ in range(3)]
    torch.manual_seed(1)
    for codes, seed in zip(fitted, (3, 3, 4), strict=True):
        codes.fit([torch.randn(8, 3, 16, 16, generator=generator(7))], seed=seed)
        torch.rand(5)  # fitting draws nothing from the global generator, and nothing there disturbs it
    assert torch.equal(fitted[0].means, fitted[1].means)
    assert not torch.equal(fitted[0].means, fitted[2].means)


def test_a_resumed_run_has_the_same_codes_without_fitting():
    codes = PixelClusters(5, 4)
    codes.fit([checkered(0)[0]], seed=0)
    resumed = PixelClusters(5, 4)
    resumed.load_state_dict(codes.state_dict())
    images, _ = checkered(3)
    assert resumed.is_fitted
    assert torch.equal(resumed.code_ids(images), codes.code_ids(images))


def test_an_endless_stream_is_read_only_as_far_as_needed():
    read = []
    stream = (read.append(number) or checkered(number)[0] for number in itertools.count())
    PixelClusters(5, 4).fit(stream, seed=0)
    assert len(read) == -(-5 * 64 // (8 * PATCHES_PER_IMAGE))


def test_clusters_that_were_not_fitted_have_no_codes():
    with pytest.raises(RuntimeError, match="before they are fitted"):
        PixelClusters(5, 4).code_ids(checkered(0)[0])
