"""A tokenizer that is trained learns codes from which images can be reconstructed, and uses them all."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from refcli.config.load import load_pretrain
from refcli.config.pretraining import VisualTokenizerTrainingSettings
from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Batch, Targets
from refcli.errors import ConfigError
from refcli.pretraining.visual_codes import cut_patches, visual_pixels
from refcli.pretraining.visual_tokenizer_training import VisualTokenizerTraining

TOWER = TowerSettings(image_size=32, patch_size=8)
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "dim": 32,
    "layers": 1,
    "heads": 2,
    "ffn_dim": 64,
    "num_codes": 16,
    "code_dim": 4,
}


def new_training(seed=0, **settings):
    torch.manual_seed(seed)
    return VisualTokenizerTraining(VisualTokenizerTrainingSettings(sizes=SIZES, **settings), TOWER)


def image_batch(seed, count=8):
    """Normalised images of 4x4 patches; each patch has one of eight colours and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 8, (count, 4, 4), generator=generator)
    corners = 3 * (torch.stack([colours & 1, colours >> 1 & 1, colours >> 2 & 1], 1) - 0.5)
    images = corners.repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    targets = Targets(torch.zeros(count, 4), torch.zeros(count, 32, 32), torch.ones(count), torch.zeros(count))
    words = torch.zeros(count, 3, dtype=torch.int64)
    return Batch(images, words, words.bool(), targets, tuple(map(str, range(count))))


def unit_vectors(training, batch):
    with torch.no_grad():
        return F.normalize(training.tokenizer.code_vectors(visual_pixels(batch.images)), dim=-1).flatten(0, 1)


