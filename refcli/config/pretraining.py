"""The typed settings of a pre-training run: Mask Referring Modelling, and the visual tokenizer that it predicts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from refcli.config.schema import (
    DataSettings,
    InnerWidth,
    Layers,
    ModelSettings,
    NumHeads,
    OptimSettings,
    Pixels,
    Settings,
    TrainSettings,
    Width,
    check_grid,
)


class VisualTokenizerSettings(Settings):
    """Sizes of a VQ-KD encoder and its codebook. Defaults are the published ViT-B/16 with 8192 codes (BEiT v2)."""

    image_size: Pixels = 224
    """Side in pixels of the square image of the position table, which is resampled for other sizes."""
    patch_size: Pixels = 16
    dim: Width = 768
    layers: Layers = 12
    heads: NumHeads = 12
    ffn_dim: InnerWidth = 3072
    layer_norm_eps: PositiveFloat = 1e-6
    num_codes: int = Field(8192, gt=0, le=1 << 20)
    code_dim: Width = 32

    @model_validator(mode="after")
    def _fits(self) -> VisualTokenizerSettings:
        check_grid(self.image_size, self.image_size, self.patch_size)
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of the position table."""
        side = self.image_size // self.patch_size
        return side, side


class ImageMaskingSettings(Settings):
    """Which patches are hidden from the tower (OneRef section 3.2, "dynamic masking")."""

    method: Literal["block", "uniform", "vanilla"] = "uniform"
    """`block`: blocks inside the referred rectangle (the paper's Algorithm 1). `uniform`: single patches inside it (the
    official code). `vanilla`: `context_ratio` of all patches, independent of the referent (plain masked modelling)."""
    region_ratio: float = Field(0.75, ge=0, le=1)
    """gamma: fraction of the referred rectangle's patches that is masked."""
    context_ratio: float = Field(0.35, ge=0, le=1)
    """beta: fraction of all patches that is masked before the mask inside the rectangle is drawn again."""
    margin: int = Field(1, ge=0)
    """Patches that the rectangle is widened by on every side (1 in the official code)."""
    min_aspect: float = Field(0.3, gt=0, le=1)
    """a: blocks have an aspect ratio between a and 1/a (0.3 in BEiT; the paper states no value)."""


class TextMaskingSettings(Settings):
    """Which words are hidden from the tower."""

    ratio: float = Field(0.4, ge=0, le=1)
    """Fraction of the word pieces (</s> counted, <s> not) that is masked; at least one piece."""
    prefer: Literal["referents", "none"] = "referents"
    """`referents`: the subject's and the object's words are masked first, the rest at random."""
    parser: Literal["rules", "spacy"] = "rules"
    """Finds subject and object: our own rules, or spaCy's dependency parser (extra `spacy`)."""
    mask_share: float = Field(0.8, ge=0, le=1)
    """Fraction of the masked pieces that becomes <mask>."""
    random_share: float = Field(0.1, ge=0, le=1)
    """Fraction that becomes a random other piece; the rest stays unchanged."""

    @model_validator(mode="after")
    def _shares_fit(self) -> TextMaskingSettings:
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share and random_share are together more than 1")
        return self


class VisualCodeSettings(Settings):
    """Targets of referring MIM at masked patches."""

    source: Literal["tokenizer", "pixel_clusters"] = "tokenizer"
    """`tokenizer`: the code ids of a VQ-KD visual tokenizer. `pixel_clusters`: the nearest of the patch means that
    k-means finds in the training images, which needs no trained weights."""
    weights: str | None = None
    """The visual tokenizer: a directory that `refcli weights convert` or the preset visual_tokenizer_small wrote, or a
    catalogue name."""
    num_codes: PositiveInt = 256
    """Clusters, for `pixel_clusters`; a tokenizer has its own number."""


class SemanticTargetSettings(Settings):
    """Targets of the semantic target-relation score (STS)."""

    weights: str | None = None
    """The frozen model that scores words; None: a copy of the model at the start of pre-training."""
    refresh_every: int | None = Field(None, ge=1)
    """Steps after which the model is copied again, for runs that start from scratch (not in the paper)."""
    region_weight: NonNegativeFloat = 0.5
    image_weight: NonNegativeFloat = 0.5
    """lambda_reg and lambda_img: weights of the referred region's crop and of the whole image (the paper states no
    values)."""
    scale: PositiveFloat = 10.0
    """Factor on the cosines before their softmax over the words."""

    @model_validator(mode="after")
    def _has_a_weight(self) -> SemanticTargetSettings:
        if not self.region_weight + self.image_weight:
            raise ValueError("region_weight and image_weight are both 0")
        if self.weights is not None and self.refresh_every is not None:
            raise ValueError("weights names a fixed model and refresh_every replaces it: set refresh_every=null")
        return self


