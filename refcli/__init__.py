"""refcli: describe what you mean in an image, get the box and the mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__version__ = "0.1.0"
__all__ = [
    "RLE",
    "Answer",
    "Batch",
    "CGFormerHead",
    "Collate",
    "Evaluation",
    "Example",
    "Features",
    "FinetuneSettings",
    "Grounder",
    "GroundingDataset",
    "Head",
    "InstancesHead",
    "LoadedWeights",
    "ModelSettings",
    "OneRefHead",
    "OneTower",
    "Prediction",
    "Predictor",
    "PretrainSettings",
    "RefcliError",
    "Region",
    "RelaHead",
    "Reporter",
    "Request",
    "SharedRISHead",
    "Store",
    "Target",
    "Tokenizer",
    "TowerSettings",
    "__version__",
    "evaluate_predictions",
    "evaluate_weights",
    "finetune",
    "load_finetune",
    "load_pretrain",
    "load_weights",
    "prepare",
    "pretrain",
    "save_weights",
    "score_predictions",
]

if TYPE_CHECKING:
    from refcli.config.load import load_finetune, load_pretrain
    from refcli.config.pretraining import PretrainSettings
    from refcli.config.schema import FinetuneSettings, ModelSettings, TowerSettings
    from refcli.contracts.batch import Batch
    from refcli.contracts.example import RLE, Example, Region
    from refcli.contracts.prediction import Answer, Prediction, Target
    from refcli.data.store.read import Store
    from refcli.data.training.collate import Collate
    from refcli.data.training.dataset import GroundingDataset
    from refcli.engine.reporting.reporters import Reporter
    from refcli.errors import RefcliError
    from refcli.evaluation.results import Evaluation
    from refcli.grounder import Grounder
    from refcli.heads.base import Head
    from refcli.heads.cgformer.head import CGFormerHead
    from refcli.heads.instances.head import InstancesHead
    from refcli.heads.oneref.head import OneRefHead
    from refcli.heads.rela.head import RelaHead
    from refcli.heads.shared_ris.head import SharedRISHead
    from refcli.inference.predictor import Predictor
    from refcli.inference.requests import Request
    from refcli.model.beit3 import Features, OneTower
    from refcli.recipes.library import (
        evaluate_predictions,
        evaluate_weights,
        finetune,
        prepare,
        pretrain,
        score_predictions,
    )
    from refcli.text.tokenizer import Tokenizer
    from refcli.weights.directory import LoadedWeights, load_weights, save_weights
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.config.load": "load_finetune load_pretrain",
            "refcli.config.pretraining": "PretrainSettings",
            "refcli.config.schema": "FinetuneSettings ModelSettings TowerSettings",
            "refcli.contracts.batch": "Batch",
            "refcli.contracts.example": "RLE Example Region",
            "refcli.contracts.prediction": "Answer Prediction Target",
            "refcli.data.store.read": "Store",
            "refcli.data.training.collate": "Collate",
            "refcli.data.training.dataset": "GroundingDataset",
            "refcli.engine.reporting.reporters": "Reporter",
            "refcli.errors": "RefcliError",
            "refcli.evaluation.results": "Evaluation",
            "refcli.grounder": "Grounder",
            "refcli.heads.base": "Head",
            "refcli.heads.cgformer.head": "CGFormerHead",
            "refcli.heads.instances.head": "InstancesHead",
            "refcli.heads.oneref.head": "OneRefHead",
            "refcli.heads.rela.head": "RelaHead",
            "refcli.heads.shared_ris.head": "SharedRISHead",
            "refcli.inference.predictor": "Predictor",
            "refcli.inference.requests": "Request",
            "refcli.model.beit3": "Features OneTower",
            "refcli.recipes.library": "evaluate_predictions evaluate_weights finetune prepare pretrain "
            "score_predictions",
            "refcli.text.tokenizer": "Tokenizer",
            "refcli.weights.directory": "LoadedWeights load_weights save_weights",
        },
    )
