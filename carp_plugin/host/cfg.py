"""The host's configuration objects, built from plain values: the one place where they are made."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional, Sequence, cast

from omegaconf import DictConfig, OmegaConf

from carp_plugin.host import parse_linear_cfg, parse_pretrain_cfg


def node(values: Mapping[str, Any]) -> DictConfig:
    """Values as the host's functions take them.

    Args:
        values: nested keys; null is left out, for the host looks for its defaults where a key is absent.
    """
    return OmegaConf.create(dict(values))


def pretrain_cfg(
    values: Mapping[str, Any],
    accelerator: str,
    devices: Sequence[int],
    classes: Optional[int] = None,
) -> DictConfig:
    """What a method is built from: the settings, the host's defaults, classes, crops and scaled learning rates.

    Args:
        values: of a pretraining, as the user wrote them.
        accelerator: "cpu", "gpu" or "cuda".
        devices: one number for each process of a node.
        classes: of the data; None leaves them to the host, which counts hidden folders too.
    """
    return _parsed(parse_pretrain_cfg, values, accelerator, devices, classes)


def linear_cfg(
    values: Mapping[str, Any],
    accelerator: str,
    devices: Sequence[int],
    classes: Optional[int] = None,
) -> DictConfig:
    """What the host's linear model is built from; arguments as for :func:`pretrain_cfg`."""
    return _parsed(parse_linear_cfg, values, accelerator, devices, classes)


#: A data set that no host knows -> one that both know, for the parsing alone: the host has neither its images nor a
#: network of its own for it, and looks up no folder.
_STANDS_FOR = {"fashion_mnist": "stl10"}


def _parsed(
    parse: Callable[[DictConfig], DictConfig],
    values: Mapping[str, Any],
    accelerator: str,
    devices: Sequence[int],
    classes: Optional[int],
) -> DictConfig:
    cfg = _with_devices(values, accelerator, devices)
    name = cfg.data.dataset
    cfg.data.dataset = _STANDS_FOR.get(name, name)
    cfg = parse(cfg)
    cfg.data.dataset = name
    if classes is not None:
        cfg.data.num_classes = classes
    return cfg


def _with_devices(
    values: Mapping[str, Any], accelerator: str, devices: Sequence[int]
) -> DictConfig:
    return node({**values, "accelerator": accelerator, "devices": list(devices)})


def plain(cfg: Any) -> Dict[str, Any]:
    """A node of the host's configuration as plain dicts, lists and values, as json takes them."""
    return cast(Dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
