"""Checks of a configuration that pretraining and linear evaluation share; each mistake is one sentence."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Set

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torchvision.datasets.folder import IMG_EXTENSIONS

from carp_plugin.data.images import MAX_BAD_FRACTION, is_class_image_name, is_image_name
from carp_plugin.data.photos import DEFAULT_ROOT, MANIFEST, prepare_photos
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host import LARS, omegaconf_select

DATASETS = ("cifar10", "cifar100", "stl10", "imagenet", "imagenet100", "custom")
OPTIMIZERS = ("sgd", "lars", "adam", "adamw")
SCHEDULERS = ("warmup_cosine", "step", "none")
FORMATS = ("image_folder", "dali", "h5")

#: Arguments of Lightning's trainer that are objects of ours.
_NOT_FROM_A_FILE = ("logger", "callbacks", "plugins", "enable_checkpointing", "model_registry")

#: Folders that archivers and synchronisers leave beside the user's own; all others of their kind are hidden.
_NO_CLASSES = ("__MACOSX", "@eaDir")

FREE = None  # a leaf, or a node whose keys somebody else knows

#: Keys that every run has, pretraining or linear evaluation.
RUN_KEYS: Dict[str, Any] = {
    "name": FREE,
    "backbone": {"name": FREE, "kwargs": FREE},
    "scheduler": {
        "name": FREE,
        "min_lr": FREE,
        "warmup_start_lr": FREE,
        "warmup_epochs": FREE,
        "lr_decay_steps": FREE,
        "interval": FREE,
    },
    "checkpoint": {"enabled": FREE, "dir": FREE, "frequency": FREE, "keep_prev": FREE},
    "auto_resume": {"enabled": FREE, "max_hours": FREE},
    "wandb": {"enabled": FREE, "entity": FREE, "project": FREE, "offline": FREE},
    "performance": {"disable_channel_last": FREE},
    "seed": FREE,
    "resume_from_checkpoint": FREE,
    "num_nodes": FREE,
}


def trainer_keys() -> List[str]:
    """The arguments of Lightning's trainer, each of which a configuration may hold."""
    return [key for key in inspect.signature(Trainer).parameters if key not in _NOT_FROM_A_FILE]


def dotted(known: Dict[str, Any], path: str = "") -> Iterator[str]:
    """Every dotted key of a tree of keys, nodes and leaves."""
    for key, below in known.items():
        yield f"{path}{key}"
        if below is not FREE:
            yield from dotted(below, f"{path}{key}.")


def check_keys(node: DictConfig, known: Dict[str, Any], path: str = "") -> None:
    """Every key of the node is known, down to where ``known`` ends.

    Args:
        node: of the configuration.
        known: its keys, each with a tree like this one, or ``FREE``.
        path: of the node, with a dot at its end.

    Raises:
        UserError: the first key that is not known, with near misses.
    """
    for key in map(str, node):
        name = f"{path}{key}"
        if key not in known:
            raise UserError(
                f"{name} is not a key of the configuration{did_you_mean(str(key), known)}"
            )
        below = known[key]
        value = node._get_node(key)
        if below is FREE or value is None or value._is_none():
            continue
        if not isinstance(value, DictConfig):
            raise UserError(f"{name} must hold keys ({', '.join(below)}), got {node[key]!r}.")
        check_keys(value, below, f"{name}.")


def check_required(cfg: DictConfig, required: Iterable[str]) -> None:
    """Every one of the dotted keys has a value.

    Raises:
        UserError: the first that has none.
    """
    for key in required:
        if OmegaConf.is_missing(cfg, key) or omegaconf_select(cfg, key) is None:
            raise UserError(
                f"{key} is missing from the configuration; add it to the yaml file or as {key}=VALUE."
            )


def check_settings(cfg: DictConfig) -> None:
    """Optimizer and schedule are known, and have the settings that they need.

    Raises:
        UserError: the first that is not.
    """
    one_of("optimizer.name", cfg.optimizer.name, OPTIMIZERS)
    one_of("scheduler.name", cfg.scheduler.name, SCHEDULERS)
    if cfg.scheduler.name == "step" and not omegaconf_select(cfg, "scheduler.lr_decay_steps"):
        raise UserError("scheduler.name=step needs scheduler.lr_decay_steps, a list of epochs.")
    known = optimizer_kwargs(cfg.optimizer.name)
    for key in omegaconf_select(cfg, "optimizer.kwargs") or {}:
        if key not in known:
            raise UserError(
                f"optimizer.kwargs.{key} is not a key of {cfg.optimizer.name}{did_you_mean(str(key), known)}"
            )


def optimizer_kwargs(name: str) -> Set[str]:
    """The settings of an optimizer that have no key of their own."""
    optimizers = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "lars": LARS,
    }
    own = {"self", "params", "lr", "weight_decay"}
    return set(inspect.signature(optimizers[name]).parameters) - own


def drop_null_nodes(cfg: DictConfig, known: Dict[str, Any]) -> None:
    """Takes out nodes that are null: in both hosts only a node that is absent has its defaults.

    Args:
        cfg: changed in place.
        known: its keys, as for :func:`check_keys`.
    """
    for key, below in known.items():
        if below is FREE or key not in cfg or OmegaConf.is_missing(cfg, key):
            continue
        if cfg[key] is None:
            del cfg[key]
        else:
            drop_null_nodes(cfg[key], below)


