"""MRefM: Mask Referring Modelling, the pre-training objective of OneRef (NeurIPS 2024, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refcli.config.pretraining import MRefMSettings
from refcli.config.schema import TowerSettings
from refcli.contracts.batch import Batch
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.oneref.head import OneRefHead
from refcli.heads.shared.layers import ThreeLayerMLP
from refcli.losses.mrefm import mim_loss, mlm_loss, sts_loss, vts_loss
from refcli.model.beit3 import Features, draw_as_published
from refcli.model.flops import Work, training_work
from refcli.pretraining.draws import SampleDraws, sample_keys
from refcli.pretraining.image_masking import mask_patches
from refcli.pretraining.semantic_target_relation import FrozenTower, score_words
from refcli.pretraining.text_masking import MaskedWords, mask_words
from refcli.pretraining.visual_codes import VisualCodes
from refcli.pretraining.visual_target_relation import visual_target_relation
from refcli.text.tokenizer import BOS, EOS

FIRST_WORD_ID = 3
"""Ids below are <s>, <pad> and </s>; a masked word is never replaced by one of them."""


class MRefMHeads(nn.Module):
    """The four pre-training outputs on the tower's tokens (OneRef section 3.2, Fig. 2); fine-tuning does not use them.

    Args:
        tower: settings of the tower.
        num_codes: size of the visual vocabulary; None leaves out `mim`.
    """

    def __init__(self, tower: TowerSettings, *, num_codes: int | None) -> None:
        super().__init__()
        if num_codes is not None:
            self.mim = nn.Linear(tower.dim, num_codes)
        self.visual_target_relation = ThreeLayerMLP(tower.dim, 4)
        self.mlm = nn.Linear(tower.dim, tower.vocabulary_size)
        self.semantic_target_relation = ThreeLayerMLP(tower.dim, 1)
        draw_as_published(self.mlm)  # the others start as torch draws them


class MRefM(nn.Module):
    """An Objective of the training loop: referring MIM and referring MLM with one grounder.

    Referring MIM hides patches, most of them on the referent, and predicts their visual codes and the position and size
    of the referent relative to every patch (visual target-relation score, VTS). Referring MLM hides words, those of the
    referent first, and predicts them and the relation of each word to the referent (semantic target-relation score,
    STS). Only one modality is hidden at a time, so that the other provides the information.

    Args:
        grounder: the tower and a OneRef head, which fine-tuning continues with.
        settings: masking, targets, and the weight of every term.
        codes: gives the visual code of every patch; frozen. None where `mim` is off.
        teacher: scores words for STS; frozen. None where that term is off.
        mask_id: the tokenizer's <mask>.
        seed: of the masks, which depend on it, the step and the sample only.

    Raises:
        ConfigError: another head than OneRef's, whose projections the products need.
    """

    def __init__(
        self,
        grounder: Grounder,
        settings: MRefMSettings,
        *,
        codes: VisualCodes | None,
        teacher: FrozenTower | None,
        mask_id: int,
        seed: int,
    ) -> None:
        super().__init__()
        if not isinstance(grounder.head, OneRefHead):
            raise ConfigError("pre-training needs the head 'oneref'", where="model.head.name", hint="set it to oneref")
        assert codes is not None or not settings.loss_weights.mim
        assert teacher is not None or not settings.loss_weights.semantic_target_relation
        self.grounder = grounder
        self.heads = MRefMHeads(grounder.tower.settings, num_codes=codes.num_codes if codes else None)
        self.codes = codes
        self.teacher = teacher
        self.settings = settings
        self.mask_id = mask_id
        self.seed = seed
        self.has_static_graph = not settings.alternate
        self._accuracies: dict[str, Tensor] = {}

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        """The parts that only compute targets and are not trained."""
        return tuple(part for part in (self.codes, self.teacher) if part is not None)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted losses by name; with `alternate`, even steps hide patches and odd ones words."""
        losses: dict[str, Tensor] = {}
        for parity, task in enumerate((self.referring_mim, self.referring_mlm)):
            if not self.settings.alternate or step % 2 == parity:
                for term, loss in task(batch, step).items():
                    losses[term] = losses[term] + loss if term in losses else loss
        return losses

    def begin_step(self, step: int) -> None:
        """Refresh the teacher where that is due; not in `forward`, where parts of a sharded model are gathered."""
        every = self.settings.semantic_targets.refresh_every
        if self.teacher is not None and every and step % every == 0:
            self.teacher.refresh(self.grounder)

    def referring_mim(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Hide patches; predict their codes and the visual target-relation score (VTS)."""
        targets = batch.targets
        is_masked = self._masked_patches(batch, step)
        features = self.grounder.tower(batch.images, batch.token_ids, batch.token_is_pad, patch_is_masked=is_masked)
        weights = self.settings.loss_weights
        losses = self._grounding(features, batch)
        product = self.patch_products(features)
        if weights.mim:
            assert self.codes is not None
            patches = F.normalize(product, dim=-1) if self.settings.mim_input == "product" else features.patches
            logits = self.heads.mim(patches[is_masked])
            code_ids = self.codes.code_ids(batch.images)[is_masked]
            losses["mim"] = weights.mim * mim_loss(logits, code_ids)
            self._record_accuracy("mim_accuracy", logits, code_ids)
        if weights.visual_target_relation:
            truth = visual_target_relation(targets.boxes_cxcywh, features.grid, place=self.settings.patch_place)
            vts = vts_loss(self.heads.visual_target_relation(product), truth, targets.exists)
            losses["visual_target_relation"] = weights.visual_target_relation * vts
        return losses

    def referring_mlm(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Hide words; predict them and the semantic target-relation score (STS)."""
        masked = self._masked_words(batch, step)
        features = self.grounder.tower(batch.images, masked.token_ids, batch.token_is_pad)
        weights, settings = self.settings.loss_weights, self.settings
        losses = self._grounding(features, batch)
        product = self.word_products(features)
        if weights.mlm:
            words = features.text if settings.mlm_input == "text" else F.normalize(product, dim=-1)
            logits = self.heads.mlm(words[masked.is_masked])
            truth = batch.token_ids[masked.is_masked]
            losses["mlm"] = weights.mlm * mlm_loss(
                logits,
                truth,
                label_smoothing=settings.label_smoothing,
                drop_worst_ratio=settings.drop_worst_ratio if step > settings.drop_worst_after else 0.0,
            )
            self._record_accuracy("mlm_accuracy", logits, truth)
        if weights.semantic_target_relation:
            assert self.teacher is not None
            counts = ~batch.token_is_pad & (batch.token_ids != BOS) & (batch.token_ids != EOS)
            scores = score_words(self.teacher, batch, counts, settings.semantic_targets)
            logits = self.heads.semantic_target_relation(product).squeeze(-1)
            sts = sts_loss(logits, scores, counts, batch.targets.exists)
            losses["semantic_target_relation"] = weights.semantic_target_relation * sts
        return losses

    def work(self, batch: Batch) -> Work:
        """Tokens and model FLOPs of one training step on the batch; the heads of MRefM are not counted."""
        passes = 1 if self.settings.alternate else 2
        work = training_work(self.grounder.tower, batch, passes=passes)
        head = self.grounder.head_work(batch).flops if self.settings.loss_weights.grounding else 0.0
        return work + Work(flops=passes * head)

    def num_masked(self, batch: Batch, step: int) -> dict[str, int]:
        """The number of masked patches and words of the batch in a step."""
        both = not self.settings.alternate
        numbers: dict[str, int] = {}
        if both or step % 2 == 0:
            numbers["patches"] = int(self._masked_patches(batch, step).sum())
        if both or step % 2 == 1:
            numbers["words"] = int(self._masked_words(batch, step).is_masked.sum())
        return numbers

    def metrics(self) -> dict[str, Tensor]:
        """The share of the last masked patches and words that were predicted correctly."""
        return dict(self._accuracies)

    def param_depth(self, name: str) -> int | None:
        """The depth of a parameter in the tower; None for the heads."""
        return self.grounder.param_depth(name.removeprefix("grounder.")) if name.startswith("grounder.") else None

    def _masked_patches(self, batch: Batch, step: int) -> Bool[Tensor, "batch patches"]:
        patch_size = self.grounder.tower.settings.patch_size
        grid = (batch.images.shape[2] // patch_size, batch.images.shape[3] // patch_size)
        targets, settings = batch.targets, self.settings.image_masking
        return mask_patches(targets.boxes_cxcywh, targets.exists, grid, settings, self._draws(batch, step))

    def _masked_words(self, batch: Batch, step: int) -> MaskedWords:
        return mask_words(
            batch.token_ids,
            batch.token_is_pad,
            batch.word_roles,
            self.settings.text_masking,
            mask_id=self.mask_id,
            vocabulary=(FIRST_WORD_ID, self.mask_id + 1),
            draws=self._draws(batch, step),
        )

    def _draws(self, batch: Batch, step: int) -> SampleDraws:
        return SampleDraws(self.seed, step, sample_keys(batch.ids).to(batch.images.device))

    def _grounding(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        weight = self.settings.loss_weights.grounding
        if not weight:
            return {}
        head = self.grounder.head
        return {name: weight * loss for name, loss in head.losses(head(features), batch.targets).items()}

    def patch_products(self, features: Features) -> Float[Tensor, "batch patches dim"]:
        """x (x) e_SEP: every projected patch times the projected expression, both of length 1."""
        head = self._projections
        patches = F.normalize(head.vision_projection(features.patches), dim=-1)
        return patches * F.normalize(head.language_projection(features.text[:, :1]), dim=-1)

    def word_products(self, features: Features) -> Float[Tensor, "batch words dim"]:
        """w (x) e_CLS: every projected word piece times the projected class token of the image."""
        head = self._projections
        words = F.normalize(head.language_projection(features.text), dim=-1)
        return words * F.normalize(head.vision_projection(features.vision[:, :1]), dim=-1)

    @property
    def _projections(self) -> OneRefHead:
        head = self.grounder.head
        assert isinstance(head, OneRefHead)
        return head

    def _record_accuracy(self, name: str, logits: Float[Tensor, "n classes"], truth: Int[Tensor, " n"]) -> None:
        if not self.training:
            return
        is_right: Bool[Tensor, " n"] = logits.detach().argmax(-1) == truth
        self._accuracies[name] = is_right.float().mean() if len(is_right) else torch.zeros((), device=is_right.device)