class MRefMLossWeights(Settings):
    """Weight of each term; 0 switches it off. The losses of the head (similarity, box, mask) have their own weights in
    model.head.settings.loss_weights."""

    mim: NonNegativeFloat = 1.0
    visual_target_relation: NonNegativeFloat = 1.0
    mlm: NonNegativeFloat = 1.0
    semantic_target_relation: NonNegativeFloat = 1.0
    grounding: NonNegativeFloat = 1.0
    """Factor on all losses of the head; they are counted in every forward pass, twice in a step without alternation."""


class MRefMSettings(Settings):
    """Mask Referring Modelling (OneRef section 3.2)."""

    alternate: bool = True
    """Mask the image in even steps and the words in odd ones (the official code), or both kinds in every step, each
    with its own forward pass."""
    image_masking: ImageMaskingSettings = ImageMaskingSettings()
    text_masking: TextMaskingSettings = TextMaskingSettings()
    visual_codes: VisualCodeSettings = VisualCodeSettings()
    semantic_targets: SemanticTargetSettings = SemanticTargetSettings()
    loss_weights: MRefMLossWeights = MRefMLossWeights()
    mim_input: Literal["product", "patch"] = "product"
    """The input of the code prediction: the normalised product of patch and expression (referring MIM), or the patch
    alone (plain MIM)."""
    mlm_input: Literal["text", "product"] = "text"
    """The input of the word prediction: the word's own token (the official code), or its product with the image's class
    vector (the paper)."""
    patch_place: Literal["corner", "centre"] = "corner"
    """The reference point of a patch in the visual target-relation score; the top left corner in the official code."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    drop_worst_ratio: float = Field(0.2, ge=0, lt=1)
    """Fraction of the masked words, those with the largest loss, that is dropped after `drop_worst_after` steps."""
    drop_worst_after: int = Field(12000, ge=0)

    @model_validator(mode="after")
    def _every_step_learns(self) -> MRefMSettings:
        weights = self.loss_weights
        own_terms = {
            "hide patches (mim, visual_target_relation)": weights.mim + weights.visual_target_relation,
            "hide words (mlm, semantic_target_relation)": weights.mlm + weights.semantic_target_relation,
        }
        silent = [kind for kind, weight in own_terms.items() if not weight + weights.grounding]
        if silent and (self.alternate or len(silent) == len(own_terms)):
            raise ValueError(
                f"the steps that {' and '.join(silent)} have no loss: give one a weight"
                + (", or set alternate=false" if len(silent) == 1 else "")
            )
        return self


class VisualTokenizerTrainingSettings(Settings):
    """Training of a small visual tokenizer: encoder, codebook and a decoder that reconstructs the patches."""

    sizes: VisualTokenizerSettings = VisualTokenizerSettings(
        image_size=112, patch_size=14, dim=128, layers=3, heads=4, ffn_dim=512, num_codes=256, code_dim=16
    )
    decoder_layers: Layers = 1
    codebook_decay: float = Field(0.99, ge=0, lt=1)
    """Moving average of the codes (VQ-VAE; BEiT v2)."""
    commitment: PositiveFloat = 0.25
    """Weight of the distance between a patch's vector and its code."""
    revive_below: NonNegativeFloat = 0.1
    """A code that is used less often than this (moving average of patches per step) is moved to a random patch."""


class PretrainSettings(Settings):
    """Everything that `refcli pretrain` needs besides the store and the output directory."""

    objective: Literal["mrefm", "visual_tokenizer"] = "mrefm"
    model: ModelSettings = ModelSettings()
    mrefm: MRefMSettings = MRefMSettings()
    visual_tokenizer: VisualTokenizerTrainingSettings = VisualTokenizerTrainingSettings()
    """Used where `objective` is visual_tokenizer; model.tower then only gives the size of the images."""
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _tokenizers_start_fresh(self) -> PretrainSettings:
        if self.objective != "visual_tokenizer":
            return self
        ignored = [f"train.{name}" for name in ("init_weights", "freeze_tower") if getattr(self.train, name)]
        if ignored:
            raise ValueError(f"a visual tokenizer is trained from scratch: leave out {' and '.join(ignored)}")
        if self.train.ema_decay is not None:
            raise ValueError(
                "the codes of a visual tokenizer are moving averages already, and fit its encoder without averaging: "
                "set train.ema_decay=null"
            )
        return self

    @model_validator(mode="after")
    def _best_is_known(self) -> PretrainSettings:
        if self.train.best_by != "score":
            raise ValueError("train.best_by is for fine-tuning; pre-training has only its score")
        if not self.data.validation and (self.train.keep == "best" or self.train.patience is not None):
            raise ValueError("train.keep=best and train.patience need validations: name splits in data.validation")
        return self
