"""Which devices a run has: one spelling for all, and which process speaks."""

from __future__ import annotations

import os
from typing import Any, List

import torch
from omegaconf import DictConfig, ListConfig

from carp_plugin.errors import UserError
from carp_plugin.host import omegaconf_select


def settle_devices(cfg: DictConfig) -> None:
    """Turns every spelling of the devices into a list, for the host counts its length in the learning rate.

    ``1``, ``[0]``, ``"0,1"`` and ``auto`` mean on any machine what Lightning means by them; ``auto`` is one process
    on a CPU and every card elsewhere.

    Raises:
        UserError: a GPU that is not there, or devices that cannot be read.
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


def is_main_process() -> bool:
    """Whether this is the process of global rank 0, also before a process group stands."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
