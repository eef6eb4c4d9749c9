"""A comparison of tiny runs, as a dictionary that a yaml file can hold."""

from pathlib import Path
from typing import Any, Dict, Sequence

from omegaconf import DictConfig, OmegaConf

from carp_plugin.settings.comparison import Asked, read_comparison
from carp_plugin.settings.reading import plain
from tests.helpers import METHOD_KWARGS, small_cfg


def comparison(
    images: Path, methods: Sequence[str] = ("carp", "simsiam"), **changes: Any
) -> DictConfig:
    """One epoch of each method on the images under ``images``, evaluated with k = 5.

    Args:
        images: what :func:`tests.helpers.image_folder` made.
        methods: keys of ``METHOD_KWARGS``.
        changes: dotted keys (a dot written as two underscores) and their values.
    """
    shared = plain(small_cfg(images))
    for key in ("name", "method", "method_kwargs", "momentum", "checkpoint", "seed"):
        del shared[key]
    cfg: Dict[str, Any] = {
        **shared,
        "name": "tiny",
        "dir": "results/tiny",
        "methods": list(methods),
        "seeds": [0],
        "settings": {
            method: {
                "method_kwargs": METHOD_KWARGS[method],
                "momentum": {"base_tau": 0.9, "final_tau": 1.0},
            }
            for method in methods
        },
        "max_epochs": 1,
        "threads": 1,
        "evaluation": {"k": 5, "frequency": 1},
        "knn": {"k": [1, 5], "temperature": 0.07, "features": ["backbone", "projector"]},
        "gallery": {"rows": 3, "columns": 4},
    }
    whole = OmegaConf.create(cfg)
    for key, value in changes.items():
        OmegaConf.update(whole, key.replace("__", "."), value, force_add=True)
    return whole


def asked(images: Path, methods: Sequence[str] = ("carp", "simsiam"), **changes: Any) -> Asked:
    """The settings that :func:`comparison` means; same arguments."""
    return read_comparison(plain(comparison(images, methods, **changes)))
