"""The learning-rate schedule: linear warm-up, then a cosine; a stateless function of the step."""

from __future__ import annotations

import math


def lr_factor(step: int, *, total_steps: int, warmup_steps: int, final_ratio: float) -> float:
    """Factor of every group's learning rate for the optimiser step with index `step` (from 0).

    Warm-up reaches 1 at step `warmup_steps - 1`; the cosine (Loshchilov & Hutter 2017, without restarts) then falls
    from 1 to `final_ratio`, the factor of a hypothetical step `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
