"""The heads: one package per paper, and the parts they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = [
    "CGFormerHead",
    "Head",
    "InstancesHead",
    "Learned",
    "OneRefHead",
    "OutputName",
    "RelaHead",
    "SharedRISHead",
    "head_class",
    "head_settings",
]

if TYPE_CHECKING:
    from refcli.heads.base import Head, Learned, OutputName
    from refcli.heads.cgformer.head import CGFormerHead
    from refcli.heads.instances.head import InstancesHead
    from refcli.heads.oneref.head import OneRefHead
    from refcli.heads.rela.head import RelaHead
    from refcli.heads.shared_ris.head import SharedRISHead
    from refcli.heads.table import head_class, head_settings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.heads.base": "Head Learned OutputName",
            "refcli.heads.cgformer.head": "CGFormerHead",
            "refcli.heads.table": "head_class head_settings",
            "refcli.heads.instances.head": "InstancesHead",
            "refcli.heads.oneref.head": "OneRefHead",
            "refcli.heads.rela.head": "RelaHead",
            "refcli.heads.shared_ris.head": "SharedRISHead",
        },
    )
