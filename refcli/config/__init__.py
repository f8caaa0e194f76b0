"""Typed settings: the schema, the presets, and loading both into one checked object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = [
    "AugmentSettings",
    "DataSettings",
    "FinetuneSettings",
    "HeadChoice",
    "MRefMSettings",
    "ModelSettings",
    "OptimSettings",
    "PretrainSettings",
    "Settings",
    "TextSettings",
    "TowerSettings",
    "TrainSettings",
    "VisualTokenizerSettings",
    "list_presets",
    "load_finetune",
    "load_pretrain",
]

if TYPE_CHECKING:
    from refcli.config.load import load_finetune, load_pretrain
    from refcli.config.presets import list_presets
    from refcli.config.pretraining import MRefMSettings, PretrainSettings, VisualTokenizerSettings
    from refcli.config.schema import (
        AugmentSettings,
        DataSettings,
        FinetuneSettings,
        HeadChoice,
        ModelSettings,
        OptimSettings,
        Settings,
        TextSettings,
        TowerSettings,
        TrainSettings,
    )
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.config.load": "load_finetune load_pretrain",
            "refcli.config.presets": "list_presets",
            "refcli.config.pretraining": "MRefMSettings PretrainSettings VisualTokenizerSettings",
            "refcli.config.schema": "AugmentSettings DataSettings FinetuneSettings HeadChoice ModelSettings "
            "OptimSettings Settings TextSettings TowerSettings TrainSettings",
        },
    )