def test_images_are_reconstructed_and_many_codes_are_used():
    training = new_training()
    optimizer = torch.optim.AdamW(training.parameters(), lr=3e-3)
    history = []
    for step in range(150):
        losses = training(image_batch(step), step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(losses["reconstruction"].item())
    pixels = visual_pixels(image_batch(999).images)
    assert sum(history[-10:]) / 10 < 0.4 * pixels.var().item()  # the mean colour alone would leave the variance
    assert history[-1] < 0.5 * history[0]
    assert training.metrics()["code_perplexity"] > 7  # eight colours, sixteen codes
    ids = training.tokenizer.eval().code_ids(pixels)
    assert len(ids.unique()) >= 6


def test_the_reconstruction_is_the_mean_squared_error_of_the_pixels_of_every_patch():
    training, batch = new_training().eval(), image_batch(1)
    training.tokenizer.codebook.copy_(F.normalize(torch.randn(16, 4), dim=-1))
    losses = training(batch, 5)
    pixels, vectors = visual_pixels(batch.images), unit_vectors(training, batch)
    codes = training.tokenizer.codebook[torch.cdist(vectors, training.tokenizer.codebook).argmin(-1)]
    restored = training.decoder(codes.view(8, 16, 4))
    torch.testing.assert_close(losses["reconstruction"], (restored - cut_patches(pixels, 8)).square().mean())
    torch.testing.assert_close(losses["commitment"], 0.25 * (vectors - codes).square().sum() / len(vectors))


def test_the_encoder_gets_the_gradient_of_its_codes_as_if_they_were_its_vectors():
    training, batch = new_training(), image_batch(2)
    given = []
    training.decoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    reconstruction = training(batch, 0)["reconstruction"]
    parameters = list(training.tokenizer.parameters())
    at_codes, *through = torch.autograd.grad(reconstruction, [given[0], *parameters])
    vectors = F.normalize(training.tokenizer.code_vectors(visual_pixels(batch.images)), dim=-1)
    wanted = torch.autograd.grad(vectors, parameters, grad_outputs=at_codes)
    assert at_codes.abs().max() > 0
    for ours, theirs in zip(through, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not any(name.endswith("codebook") for name, _ in training.named_parameters())


def test_codes_are_moving_averages_of_the_unit_vectors_that_chose_them():
    training = new_training(codebook_decay=0.9, revive_below=0.0)
    codes, usage = [code.clone() for code in training.tokenizer.codebook], torch.zeros(16)
    for step in range(3):
        batch = image_batch(step)
        vectors = unit_vectors(training, batch)
        ids = torch.cdist(vectors, torch.stack(codes)).argmin(-1)
        training(batch, step)
        decay = 0.9 if step else 0.0
        for number in range(16):
            chosen = vectors[ids == number]
            usage[number] = decay * usage[number] + (1 - decay) * len(chosen)
            if len(chosen):
                mean = F.normalize(chosen.mean(0), dim=0)
                codes[number] = F.normalize(decay * codes[number] + (1 - decay) * mean, dim=0)
        torch.testing.assert_close(training.tokenizer.codebook, torch.stack(codes))
        torch.testing.assert_close(training.usage, usage)
    assert usage.count_nonzero() > 1


def test_an_idle_code_moves_to_the_vector_of_some_patch_and_waits_there():
    training, batch = new_training(revive_below=1.0), image_batch(3)
    vectors = unit_vectors(training, batch)
    ids = torch.cdist(vectors, training.tokenizer.codebook).argmin(-1)
    is_idle = ids.bincount(minlength=16) == 0
    assert is_idle.any()
    assert not is_idle.all()
    training(batch, 0)
    codebook = training.tokenizer.codebook
    distances = (codebook[:, None] - vectors).abs().amax(-1).amin(-1)
    assert distances[is_idle].max() < 1e-6
    for number in ids.unique().tolist():
        torch.testing.assert_close(codebook[number], F.normalize(vectors[ids == number].mean(0), dim=0))
    assert training.usage[is_idle].tolist() == [2.0] * int(is_idle.sum())


def test_the_codebook_stays_in_evaluation_mode():
    training = new_training().eval()
    before = copy.deepcopy(training.state_dict())
    first = training(image_batch(0), 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.state_dict().items())
    assert first == training(image_batch(0), 1)


def test_under_autocast_the_codebook_stays_in_float32_and_of_unit_length():
    training = new_training()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = training(image_batch(0), 0)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert training.tokenizer.codebook.dtype == torch.float32
    torch.testing.assert_close(training.tokenizer.codebook.norm(dim=-1), torch.ones(16))


def test_perplexity_is_the_number_of_codes_that_are_used_equally_often():
    training = new_training()
    for used in (1, 4, 16):
        training.usage.zero_()[:used] = 7.0
        assert training.metrics()["code_perplexity"].item() == pytest.approx(used, rel=1e-5)


def test_a_resumed_training_moves_its_codes_as_an_uninterrupted_one():
    whole, resumed = new_training(), new_training(seed=1)
    whole(image_batch(0), 0)
    resumed.load_state_dict(whole.state_dict())
    for training in (whole, resumed):
        torch.manual_seed(5)
        training(image_batch(1), 1)
    assert torch.equal(whole.tokenizer.codebook, resumed.tokenizer.codebook)
    assert torch.equal(whole.usage, resumed.usage)


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="the visual tokenizer is for"):
        VisualTokenizerTraining(VisualTokenizerTrainingSettings(), TowerSettings(image_size=(112, 126), patch_size=14))


def test_the_preset_trains_a_tokenizer_on_the_grid_of_the_small_models():
    settings = load_pretrain("visual_tokenizer_small")
    assert settings.objective == "visual_tokenizer"
    assert settings.visual_tokenizer.sizes == VisualTokenizerTrainingSettings().sizes
    training = VisualTokenizerTraining(settings.visual_tokenizer, settings.model.tower)
    assert training.tokenizer.settings.grid == settings.model.tower.grid == (8, 8)


TWO_PROCESSES = """
import dataclasses, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def agree(tensor):
    shared = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(shared, tensor)
    assert torch.equal(*shared)

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
training, batches = torch.load(sys.argv[1], weights_only=False)
wrapped = DistributedDataParallel(training)
optimizer = torch.optim.SGD(training.parameters(), lr=0.1)
for step, batch in enumerate(batches):
    optimizer.zero_grad()
    sum(wrapped(dataclasses.replace(batch, images=batch.images[rank::2]), step).values()).backward()
    optimizer.step()
if rank == 0:
    torch.save(training.state_dict(), sys.argv[2])
training.settings = training.settings.model_copy(update={"revive_below": 1e9})
training(dataclasses.replace(batch, images=batch.images[rank::2]), step)
agree(training.tokenizer.codebook)
dist.barrier()
dist.destroy_process_group()
time.sleep(2)  # a process that leaves within a second of wrapping is aborted by torch's own threads now and then
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_both_batches(tmp_path):
    training, batches = new_training(revive_below=0.0), [image_batch(step) for step in range(3)]
    torch.save((training, batches), tmp_path / "start.pt")
    optimizer = torch.optim.SGD(training.parameters(), lr=0.1)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        sum(training(batch, step).values()).backward()
        optimizer.step()
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    files = [str(tmp_path / name) for name in ("two.py", "start.pt", "end.pt")]
    done = subprocess.run([*run, *files], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for name, tensor in torch.load(tmp_path / "end.pt", weights_only=True).items():
        torch.testing.assert_close(tensor, training.state_dict()[name], rtol=0, atol=1e-5, msg=name)
