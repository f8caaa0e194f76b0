"""The typed settings of a model and of a training run; every key of a preset is declared here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

NUM_UNUSED_ROWS = 2
"""torchscale numbers positions from 2: rows 0 and 1 of every table are unused."""

ValidationMetric = Literal["score", "box_iou", "box_accuracy", "mask_iou", "mask_accuracy", "existence_accuracy"]
"""Validation metrics of fine-tuning, all 0..1: `box_accuracy` is Acc@0.5, `mask_iou` the mean over samples, `score` the
mean of box_iou, mask_iou and existence_accuracy, as far as the head and the data have them."""


AttentionImplementation: TypeAlias = Literal["auto", "sdpa", "explicit"]


class Settings(BaseModel):
    """Base of every settings class: frozen, without unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Width = Annotated[int, Field(gt=0, le=1 << 16)]
"""Channels of a layer. Sizes are bounded, since the settings beside weights may come from anywhere."""
InnerWidth = Annotated[int, Field(gt=0, le=1 << 20)]
"""Channels inside a feed-forward block."""
Layers = Annotated[int, Field(gt=0, le=256)]
NumHeads = Annotated[int, Field(gt=0, le=1024)]
Pixels = Annotated[int, Field(gt=0, le=1 << 15)]
"""Side of a model frame or of a patch."""
MAX_PATCHES = 1 << 16


