"""Which devices a run has: one spelling for all, as many as there are processes."""

from __future__ import annotations

from typing import Any, List

import torch
from omegaconf import DictConfig, ListConfig

from carp_plugin.errors import UserError
from carp_plugin.host import omegaconf_select
from carp_plugin.training.launchers import check_launcher


def settle_devices(cfg: DictConfig) -> None:
    """Turns every spelling of the devices into a list, for the host counts its length in the learning rate.

    ``1``, ``[0]``, ``"0,1"`` and ``auto`` mean on any machine what Lightning means by them; ``auto`` is one process
    on a CPU and every card elsewhere.

    Raises:
        UserError: a GPU that is not there, devices that cannot be read, another number of them than processes that
            torchrun or srun started, or synchronised batch norm over processes without a GPU.
    """
    accelerator = str(omegaconf_select(cfg, "accelerator", "auto"))
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"accelerator={accelerator} but no CUDA device is visible; add accelerator=cpu "
            "(and precision=32-true strategy=auto sync_batchnorm=False) to train on the CPU."
        )
    devices = omegaconf_select(cfg, "devices", "auto")
    count = torch.cuda.device_count() if accelerator in ("gpu", "cuda") else 1
    cfg.accelerator, cfg.devices = accelerator, _device_list(devices, count)
    if accelerator in ("gpu", "cuda") and max(cfg.devices) >= count:
        raise UserError(
            f"devices={devices} names card {max(cfg.devices)}, counted from 0, but {count} "
            f"{'is' if count == 1 else 'are'} visible; use devices={count} or fewer."
        )
    nodes = omegaconf_select(cfg, "num_nodes", 1) or 1
    check_launcher(len(cfg.devices), nodes)
    several = len(cfg.devices) * nodes > 1
    if several and accelerator == "cpu" and omegaconf_select(cfg, "sync_batchnorm", False):
        raise UserError(
            "sync_batchnorm=True with accelerator=cpu: torch synchronises batch norm on GPUs alone; "
            "add sync_batchnorm=False, and each process normalises with its own images."
        )


def _device_list(devices: Any, available: int) -> List[int]:
    unreadable = UserError(
        f"devices={devices} cannot be read; give a number (devices=1), a list (devices=[0,1]) or auto."
    )
    if isinstance(devices, ListConfig):
        listed = list(devices)
    elif str(devices) in ("auto", "-1"):
        listed = list(range(available))
    elif isinstance(devices, str) and "," in devices:
        listed = [part for part in devices.split(",") if part.strip()]
    else:
        try:
            listed = list(range(int(devices)))
        except (TypeError, ValueError):
            raise unreadable from None
    try:
        numbers = [int(device) for device in listed]
    except (TypeError, ValueError):
        raise unreadable from None
    if not numbers or min(numbers) < 0:
        raise unreadable
    return numbers
