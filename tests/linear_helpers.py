"""Pretrained checkpoints without a pretraining, and configurations that evaluate them in seconds."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from carp_plugin.host.cfg import plain
from carp_plugin.settings import reading
from carp_plugin.settings.linear import Linear, read_linear
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.helpers import small_settings


def write_checkpoint(
    folder: Path, images: Path, method: str = "carp", seed: int = 0, **changes: Any
) -> Path:
    """A checkpoint as a pretraining writes it, with random weights and a teacher unlike the student.

    Args:
        folder: of the run; is made.
        images: what ``image_folder`` made.
        method: a key of ``METHOD_KWARGS``.
        seed: of the weights.
        changes: as for ``small_cfg``.
    """
    settings = small_settings(images, method, **changes)
    torch.manual_seed(seed)
    model = build_model(settings, machine_of(settings))
    state = model.state_dict()
    for name, tensor in state.items():
        if name.startswith("momentum_backbone.") and tensor.ndim > 1:
            tensor += 0.01 * torch.randn_like(tensor)
        if name.endswith("running_mean"):  # statistics that training mode would change
            tensor += 0.1 * torch.randn_like(tensor)
    folder.mkdir(parents=True)
    path = folder / f"{method}-ep=1.ckpt"
    torch.save({"state_dict": state, "epoch": 1, "global_step": 6}, path)
    (folder / "args.json").write_text(json.dumps(plain(model.cfg)))
    return path


def linear_cfg(images: Path, checkpoint: Path, **changes: Any) -> DictConfig:
    """A linear evaluation of two epochs on the images.

    Args:
        images: what ``image_folder`` made.
        checkpoint: of the pretraining.
        changes: dotted keys (a dot written as two underscores) and their values.
    """
    cfg = OmegaConf.create(
        {
            "name": "linear-test",
            "pretrained_feature_extractor": str(checkpoint),
            "network": "student",
            "data": {
                "dataset": "custom",
                "train_path": str(images / "train"),
                "val_path": str(images / "val"),
                "num_workers": 0,
                "train_transform": {"crop_size": 16, "scale": [0.5, 1.0]},
                "eval_transform": {"resize": None, "crop_size": 16},
            },
            "optimizer": {"name": "sgd", "batch_size": 8, "lr": 0.3, "weight_decay": 0},
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0},
            "checkpoint": {"enabled": True, "dir": "trained_models"},
            "auto_resume": {"enabled": False},
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


def linear_settings(images: Path, checkpoint: Path, **changes: Any) -> Linear:
    """The settings that :func:`linear_cfg` means; same arguments."""
    return read_linear(reading.plain(linear_cfg(images, checkpoint, **changes)))
