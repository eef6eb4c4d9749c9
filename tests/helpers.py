"""Small images in the host's folder layouts, and configurations that train on them in seconds."""

import sys
from pathlib import Path
from typing import Any, Dict

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from carp_plugin.host import METHODS
from carp_plugin.settings.pretraining import Pretraining, read_pretraining
from carp_plugin.settings.reading import plain

CLASSES = 6  # the hosts' momentum classifier wants at least five

#: Small method_kwargs of every method that both hosts have, and of those of the current host.
METHOD_KWARGS: Dict[str, Dict[str, Any]] = {
    "carp": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": 32,
        "partition_size": 8,
    },
    "carl": {"proj_hidden_dim": 32, "proj_output_dim": 16, "num_prototypes": 16},
    "simclrv2": {"proj_hidden_dim": 32, "proj_output_dim": 16, "temperature": 0.2},
    "supervised": {},
    "pirl": {"proj_output_dim": 16, "num_negatives": 16, "jigsaw_size": 15, "patch_size": 4},
    "infomin": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "queue_size": 32,
        "jigsaw_size": 15,
        "patch_size": 4,
    },
    "barlow_twins": {"proj_hidden_dim": 32, "proj_output_dim": 32},
    "byol": {"proj_hidden_dim": 32, "proj_output_dim": 16, "pred_hidden_dim": 32},
    "deepclusterv2": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": [4, 4],
        "temperature": 0.1,
        "kmeans_iters": 2,
    },
    "mocov2plus": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "temperature": 0.2,
        "queue_size": 32,
    },
    "simclr": {"proj_hidden_dim": 32, "proj_output_dim": 16, "temperature": 0.2},
    "simsiam": {"proj_hidden_dim": 32, "proj_output_dim": 16, "pred_hidden_dim": 8},
    "swav": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": 8,
        "temperature": 0.1,
        "queue_size": 16,
        "epoch_queue_starts": 0,
    },
    "pclv2": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "queue_size": 20,
        "num_clusters": [3, 5],
        "num_negatives": 4,
        "epoch_prototypes_start": 0,
        "kmeans_iterations": 3,
        "kmeans_redo": 1,
    },
    "selav2": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": [4, 6],
        "freeze_prototypes_epochs": 0,
    },
    "dino": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "num_prototypes": 32,
        "clip_grad": 0.0,
        "warmup_teacher_temperature_epochs": 1,
    },
    "nnbyol": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "pred_hidden_dim": 32,
        "queue_size": 32,
    },
    "nnclr": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "pred_hidden_dim": 32,
        "temperature": 0.2,
        "queue_size": 32,
    },
    "nnsiam": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "pred_hidden_dim": 8,
        "queue_size": 32,
    },
    "ressl": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "temperature_q": 0.1,
        "temperature_k": 0.04,
        "queue_size": 32,
    },
    "vicreg": {"proj_hidden_dim": 32, "proj_output_dim": 32},
    "wmse": {"proj_hidden_dim": 32, "proj_output_dim": 4, "whitening_size": 8},
    "mocov3": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "pred_hidden_dim": 32,
        "temperature": 0.2,
    },
    "supcon": {"proj_hidden_dim": 32, "proj_output_dim": 16, "temperature": 0.2},
    "vibcreg": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 32,
        "sim_loss_weight": 25.0,
        "var_loss_weight": 25.0,
        "cov_loss_weight": 200.0,
    },
    "all4one": {
        "proj_hidden_dim": 32,
        "proj_output_dim": 16,
        "pred_hidden_dim": 32,
        "temperature": 0.2,
        "queue_size": 32,
    },
}


def write_image(path: Path, seed: int, size: int = 20, mode: str = "RGB") -> None:
    """A random image; a different one for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def image_folder(root: Path, per_class: int = 4, classes: int = CLASSES, size: int = 20) -> Path:
    """An ImageFolder of train and val with a colour cast a class, so that there is something to learn."""
    for split, first in (("train", 0), ("val", 1000)):
        for label in range(classes):
            for i in range(per_class):
                seed = first + label * 100 + i
                write_image(root / split / f"class_{label}" / f"{i}.png", seed, size)
    return root


def augmentation(size: int = 16, crops: int = 2) -> Dict[str, Any]:
    """One pipeline of views."""
    return {
        "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0},
        "color_jitter": {
            "prob": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
        },
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.1},
        "solarization": {"prob": 0.1},
        "equalization": {"prob": 0.0},
        "horizontal_flip": {"prob": 0.5},
        "crop_size": size,
        "num_crops": crops,
    }


#: Methods that take one view.
ONE_VIEW = ("pirl",)


def small_cfg(root: Path, method: str = "carp", **changes: Any) -> DictConfig:
    """A configuration of two epochs on the images under ``root``.

    Args:
        root: what :func:`image_folder` made.
        method: a key of ``METHOD_KWARGS``.
        changes: dotted keys (a dot written as two underscores) and their values.
    """
    cfg = OmegaConf.create(
        {
            "name": f"{method}-test",
            "method": method,
            "backbone": {"name": "resnet18"},
            "method_kwargs": METHOD_KWARGS[method],
            "momentum": {"base_tau": 0.9, "final_tau": 1.0},
            "data": {
                "dataset": "custom",
                "train_path": str(root / "train"),
                "val_path": str(root / "val"),
                "num_workers": 0,
                "eval_transform": {"resize": None, "crop_size": 16},
            },
            "augmentations": [augmentation(crops=1 if method in ONE_VIEW else 2)],
            "optimizer": {
                "name": "sgd",
                "batch_size": 8,
                "lr": 0.3,
                "classifier_lr": 0.3,
                "weight_decay": 1e-5,
            },
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0.5},
            "checkpoint": {"enabled": True, "dir": "trained_models"},
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "seed": 0,
            "enable_progress_bar": False,
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def small_settings(root: Path, method: str = "carp", **changes: Any) -> Pretraining:
    """The settings that :func:`small_cfg` means; same arguments."""
    return read_pretraining(plain(small_cfg(root, method, **changes)))


def of_host(method: str, *names: str) -> Any:
    """What a method of the host uses in its own module: a loss, a helper; the first of the names that is there."""
    for cls in METHODS[method].__mro__:
        module = sys.modules[cls.__module__]
        for name in names:
            if hasattr(module, name):
                return getattr(module, name)
    raise LookupError(f"{method} of the installed host uses none of {names}")
