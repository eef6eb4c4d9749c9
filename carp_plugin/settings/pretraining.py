"""Checks a configuration before anything is built, and settles what the host leaves to luck.

The host reads a cfg trustingly: a misspelt key is ignored, a missing one is an AttributeError, ``devices: auto`` is
a learning rate four times too high. ``checked`` finds such mistakes and says each in one sentence, then hands the
cfg to the host's own parser.
"""

from __future__ import annotations

from typing import Any, Dict, List, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host import BACKBONES, METHODS, method_keys, omegaconf_select, parse_pretrain_cfg
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
from carp_plugin.settings.values import AUGMENTATION, PRETRAIN, check_values
from carp_plugin.training.devices import settle_devices

_AUGMENTATION: Dict[str, Any] = {
    "rrc": {"enabled": FREE, "crop_min_scale": FREE, "crop_max_scale": FREE},
    "color_jitter": {
        "prob": FREE,
        "brightness": FREE,
        "contrast": FREE,
        "saturation": FREE,
        "hue": FREE,
    },
    "grayscale": {"prob": FREE},
    "gaussian_blur": {"prob": FREE},
    "solarization": {"prob": FREE},
    "equalization": {"prob": FREE},
    "horizontal_flip": {"prob": FREE},
    "crop_size": FREE,
    "num_crops": FREE,
    "mean": FREE,
    "std": FREE,
}

_OWN_KEYS: Dict[str, Any] = {
    **RUN_KEYS,
    "method": FREE,
    "method_kwargs": FREE,
    "momentum": {"base_tau": FREE, "final_tau": FREE, "classifier": FREE},
    "data": {
        "dataset": FREE,
        "train_path": FREE,
        "val_path": FREE,
        "format": FREE,
        "num_workers": FREE,
        "no_labels": FREE,
        "fraction": FREE,
        "prepare": FREE,
        "max_bad_fraction": FREE,
        "eval_transform": {"resize": FREE, "crop_size": FREE},
    },
    "augmentations": FREE,
    "optimizer": {
        "name": FREE,
        "batch_size": FREE,
        "lr": FREE,
        "classifier_lr": FREE,
        "weight_decay": FREE,
        "exclude_bias_n_norm_wd": FREE,
        "kwargs": FREE,
    },
    "auto_umap": {"enabled": FREE, "dir": FREE, "frequency": FREE},
    "dali": {"device": FREE, "encode_indexes_into_labels": FREE},
    "knn_eval": {"enabled": FREE, "k": FREE, "distance_func": FREE},
    "evaluation": {"enabled": FREE, "k": FREE, "temperature": FREE, "frequency": FREE},
    "collapse": {"enabled": FREE, "stop": FREE},
    "debug_augmentations": FREE,
}

_REQUIRED = (
    "name",
    "method",
    "backbone.name",
    "data.dataset",
    "data.train_path",
    "data.num_workers",
    "augmentations",
    "optimizer.name",
    "optimizer.batch_size",
    "optimizer.lr",
    "optimizer.classifier_lr",
    "optimizer.weight_decay",
    "scheduler.name",
    "max_epochs",
)


def checked(cfg: DictConfig) -> DictConfig:
    """Checks the configuration, prepares the embedded data if it is asked for, and parses it with the host.

    Args:
        cfg: as Hydra composed it.

    Returns:
        DictConfig: the same object with the host's defaults and scaled learning rates; ``devices`` a list,
        ``accelerator`` "cpu" or an accelerator's name.

    Raises:
        UserError: the first mistake found.
    """
    OmegaConf.set_struct(cfg, False)
    check_keys(cfg, {**_OWN_KEYS, **dict.fromkeys(trainer_keys())})
    drop_null_nodes(cfg, _OWN_KEYS)
    drop_null_settings(cfg)
    check_required(cfg, _REQUIRED)
    check_values(cfg, PRETRAIN)
    _check_method(cfg)
    _check_training(cfg)
    _check_augmentations(cfg)
    settle_devices(cfg)
    prepare_data_folder(cfg)
    check_data(cfg)
    check_writable(cfg)
    return parse_pretrain_cfg(cfg)


def _check_method(cfg: DictConfig) -> None:
    one_of("method", cfg.method, (name for name in METHODS if name not in ("base", "linear")))
    one_of("backbone.name", cfg.backbone.name, BACKBONES)
    given, known = cfg.get("method_kwargs") or {}, method_keys(cfg.method)
    for key in given:
        if known and key not in known:
            raise UserError(
                f"method_kwargs.{key} is not a key of {cfg.method}{did_you_mean(str(key), known)}"
            )
    taus = {key: omegaconf_select(cfg, f"momentum.{key}") for key in ("base_tau", "final_tau")}
    if None not in taus.values() and taus["base_tau"] > taus["final_tau"]:
        raise UserError(
            f"momentum.base_tau={taus['base_tau']} is above momentum.final_tau={taus['final_tau']}: "
            "the teacher's tau grows; for a siamese run set both to 0."
        )


def _check_training(cfg: DictConfig) -> None:
    check_settings(cfg)
    if omegaconf_select(cfg, "collapse.stop", False) and not omegaconf_select(
        cfg, "collapse.enabled", True
    ):
        raise UserError(
            "collapse.stop=True needs the monitor, which collapse.enabled=False switches off; leave out one of them."
        )


def _check_augmentations(cfg: DictConfig) -> None:
    if not isinstance(cfg.augmentations, ListConfig) or not cfg.augmentations:
        raise UserError(
            "augmentations must be a list of pipelines; see scripts/pretrain/augmentations/."
        )
    for i, node in enumerate(cfg.augmentations):
        name = f"augmentations[{i}]"
        if not isinstance(node, DictConfig):
            raise UserError(f"{name} must hold keys ({', '.join(_AUGMENTATION)}), got {node!r}.")
        check_keys(node, _AUGMENTATION, f"{name}.")
        for key in set(_AUGMENTATION) - {"mean", "std"}:
            if omegaconf_select(node, key) is None:
                raise UserError(
                    f"{name}.{key} is missing; see scripts/pretrain/augmentations/ for a whole pipeline."
                )
        check_values(node, AUGMENTATION, f"{name}.")
        if node.rrc.crop_min_scale > node.rrc.crop_max_scale:
            raise UserError(
                f"{name}.rrc: expected crop_min_scale <= crop_max_scale, "
                f"got {node.rrc.crop_min_scale} and {node.rrc.crop_max_scale}."
            )
    size = cfg.augmentations[0].crop_size
    large = sum(node.num_crops for node in cfg.augmentations if node.crop_size == size)
    if large != 2 and cfg.method not in ("wmse", "mae"):
        raise UserError(
            f"{cfg.method} needs 2 large views, but the augmentations make {large} of {size} pixels "
            "(views as large as the first pipeline's are the large ones)."
        )


def plain(cfg: Any) -> Dict[str, Any]:
    """A node of the configuration as plain dicts, lists and values, interpolations resolved."""
    return cast(Dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def known_keys() -> List[str]:
    """Every dotted key that a configuration may have, as far as it is known before a method is chosen."""
    return [*dotted(_OWN_KEYS), *trainer_keys()]
