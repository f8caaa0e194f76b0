"""Instances: a box, a mask and a score for every object that an expression refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["InstancesHead", "InstancesLossWeights", "InstancesOutput", "InstancesSettings"]

if TYPE_CHECKING:
    from refcli.heads.instances.head import InstancesHead, InstancesLossWeights, InstancesOutput, InstancesSettings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.heads.instances.head": "InstancesHead InstancesLossWeights InstancesOutput InstancesSettings",
        },
    )
