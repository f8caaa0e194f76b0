"""What Mask Referring Modelling predicts: visual codes, words, and their relation to the referent."""

from __future__ import annotations

from torch import nn

from refcli.config.schema import TowerSettings
from refcli.heads.shared.layers import ThreeLayerMLP
from refcli.model.beit3 import draw_as_published


class MRefMHeads(nn.Module):
    """Four read-outs on the tower's rows (OneRef section 3.2; Fig. 2); fine-tuning has no use for them.

    Args:
        tower: whose rows are read.
        num_codes: visual codes to choose from; None where none are predicted, which leaves out `mim`.
    """

    def __init__(self, tower: TowerSettings, *, num_codes: int | None) -> None:
        super().__init__()
        if num_codes is not None:
            self.mim = nn.Linear(tower.dim, num_codes)
        self.visual_target_relation = ThreeLayerMLP(tower.dim, 4)
        self.mlm = nn.Linear(tower.dim, tower.vocabulary_size)
        self.semantic_target_relation = ThreeLayerMLP(tower.dim, 1)
        draw_as_published(self.mlm)  # the others start as torch draws them