def drop_null_settings(cfg: DictConfig) -> None:
    """Takes out settings whose null means their default, which the hosts and Lightning look for where a key is absent.

    Args:
        cfg: changed in place.
    """
    for key in ("seed", "accumulate_grad_batches"):
        if key in cfg and cfg[key] is None:
            del cfg[key]


def prepare_data_folder(cfg: DictConfig) -> None:
    """Writes the embedded photographs where ``data.prepare: photos`` asks for them.

    Their place is ``datasets/photos``, or wherever they stand already. Any other folder is the user's own: a recipe of
    the photographs serves it with ``data.train_path`` and ``data.val_path``, and a slip in a path is no photographs.

    Raises:
        UserError: an unknown data set, or a folder that cannot be written.
    """
    prepare = omegaconf_select(cfg, "data.prepare")
    if prepare is None:
        return
    one_of("data.prepare", prepare, ("photos",))
    root = Path(cfg.data.train_path).parent
    if root.resolve() == Path(DEFAULT_ROOT).resolve() or (root / MANIFEST).is_file():
        prepare_photos(root)  # several processes may do so at once


def check_data(cfg: DictConfig) -> None:
    """The data set is known, and its folders are there in the layout that it needs; fills in ``max_bad_fraction``.

    Raises:
        UserError: the first thing that is missing.
    """
    one_of("data.dataset", cfg.data.dataset, DATASETS)
    one_of("data.format", omegaconf_select(cfg, "data.format", "image_folder"), FORMATS)
    if omegaconf_select(cfg, "data.max_bad_fraction") is None:
        cfg.data.max_bad_fraction = MAX_BAD_FRACTION
    if cfg.data.dataset in ("cifar10", "cifar100", "stl10"):
        return
    if omegaconf_select(cfg, "data.format") == "h5":
        exists("data.train_path", cfg.data.train_path, Path.is_file, "an HDF5 file")
        return
    train = exists("data.train_path", cfg.data.train_path, Path.is_dir, "a folder")
    flat = bool(omegaconf_select(cfg, "data.no_labels", False))
    _check_image_folder("data.train_path", train, flat)
    val_path = omegaconf_select(cfg, "data.val_path")
    if val_path is not None and not flat:
        val = exists("data.val_path", val_path, Path.is_dir, "a folder")
        _check_image_folder("data.val_path", val, flat=False)
        missing = set(_folders(val)) ^ set(_folders(train))
        if missing:
            raise UserError(
                f"the class folders of data.train_path={train} and data.val_path={val} differ "
                f"({', '.join(sorted(missing)[:5])}{', …' if len(missing) > 5 else ''}); "
                "both must hold one folder a class, of the same names."
            )


def _folders(root: Path) -> List[str]:
    try:
        return sorted(path.name for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(
            f"the folder {root} cannot be listed ({error.strerror}); check its permissions."
        ) from None


def _check_image_folder(key: str, root: Path, flat: bool) -> None:
    """A labelled folder holds folders of images, one a class; a flat one images.

    Both hosts and torchvision take every folder for a class, and the number of classes from their number.
    """
    classes = _folders(root)
    hidden = [name for name in classes if name.startswith(".") or name in _NO_CLASSES]
    if hidden:
        raise UserError(
            f"{key}={root} holds the folder {hidden[0]}, which other programs write and which would count as a class; "
            "delete it, or move it elsewhere."
        )
    if flat and classes:
        raise UserError(
            f"{key}={root} holds folders ({classes[0]}, …), but data.no_labels=True expects images directly in it; "
            "set data.no_labels=False for one folder a class."
        )
    if flat and not any(is_image_name(path.name) for path in root.iterdir()):
        raise UserError(f"{key}={root} holds no image{_instead(root)}.")
    if not flat and not classes:
        raise UserError(
            f"{key}={root} holds no class folder; expected one folder a class with images in it, "
            "or set data.no_labels=True for a flat folder of unlabelled images."
        )
    for name in [] if flat else classes:
        _folders(root / name)  # os.walk passes over in silence what may not be listed
        files = (file for _, _, files in os.walk(root / name, followlinks=True) for file in files)
        if not any(map(is_class_image_name, files)):
            raise UserError(
                f"{key}={root} holds no image of the class {name}{_instead(root / name)}; put images into its folder "
                f"({', '.join(IMG_EXTENSIONS)}), or delete it."
            )


def _instead(folder: Path) -> str:
    """A file that is there in place of images, for the middle of a sentence."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f" but {names[0]}" if names else ""


def exists(key: str, value: Any, test: Any, what: str) -> Path:
    """A path that passes a test.

    Args:
        key: of the configuration.
        value: of the key.
        test: ``Path.is_dir`` or ``Path.is_file``.
        what: the test in words.

    Raises:
        UserError: it does not.
    """
    path = Path(str(value))
    try:
        found = test(path)
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise UserError(
            f"{key}={str(value)[:80]} cannot be looked at ({error.strerror}); give {what} that exists."
        ) from None
    if not found:
        here = "" if path.is_absolute() else f" (from {Path.cwd()})"
        state = "is not " + what if path.exists() else "does not exist"
        raise UserError(f"{key}={value} {state}{here}; give {what} that exists as {key}=PATH.")
    return path


def check_writable(cfg: DictConfig) -> None:
    """Checkpoints can be written to ``checkpoint.dir``, if they are wanted.

    Raises:
        UserError: the folder cannot be made or written to.
    """
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


def one_of(key: str, value: Any, known: Iterable[str]) -> None:
    """A value that is among the known ones.

    Raises:
        UserError: it is not, with near misses.
    """
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown{did_you_mean(str(value), names)}")
