"""Checks the configuration of a linear evaluation and completes it from the checkpoint that is evaluated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Tuple

from omegaconf import DictConfig, OmegaConf

from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import Pretrained, find_checkpoint, load_pretrained
from carp_plugin.host import omegaconf_select, parse_linear_cfg
from carp_plugin.settings.checks import (
    FREE,
    RUN_KEYS,
    check_data,
    check_keys,
    check_required,
    check_settings,
    check_writable,
    dotted,
    drop_null_nodes,
    drop_null_settings,
    one_of,
    prepare_data_folder,
    trainer_keys,
)
from carp_plugin.settings.pretraining import plain
from carp_plugin.settings.values import LINEAR, check_values
from carp_plugin.training.devices import settle_devices
from carp_plugin.training.state import NETWORKS

#: What solo-learn's own script can do beyond a linear layer on a frozen backbone; off is taken, on is refused.
_NOT_LINEAR = ("finetune", "mixup", "cutmix", "label_smoothing", "auto_augment")

_KEYS: Dict[str, Any] = {
    **RUN_KEYS,
    "pretrained_feature_extractor": FREE,
    "pretrain_method": FREE,
    "network": FREE,
    "data": {
        "dataset": FREE,
        "train_path": FREE,
        "val_path": FREE,
        "format": FREE,
        "num_workers": FREE,
        "fraction": FREE,
        "prepare": FREE,
        "max_bad_fraction": FREE,
        "train_transform": {"crop_size": FREE, "scale": FREE},
        "eval_transform": {"resize": FREE, "crop_size": FREE},
    },
    "optimizer": {
        "name": FREE,
        "batch_size": FREE,
        "lr": FREE,
        "weight_decay": FREE,
        "exclude_bias_n_norm_wd": FREE,
        "kwargs": FREE,
    },
    "dali": {"device": FREE},
    **dict.fromkeys(_NOT_LINEAR),
}

_REQUIRED = (
    "name",
    "data.dataset",
    "data.train_path",
    "data.val_path",
    "data.num_workers",
    "optimizer.name",
    "optimizer.batch_size",
    "optimizer.lr",
    "optimizer.weight_decay",
    "scheduler.name",
    "max_epochs",
)


def known_keys() -> List[str]:
    """Every dotted key that the configuration of a linear evaluation may have."""
    return [*dotted(_KEYS), *trainer_keys()]


def checked_linear(cfg: DictConfig) -> Tuple[DictConfig, Pretrained]:
    """Checks the configuration, loads the checkpoint, and parses the configuration with the host.

    Args:
        cfg: as Hydra composed it.

    Returns:
        Tuple[DictConfig, Pretrained]: the same object, with the host's defaults, the scaled learning rate, the
        checkpoint's ``backbone`` and ``pretrain_method``, and ``features``, which says what the layer is trained on
        (a run is resumed only where that is the same); and the pretrained method.

    Raises:
        UserError: the first mistake found.
    """
    OmegaConf.set_struct(cfg, False)
    check_keys(cfg, {**_KEYS, **dict.fromkeys(trainer_keys())})
    drop_null_nodes(cfg, _KEYS)
    drop_null_settings(cfg)
    check_required(cfg, _REQUIRED)
    check_values(cfg, LINEAR)
    check_settings(cfg)
    _check_protocol(cfg)
    _check_transforms(cfg)
    path = _checkpoint(cfg)
    settle_devices(cfg)
    prepare_data_folder(cfg)
    check_data(cfg)
    check_writable(cfg)
    pretrained = load_pretrained(path)
    pretrained.backbone(cfg.network)
    _complete(cfg, pretrained)
    return parse_linear_cfg(cfg), pretrained


def _check_protocol(cfg: DictConfig) -> None:
    cfg.network = omegaconf_select(cfg, "network", "student")
    one_of("network", cfg.network, NETWORKS)
    for key in _NOT_LINEAR:
        if omegaconf_select(cfg, key):
            raise UserError(
                f"{key}={cfg[key]} is no linear evaluation: here a linear layer is trained on a frozen backbone with "
                "cross-entropy and crops; leave it out, or run solo-learn's own script: "
                "`python -m carp_plugin main_linear.py` in a checkout of 1.0.6 or later."
            )


def _check_transforms(cfg: DictConfig) -> None:
    for key in ("train_transform", "eval_transform"):
        node = omegaconf_select(cfg, f"data.{key}")
        if node is None:
            continue
        if node.get("crop_size") is None:
            raise UserError(f"data.{key}.crop_size is missing; give the crop's pixels.")
        if node.get("resize") is not None and node.resize < node.crop_size:
            raise UserError(
                f"data.{key}.resize={node.resize} is smaller than data.{key}.crop_size={node.crop_size}, which would "
                "pad images with black; give at least as many pixels, or null to leave images at their size."
            )
    scale = omegaconf_select(cfg, "data.train_transform.scale")
    if scale is not None and scale[0] > scale[1]:
        raise UserError(f"data.train_transform.scale must rise, as in [0.08,1], got {list(scale)}.")
    if omegaconf_select(cfg, "data.format") == "dali":
        if omegaconf_select(cfg, "data.train_transform") is not None:
            raise UserError(
                "data.train_transform has no effect with data.format=dali, whose pipeline crops to 224 pixels; "
                "leave it out, or set data.format=image_folder."
            )
        if cfg.data.dataset in ("cifar10", "cifar100", "stl10"):
            raise UserError(
                f"data.format=dali reads folders of images, not {cfg.data.dataset}; set data.format=image_folder."
            )


def _checkpoint(cfg: DictConfig) -> Path:
    """The checkpoint that is evaluated."""
    key = "pretrained_feature_extractor"
    if OmegaConf.is_missing(cfg, key) or omegaconf_select(cfg, key) is None:
        raise UserError(
            f"{key} is missing: add {key}=PATH, the checkpoint or the folder of a run of main_pretrain.py "
            "(its last line names it, trained_models/METHOD/RUN/….ckpt)."
        )
    return find_checkpoint(str(cfg[key]))


def _complete(cfg: DictConfig, pretrained: Pretrained) -> None:
    """Takes backbone and method over from the checkpoint; what the configuration names must agree."""
    theirs = {
        "pretrain_method": pretrained.method,
        "backbone.name": pretrained.cfg.backbone.name,
        "backbone.kwargs": omegaconf_select(pretrained.cfg, "backbone.kwargs") or {},
    }
    for key, value in theirs.items():
        named = omegaconf_select(cfg, key)
        if named is not None and named != value:
            raise UserError(
                f"{key}={named}, but {pretrained.path} holds {value}; leave {key} out, or give the other checkpoint."
            )
        OmegaConf.update(cfg, key, value, force_add=True)
    cfg.features = {
        "sha256": file_sha256(pretrained.path),
        "network": cfg.network,
        "train_transform": omegaconf_select(cfg, "data.train_transform"),
        "eval_transform": omegaconf_select(cfg, "data.eval_transform"),
    }
    cfg.features = plain(cfg.features)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
