"""One process of a world that computes the gradients of heads: `world_gradients.py RANK SIZE FOLDER`.

Every process takes its share of the same batches; the first writes the averaged gradients to `FOLDER/SIZE.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_conformance import EVERYTHING_ON, PAD, TOWER
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from refcli.config.schema import HeadChoice, ModelSettings
from refcli.contracts.batch import Batch, Targets
from refcli.grounder import Grounder

NAMES = ("oneref", "cgformer", "rela", "shared_ris")
CASES = {
    "uneven": ((True, True, True, False), (True, True, False, True)),
    "one process sees nothing": ((True, True, False, False), (True, True, True, True)),
    "nothing anywhere": ((False,) * 4, (True,) * 4),
}
"""Which of four expressions refer to something, and which masks are known."""


def frozen_norms(name: str) -> Grounder:
    """BatchNorm's statistics are those of a process, so here it takes the running ones."""
    torch.manual_seed(0)
    settings = EVERYTHING_ON[name] | {"loss_weights": {}}  # CGFormer's contrast is within a process
    grounder = Grounder.from_settings(ModelSettings(tower=TOWER, head=HeadChoice(name=name, settings=settings)))
    for module in grounder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return grounder


def share_of(exists: tuple[bool, ...], known: tuple[bool, ...], share: slice) -> Batch:
    torch.manual_seed(1)
    images, ids, boxes = torch.randn(4, 3, 32, 32), torch.randint(5, 50, (4, 6)), torch.rand(4, 4)
    ids[:, 0] = 0
    there = torch.tensor(exists)
    masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    for i in range(4):
        masks[i, : 8 + 4 * i, :12] = exists[i]
    targets = Targets(boxes[share], masks[share], torch.tensor(known)[share], there[share])
    return Batch(images[share], ids[share], ids[share] == PAD, targets, tuple("abcd"[share]))


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / f'store-{size}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    share = slice(rank * 4 // size, (rank + 1) * 4 // size)
    found = {}
    for name in NAMES:
        for case, (exists, known) in CASES.items():
            model = DistributedDataParallel(frozen_norms(name), static_graph=True)
            sum(model(share_of(exists, known, share), 0).values()).backward()
            gradients = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
            found[f"{name}, {case}"] = gradients
    if rank == 0:
        torch.save(found, folder / f"{size}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
