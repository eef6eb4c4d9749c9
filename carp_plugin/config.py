"""Checks a configuration before anything is built, and settles what the host leaves to luck.

The host reads a cfg trustingly: a misspelt key is ignored, a missing one is an AttributeError, ``devices: auto`` is
a learning rate four times too high. ``checked`` finds such mistakes and says each in one sentence, then hands the
cfg to the host's own parser.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Union, cast

from lightning.pytorch import Trainer
from omegaconf import DictConfig, ListConfig, OmegaConf

from carp_plugin.data.photos import prepare_photos
from carp_plugin.devices import settle_devices
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host import BACKBONES, METHODS, method_keys, omegaconf_select, parse_pretrain_cfg

DATASETS = ("cifar10", "cifar100", "stl10", "imagenet", "imagenet100", "custom")
OPTIMIZERS = ("sgd", "lars", "adam", "adamw")
SCHEDULERS = ("warmup_cosine", "step", "none")
FORMATS = ("image_folder", "dali", "h5")

_FREE = None  # a leaf, or a node whose keys somebody else knows

_AUGMENTATION: Dict[str, Any] = {
    "rrc": {"enabled": _FREE, "crop_min_scale": _FREE, "crop_max_scale": _FREE},
    "color_jitter": {
        "prob": _FREE,
        "brightness": _FREE,
        "contrast": _FREE,
        "saturation": _FREE,
        "hue": _FREE,
    },
    "grayscale": {"prob": _FREE},
    "gaussian_blur": {"prob": _FREE},
    "solarization": {"prob": _FREE},
    "equalization": {"prob": _FREE},
    "horizontal_flip": {"prob": _FREE},
    "crop_size": _FREE,
    "num_crops": _FREE,
    "mean": _FREE,
    "std": _FREE,
}

_OWN_KEYS: Dict[str, Any] = {
    "name": _FREE,
    "method": _FREE,
    "backbone": {"name": _FREE, "kwargs": _FREE},
    "method_kwargs": _FREE,
    "momentum": {"base_tau": _FREE, "final_tau": _FREE, "classifier": _FREE},
    "data": {
        "dataset": _FREE,
        "train_path": _FREE,
        "val_path": _FREE,
        "format": _FREE,
        "num_workers": _FREE,
        "no_labels": _FREE,
        "fraction": _FREE,
        "prepare": _FREE,
        "eval_transform": {"resize": _FREE, "crop_size": _FREE},
    },
    "augmentations": _FREE,
    "optimizer": {
        "name": _FREE,
        "batch_size": _FREE,
        "lr": _FREE,
        "classifier_lr": _FREE,
        "weight_decay": _FREE,
        "exclude_bias_n_norm_wd": _FREE,
        "kwargs": _FREE,
    },
    "scheduler": {
        "name": _FREE,
        "min_lr": _FREE,
        "warmup_start_lr": _FREE,
        "warmup_epochs": _FREE,
        "lr_decay_steps": _FREE,
        "interval": _FREE,
    },
    "checkpoint": {"enabled": _FREE, "dir": _FREE, "frequency": _FREE, "keep_prev": _FREE},
    "auto_resume": {"enabled": _FREE, "max_hours": _FREE},
    "auto_umap": {"enabled": _FREE, "dir": _FREE, "frequency": _FREE},
    "wandb": {"enabled": _FREE, "entity": _FREE, "project": _FREE, "offline": _FREE},
    "dali": {"device": _FREE, "encode_indexes_into_labels": _FREE},
    "knn_eval": {"enabled": _FREE, "k": _FREE, "distance_func": _FREE},
    "evaluation": {"enabled": _FREE, "k": _FREE, "temperature": _FREE},
    "performance": {"disable_channel_last": _FREE},
    "seed": _FREE,
    "resume_from_checkpoint": _FREE,
    "debug_augmentations": _FREE,
    "num_nodes": _FREE,
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
    _check_keys(cfg, {**_OWN_KEYS, **dict.fromkeys(inspect.signature(Trainer.__init__).parameters)})
    for key in _REQUIRED:
        if OmegaConf.is_missing(cfg, key) or omegaconf_select(cfg, key) is None:
            raise UserError(
                f"{key} is missing from the configuration; add it to the yaml file or as {key}=VALUE."
            )
    _check_method(cfg)
    _check_training(cfg)
    _check_augmentations(cfg)
    settle_devices(cfg)
    prepare_data_folder(cfg)
    _check_data(cfg)
    _check_writable(cfg)
    return parse_pretrain_cfg(cfg)


def _check_keys(node: DictConfig, known: Dict[str, Any], path: str = "") -> None:
    """Every key of the node is known, down to where ``known`` ends."""
    for key in map(str, node):
        name = f"{path}{key}"
        if key not in known:
            raise UserError(
                f"{name} is not a key of the configuration{did_you_mean(str(key), known)}"
            )
        below = known[key]
        value = node._get_node(key)
        if below is _FREE or value is None or value._is_none():
            continue
        if not isinstance(value, DictConfig):
            raise UserError(f"{name} must hold keys ({', '.join(below)}), got {node[key]!r}.")
        _check_keys(value, below, f"{name}.")


def _check_method(cfg: DictConfig) -> None:
    _one_of("method", cfg.method, (name for name in METHODS if name not in ("base", "linear")))
    _one_of("backbone.name", cfg.backbone.name, BACKBONES)
    given, known = cfg.get("method_kwargs") or {}, method_keys(cfg.method)
    for key in given:
        if known and key not in known:
            raise UserError(
                f"method_kwargs.{key} is not a key of {cfg.method}{did_you_mean(str(key), known)}"
            )
    taus = {key: omegaconf_select(cfg, f"momentum.{key}") for key in ("base_tau", "final_tau")}
    for key, tau in taus.items():
        if tau is not None:
            _number(f"momentum.{key}", tau, 0, 1)
    if None not in taus.values() and taus["base_tau"] > taus["final_tau"]:
        raise UserError(
            f"momentum.base_tau={taus['base_tau']} is above momentum.final_tau={taus['final_tau']}: "
            "the teacher's tau grows; for a siamese run set both to 0."
        )


def _check_training(cfg: DictConfig) -> None:
    _whole("max_epochs", cfg.max_epochs, 1)
    _whole("optimizer.batch_size", cfg.optimizer.batch_size, 1)
    _whole("data.num_workers", cfg.data.num_workers, 0)
    for key in ("lr", "classifier_lr", "weight_decay"):
        _number(f"optimizer.{key}", cfg.optimizer[key], 0)
    for key in ("min_lr", "warmup_start_lr", "warmup_epochs"):
        value = omegaconf_select(cfg, f"scheduler.{key}")
        if value is not None:
            _number(f"scheduler.{key}", value, 0)
    _one_of("optimizer.name", cfg.optimizer.name, OPTIMIZERS)
    _one_of("scheduler.name", cfg.scheduler.name, SCHEDULERS)
    seed = omegaconf_select(cfg, "seed")
    if seed is not None:
        _whole("seed", seed, 0)
    if cfg.scheduler.name == "step" and not omegaconf_select(cfg, "scheduler.lr_decay_steps"):
        raise UserError("scheduler.name=step needs scheduler.lr_decay_steps, a list of epochs.")


def _check_augmentations(cfg: DictConfig) -> None:
    if not isinstance(cfg.augmentations, ListConfig) or not cfg.augmentations:
        raise UserError(
            "augmentations must be a list of pipelines; see scripts/pretrain/augmentations/."
        )
    for i, node in enumerate(cfg.augmentations):
        name = f"augmentations[{i}]"
        if not isinstance(node, DictConfig):
            raise UserError(f"{name} must hold keys ({', '.join(_AUGMENTATION)}), got {node!r}.")
        _check_keys(node, _AUGMENTATION, f"{name}.")
        for key in set(_AUGMENTATION) - {"mean", "std"}:
            if omegaconf_select(node, key) is None:
                raise UserError(
                    f"{name}.{key} is missing; see scripts/pretrain/augmentations/ for a whole pipeline."
                )
        _whole(f"{name}.crop_size", node.crop_size, 1)
        _whole(f"{name}.num_crops", node.num_crops, 1)
        if not 0 < node.rrc.crop_min_scale <= node.rrc.crop_max_scale <= 1:
            raise UserError(
                f"{name}.rrc: expected 0 < crop_min_scale <= crop_max_scale <= 1, "
                f"got {node.rrc.crop_min_scale} and {node.rrc.crop_max_scale}."
            )
    size = cfg.augmentations[0].crop_size
    large = sum(node.num_crops for node in cfg.augmentations if node.crop_size == size)
    if large != 2 and cfg.method not in ("wmse", "mae"):
        raise UserError(
            f"{cfg.method} needs 2 large views, but the augmentations make {large} of {size} pixels "
            "(views as large as the first pipeline's are the large ones)."
        )


def prepare_data_folder(cfg: DictConfig) -> None:
    """Writes the embedded photographs where ``data.prepare: photos`` asks for them.

    Raises:
        UserError: an unknown data set, or a folder that cannot be written.
    """
    prepare = omegaconf_select(cfg, "data.prepare")
    if prepare is None:
        return
    _one_of("data.prepare", prepare, ("photos",))
    prepare_photos(Path(cfg.data.train_path).parent)  # several processes may do so at once


def _check_data(cfg: DictConfig) -> None:
    _one_of("data.dataset", cfg.data.dataset, DATASETS)
    _one_of("data.format", omegaconf_select(cfg, "data.format", "image_folder"), FORMATS)
    if cfg.data.dataset in ("cifar10", "cifar100", "stl10"):
        return
    if omegaconf_select(cfg, "data.format") == "h5":
        _exists("data.train_path", cfg.data.train_path, Path.is_file, "an HDF5 file")
        return
    train = _exists("data.train_path", cfg.data.train_path, Path.is_dir, "a folder")
    flat = bool(omegaconf_select(cfg, "data.no_labels", False))
    _check_image_folder("data.train_path", train, flat)
    val_path = omegaconf_select(cfg, "data.val_path")
    if val_path is not None and not flat:
        val = _exists("data.val_path", val_path, Path.is_dir, "a folder")
        _check_image_folder("data.val_path", val, flat=False)
        missing = set(_folders(val)) ^ set(_folders(train))
        if missing:
            raise UserError(
                f"the class folders of data.train_path={train} and data.val_path={val} differ "
                f"({', '.join(sorted(missing)[:5])}{', …' if len(missing) > 5 else ''}); "
                "both must hold one folder a class, of the same names."
            )


def _folders(root: Path) -> List[str]:
    return [path.name for path in root.iterdir() if path.is_dir()]


def _check_image_folder(key: str, root: Path, flat: bool) -> None:
    """A labelled folder holds one folder a class, a flat one nothing but images."""
    classes = _folders(root)
    if flat and classes:
        raise UserError(
            f"{key}={root} holds folders ({classes[0]}, …), but data.no_labels=True expects images directly in it; "
            "set data.no_labels=False for one folder a class."
        )
    if flat and not any(path.is_file() for path in root.iterdir()):
        raise UserError(f"{key}={root} holds no image.")
    if not flat and not classes:
        raise UserError(
            f"{key}={root} holds no class folder; expected one folder a class with images in it, "
            "or set data.no_labels=True for a flat folder of unlabelled images."
        )


def _exists(key: str, value: Any, test: Any, what: str) -> Path:
    path = Path(str(value))
    if not test(path):
        here = "" if path.is_absolute() else f" (from {Path.cwd()})"
        state = "is not " + what if path.exists() else "does not exist"
        raise UserError(f"{key}={value} {state}{here}; give {what} that exists as {key}=PATH.")
    return path


def _check_writable(cfg: DictConfig) -> None:
    if omegaconf_select(cfg, "checkpoint.enabled", False):
        folder = Path(omegaconf_select(cfg, "checkpoint.dir", "trained_models"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"checkpoint.dir={folder} cannot be made ({error.strerror}); give another folder."
            ) from None
        if not os.access(folder, os.W_OK):
            raise UserError(f"checkpoint.dir={folder} cannot be written to; give another folder.")


def _one_of(key: str, value: Any, known: Iterable[str]) -> None:
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown{did_you_mean(str(value), names)}")


def _number(key: str, value: Any, low: float, high: Optional[float] = None) -> None:
    """A finite number within [low, high]."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not numeric
        or not low <= value <= (float("inf") if high is None else high)
        or value == float("inf")
    ):
        within = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{key} must be a number {within}, got {value!r}{_yaml_hint(value)}.")


def _whole(key: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{key} must be a whole number of at least {low}, got {value!r}.")


def _yaml_hint(value: Union[str, Any]) -> str:
    """YAML 1.1 reads 1e-6 as a word where a dot is missing; Hydra does not, other tools do."""
    return " (a word, not a number)" if isinstance(value, str) else ""


def plain(cfg: Any) -> Dict[str, Any]:
    """A node of the configuration as plain dicts, lists and values, interpolations resolved."""
    return cast(Dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def known_keys() -> List[str]:
    """Every dotted key that a configuration may have, as far as it is known before a method is chosen."""

    def walk(tree: Dict[str, Any], path: str) -> Iterable[str]:
        for key, below in tree.items():
            yield f"{path}{key}"
            if below is not _FREE:
                yield from walk(below, f"{path}{key}.")

    return [*walk(_OWN_KEYS, ""), *inspect.signature(Trainer.__init__).parameters]
