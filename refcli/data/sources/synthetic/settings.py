"""Settings of the synthetic scenes."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from refcli.config.schema import Settings

KINDS = ("attribute", "superlative", "ordinal", "relation", "nested", "exclusion", "plural", "no_target")
"""Every kind of expression, as stored in `Example.kind`."""


class SyntheticSettings(Settings):
    """A distribution of scenes and expressions; the same settings always give the same scene (split, index)."""

    seed: int = Field(0, ge=0)
    objects: tuple[int, int] = (3, 9)
    """Fewest and most objects in a scene, both inclusive."""
    canvas: tuple[int, int] = (160, 240)
    """Shortest and longest side of an image in pixels, both inclusive; aspect ratios are between 3:4 and 4:3."""
    expressions_per_scene: int = Field(6, ge=1)
    """Distinct expressions per scene; a scene that offers fewer gets fewer."""
    kind_weights: dict[str, float] = Field(
        default_factory=lambda: {
            "attribute": 0.22,
            "superlative": 0.14,
            "ordinal": 0.12,
            "relation": 0.16,
            "nested": 0.08,
            "exclusion": 0.08,
            "plural": 0.10,
            "no_target": 0.12,
        }
    )
    """Relative frequency of each kind; a kind that a scene does not offer is replaced by another."""
    min_visible: float = Field(0.65, gt=0, le=1)
    """Least share of an object's silhouette that stays uncovered."""
    overlap: float = Field(0.4, ge=0, le=1)
    """Probability that the objects of a scene may overlap."""
    shadows: float = Field(0.4, ge=0, le=1)
    """Probability that the objects of a scene cast shadows."""
    jpeg_quality: int = Field(92, ge=1, le=100)

    @field_validator("kind_weights")
    @classmethod
    def _known_kinds(cls, weights: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(weights) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown kinds {unknown}; known: {', '.join(KINDS)}")
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()):
            raise ValueError("kind weights must not be negative, and one must be positive")
        return weights

    @model_validator(mode="after")
    def _ranges(self) -> SyntheticSettings:
        if not 2 <= self.objects[0] <= self.objects[1] <= 12:
            raise ValueError(f"objects {self.objects} is not a range within 2..12")
        if not 96 <= self.canvas[0] <= self.canvas[1]:
            raise ValueError(f"canvas {self.canvas} is not a range of sides of at least 96 pixels")
        return self