def check_grid(height: int, width: int, patch_size: int) -> None:
    """Check that a model frame is a whole number of patches, and not too many.

    Raises:
        ValueError: it is not.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(f"image_size {(height, width)} is not a multiple of patch_size {patch_size}")
    if (height // patch_size) * (width // patch_size) > MAX_PATCHES:
        raise ValueError(f"image_size {(height, width)} is more than {MAX_PATCHES:,} patches of {patch_size} pixels")


class TowerSettings(Settings):
    """The one tower: a BEiT-3 multiway transformer. Defaults are BEiT-3 base at 384."""

    image_size: tuple[Pixels, Pixels] = (384, 384)
    """(height, width) of the model frame in pixels; one number stands for a square."""
    patch_size: Pixels = 16
    dim: Width = 768
    layers: Layers = 12
    heads: NumHeads = 12
    ffn_dim: InnerWidth = 3072
    vocabulary_size: int = Field(64010, gt=0, le=1 << 24)
    max_text_positions: int = Field(1024, gt=0, le=1 << 16)
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Rate of stochastic depth in the last layer; it grows linearly from 0 in the first."""
    layer_norm_eps: PositiveFloat = 1e-5
    init: Literal["beit3", "scaled"] = "beit3"
    """`beit3`: the published initialisation. `scaled`: 1/sqrt(fan-in) weights and 2-D sine positions, for small towers
    trained from scratch."""
    attention: AttentionImplementation = "auto"
    """`auto`: explicit matmuls to train short sequences on a CPU, where the fused backward pass is slow, else torch's
    scaled_dot_product_attention."""
    checkpoint_activations: bool = False

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fits(self) -> TowerSettings:
        check_grid(*self.image_size, self.patch_size)
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.init == "scaled" and self.dim % 4:
            raise ValueError(f"the sine positions of init=scaled need a dim that is a multiple of 4, not {self.dim}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class TextSettings(Settings):
    """The tokenizer of expressions."""

    tokenizer: str = "builtin"
    """`builtin` (the small packaged SentencePiece model) or the path of a SentencePiece file. `beit3.spm`, unless such
    a file exists, is the one that `refcli weights pull beit3-tokenizer` downloaded."""
    max_tokens: int = Field(64, ge=3)
    """Maximum sequence length including <s> and </s>; longer expressions are truncated."""


class HeadChoice(Settings):
    """The head on the tower, and its settings, which the head's `Config` declares."""

    name: str = "oneref"
    """A name of `refcli.heads.table`, or "package.module:ClassName" for a head of another package."""
    settings: dict[str, Any] = Field(default_factory=dict)


class ModelSettings(Settings):
    """One grounder: tower + head + text; stored beside its weights as config.yaml."""

    tower: TowerSettings = TowerSettings()
    text: TextSettings = TextSettings()
    head: HeadChoice = HeadChoice()

    @model_validator(mode="after")
    def _words_have_positions(self) -> ModelSettings:
        most = self.tower.max_text_positions - NUM_UNUSED_ROWS
        if self.text.max_tokens > most:
            raise ValueError(
                f"text.max_tokens is {self.text.max_tokens}, but {self.tower.max_text_positions} "
                f"tower.max_text_positions are enough for {most} tokens"
            )
        return self


class AugmentSettings(Settings):
    """Augmentation of training samples; the referent always stays complete."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a horizontal flip (left/right words of the expression are swapped)."""
    min_scale: float = Field(1.0, gt=0, le=1)
    """The long side of the letterboxed image is a random factor between this and 1 of the model frame."""
    translate: bool = False
    """Place the image at random in the model frame instead of in its centre."""
    crop: float = Field(0.0, ge=0, le=1)
    """Probability of a random crop around all referred regions; never for expressions of position."""
    colour_jitter: float = Field(0.0, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter: factors are drawn from 1 ± this value."""
    colour_jitter_probability: float = Field(0.8, ge=0, le=1)
    no_target: float = Field(0.0, ge=0, le=1)
    """Probability that a sample with a referent gets the expression of another image and therefore has no target."""


class DataSettings(Settings):
    """Splits of a store for training and validation."""

    train: tuple[str, ...] = ("synthetic:train",)
    """`dataset:split` names in the store; a single one may be written without a list."""
    weights: dict[str, PositiveFloat] | None = None
    """Relative frequency of each split of `train`; None draws every sample equally often."""
    validation: tuple[str, ...] = ()
    validation_samples: PositiveInt | None = None
    """Number of samples to use, the first ones of the validation splits; None: all."""
    kinds: tuple[str, ...] | None = None
    """Train only on these kinds of expression (a curriculum); None: all."""
    workers: int = Field(1, ge=0)
    augment: AugmentSettings = AugmentSettings()

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_split(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _weights_fit(self) -> DataSettings:
        if self.weights is not None and set(self.weights) != set(self.train):
            raise ValueError(f"weights are for {sorted(self.weights)}, train has {sorted(self.train)}")
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Settings):
    """Optimiser, schedule and parameter groups."""

    name: str = "adamw"
    """Any optimiser of timm by name."""
    lr: NonNegativeFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-4
    decay_norms_and_biases: bool = False
    """Also decay norms, biases, positions and scalars, as the official recipe does."""
    tower_lr_scale: NonNegativeFloat = 1.0
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning-rate factor per layer below the top of the tower."""
    warmup_steps: NonNegativeInt = 0
    final_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The cosine ends at this fraction of `lr`."""
    clip_grad_norm: PositiveFloat | None = 1.0
    """None: gradients are not clipped."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the timm optimiser."""


class TrainSettings(Settings):
    """Length, precision, validation and checkpoints of one training run."""

    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Samples per forward pass and process."""
    accumulate: int = Field(1, ge=1)
    """Forward passes per optimiser step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast; weights and optimiser state stay fp32. `auto` is resolved when a run starts and recorded in
    run.yaml: bf16 on GPUs with bf16 instructions and on CPUs where matrix products are measured to be faster with it,
    else fp32."""
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes, each has the complete model, or a shard of it (FSDP2, for models that do not fit)."""
    ema_decay: float | None = Field(None, ge=0, lt=1)
    freeze_tower: bool = False
    seed: int = 13
    device: str = "auto"
    log_every: PositiveInt = 20
    save_every: PositiveInt = 500
    validate_every: int | None = Field(None, ge=1)
    """Steps between validations; the run always ends with one."""
    best_by: ValidationMetric = "score"
    """Fine-tuning: the validation metric that selects the best checkpoint. Pre-training always uses its score."""
    keep: Literal["last", "best"] = "last"
    """The checkpoint whose weights are saved at the end."""
    patience: int | None = Field(None, ge=1)
    """End the run early after this many validations without an improvement on the best one."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard (RUN/tensorboard; needs the extra `tensorboard`)."""
    init_weights: str | None = None
    """Initial weights (a directory, a catalogue name or a pulled hf:// address); None: random."""

    @model_validator(mode="after")
    def _patience_is_tried(self) -> TrainSettings:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations: set validate_every")
        return self


class FinetuneTrainSettings(TrainSettings):
    """Settings that only fine-tuning has."""

    init_head: str | None = None
    """Initial weights of the head: a head without a tower, as `refcli weights convert` writes it from official CGFormer
    and ReLA decoders. The tower is that of `init_weights`."""
    existence_min_t_acc: float | None = Field(None, gt=0, lt=1)
    """At the end, calibrate the head's `existence_threshold` on the validation samples and store it in the weights: of
    the thresholds that accept at least this share of the samples with a referent (T-acc), the one with the largest sum
    of T-acc and N-acc. None keeps the threshold of the head's settings."""
    calibrate_scores: bool = True
    """At the end, calibrate the `score_threshold` of a head with several targets (instances) on the validation samples:
    the one with which the most samples have exactly the right boxes."""


class StageHead(Settings):
    """The settings of the head that a stage may change."""

    settings: dict[str, Any] = Field(default_factory=dict)


class StageModel(Settings):
    """The settings of the model that a stage may change: only those of the head, such as its losses."""

    head: StageHead = StageHead()


class StageSettings(Settings):
    """Settings of one stage of a run that differ from those of all its stages; the keys are the same."""

    model: StageModel = StageModel()
    optim: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)

    @field_validator("train")
    @classmethod
    def _names_no_initial_weights(cls, value: dict[str, Any]) -> dict[str, Any]:
        if named := [f"train.{key}" for key in ("init_weights", "init_head") if key in value]:
            raise ValueError(
                f"a stage starts from the weights of the previous one; set {' and '.join(named)} outside the stages, "
                "for the first"
            )
        return value


class FinetuneSettings(Settings):
    """Everything that `refcli finetune` needs besides the store and the output directory."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    train: FinetuneTrainSettings = FinetuneTrainSettings()
    stages: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], StageSettings] = Field(default_factory=dict)
    """Stages by name, in order: each is a separate run that starts from the weights of the previous one. Empty: a
    single run. See `config.load.stages_of`."""

    @model_validator(mode="after")
    def _best_is_known(self) -> FinetuneSettings:
        if not self.data.validation and (self.train.keep == "best" or self.train.patience is not None):
            raise ValueError("train.keep=best and train.patience need validations: name splits in data.validation")
        if not self.data.validation and self.train.existence_min_t_acc is not None:
            raise ValueError("train.existence_min_t_acc needs validation samples: name splits in data.validation")
        return self
