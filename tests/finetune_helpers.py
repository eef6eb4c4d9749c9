"""Configurations that fine-tune a checkpoint of :mod:`tests.linear_helpers` in seconds."""

from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from carp_plugin.settings import reading
from carp_plugin.settings.finetune import Finetune, read_finetune
from tests.linear_helpers import linear_cfg


def finetune_cfg(images: Path, checkpoint: Optional[Path], **changes: Any) -> DictConfig:
    """A fine-tuning of two epochs on the images; arguments as for ``linear_cfg``; checkpoint None is random weights."""
    cfg = linear_cfg(images, Path(str(checkpoint)))
    cfg.name = "finetune-test"
    cfg.optimizer = {"name": "sgd", "batch_size": 8, "lr": 0.2, "classifier_lr": 4.0}
    cfg.scheduler = {"name": "step", "lr_decay_steps": [12, 16], "gamma": 0.2}
    cfg.labels = {"fraction": 1.0, "seed": 0}
    if checkpoint is None:
        cfg.pretrained_feature_extractor = None
        cfg.weights, cfg.backbone = "random", {"name": "resnet18"}
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def finetune_settings(images: Path, checkpoint: Optional[Path], **changes: Any) -> Finetune:
    """The settings that :func:`finetune_cfg` means; same arguments."""
    return read_finetune(reading.plain(finetune_cfg(images, checkpoint, **changes)))
