"""Parses a cfg as the current host does: defaults, number of classes and crops, and the learning-rate rule."""

from __future__ import annotations

import os
from typing import Any, Dict

from omegaconf import DictConfig, OmegaConf

#: Data sets that solo-learn 1.0.2 knows, with their classes; "custom" counts the folders.
CLASSES_PER_DATASET = {
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "imagenet": 1000,
    "imagenet100": 100,
}

_RUN_DEFAULTS: Dict[str, Any] = {
    "checkpoint.enabled": False,
    "checkpoint.dir": "trained_models",
    "checkpoint.frequency": 1,
    "checkpoint.keep_prev": False,
    "auto_resume.enabled": False,
    "auto_resume.max_hours": 36,
    "dali.device": "gpu",
    "data.format": "image_folder",
    "data.fraction": -1,
    "wandb.enabled": False,
    "wandb.entity": None,
    "wandb.project": "solo-learn",
    "wandb.offline": False,
    "seed": 5,
    "resume_from_checkpoint": None,
    "strategy": None,
    "num_nodes": 1,
    "optimizer.kwargs": {},
}

_PRETRAIN_DEFAULTS: Dict[str, Any] = {
    **_RUN_DEFAULTS,
    "auto_umap.enabled": False,
    "auto_umap.dir": "auto_umap",
    "auto_umap.frequency": 1,
    "dali.encode_indexes_into_labels": False,
    "data.val_path": None,
    "data.no_labels": False,
    "debug_augmentations": False,
}

_LINEAR_DEFAULTS: Dict[str, Any] = {
    **_RUN_DEFAULTS,
    "backbone.kwargs": {},
    "pretrain_method": None,
    "auto_augment": False,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}

_OPTIMIZER_DEFAULTS: Dict[str, Dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
    "adamw": {"betas": [0.9, 0.999]},
}


def omegaconf_select(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """The value at a dotted key, ``default`` where it is absent, None where it is the word ``None``."""
    value = OmegaConf.select(cfg, key, default=default)
    return None if isinstance(value, str) and value == "None" else value


def with_defaults(cfg: DictConfig, defaults: Dict[str, Any]) -> DictConfig:
    """Fills in what the user left out, in place; a value ``None`` given as a word becomes None.

    Args:
        cfg: the configuration; not in struct mode.
        defaults: dotted keys and their values.

    Returns:
        DictConfig: the same object.
    """
    for key, default in defaults.items():
        OmegaConf.update(cfg, key, omegaconf_select(cfg, key, default), force_add=True)
    return cfg


def count_crops(cfg: DictConfig) -> None:
    """Sets the numbers of large crops (as large as the first) and of small ones."""
    size = cfg.augmentations[0].crop_size
    large = sum(aug.num_crops for aug in cfg.augmentations if aug.crop_size == size)
    cfg.data.num_large_crops = large
    cfg.data.num_small_crops = sum(aug.num_crops for aug in cfg.augmentations) - large


def parse_pretrain_cfg(cfg: DictConfig) -> DictConfig:
    """Adds the defaults of pretraining and scales the learning rates, as the current host's ``parse_cfg`` does.

    lr and classifier_lr are multiplied by batch · devices · nodes / 256; min_lr is not.

    Args:
        cfg: the configuration; ``devices`` is a list.

    Returns:
        DictConfig: the same object, changed in place.
    """
    with_defaults(cfg, _PRETRAIN_DEFAULTS)
    _count_classes(cfg)
    count_crops(cfg)
    scale = _scale_lr(cfg)
    if cfg.data.val_path is not None:
        cfg.optimizer.classifier_lr = cfg.optimizer.classifier_lr * scale
    return _with_optimizer_defaults(cfg)


def parse_linear_cfg(cfg: DictConfig) -> DictConfig:
    """Adds the defaults of a linear evaluation and scales lr by batch · devices · nodes / 256.

    Args:
        cfg: the configuration; ``devices`` is a list.

    Returns:
        DictConfig: the same object, changed in place.
    """
    with_defaults(cfg, _LINEAR_DEFAULTS)
    _count_classes(cfg)
    _scale_lr(cfg)
    return _with_optimizer_defaults(cfg)


def _count_classes(cfg: DictConfig) -> None:
    cfg.data.num_classes = CLASSES_PER_DATASET.get(cfg.data.dataset) or max(
        1, sum(entry.is_dir() for entry in os.scandir(cfg.data.train_path))
    )


def _scale_lr(cfg: DictConfig) -> float:
    """Scales the learning rate by the global batch and returns the factor."""
    scale = cfg.optimizer.batch_size * len(cfg.devices) * cfg.num_nodes / 256
    cfg.optimizer.lr = cfg.optimizer.lr * scale
    return scale


def _with_optimizer_defaults(cfg: DictConfig) -> DictConfig:
    extra = {
        f"optimizer.kwargs.{k}": v
        for k, v in _OPTIMIZER_DEFAULTS.get(cfg.optimizer.name, {}).items()
    }
    return with_defaults(cfg, extra)
