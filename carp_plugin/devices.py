"""Which devices a run has: one spelling for all, as many as there are processes, and which process speaks."""

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
    nodes = omegaconf_select(cfg, "num_nodes", 1) or 1
    _check_launcher(len(cfg.devices), nodes)
    several = len(cfg.devices) * nodes > 1
    if several and accelerator == "cpu" and omegaconf_select(cfg, "sync_batchnorm", False):
        raise UserError(
            "sync_batchnorm=True with accelerator=cpu: torch synchronises batch norm on GPUs alone; "
            "add sync_batchnorm=False, and each process normalises with its own images."
        )


def _check_launcher(devices: int, nodes: int) -> None:
    """What torchrun or srun has started fits the configuration; else the processes would wait for each other.

    Raises:
        UserError: it does not.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world = int(os.environ["WORLD_SIZE"])
        if world != devices * nodes:
            per_node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
            raise UserError(
                f"torchrun started {world} processes, but {devices} devices on {nodes} node{'s' * (nodes != 1)} are "
                f"configured; add devices={per_node} num_nodes={world // per_node}."
            )
    elif _under_srun():
        slurm_nodes = int(os.environ.get("SLURM_NNODES", 1))
        tasks = os.environ.get("SLURM_NTASKS_PER_NODE")
        if tasks is None and int(os.environ["SLURM_NTASKS"]) > 1:
            raise UserError(
                f"Lightning needs to know SLURM's tasks a node; use --nodes={nodes} --ntasks-per-node={devices} "
                "in place of --ntasks."
            )
        if (int(tasks or 1), slurm_nodes) != (devices, nodes):
            raise UserError(
                f"SLURM runs {tasks or 1} task a node on {slurm_nodes} node{'s' * (slurm_nodes != 1)}, but devices "
                f"and num_nodes say {devices} on {nodes}; srun must start one task a device: use "
                f"--nodes={nodes} --ntasks-per-node={devices}, or devices={tasks or 1} num_nodes={slurm_nodes}."
            )


def _under_srun() -> bool:
    """Whether Lightning takes this process for a task of SLURM's; those of an interactive shell are none."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not interactive


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
    """Whether this is the process of global rank 0, also before a process group stands.

    torchrun says ``RANK``; a process that Lightning starts has a ``LOCAL_RANK`` on the node ``NODE_RANK``, of which the
    first process of a node may know only the latter; srun says ``SLURM_PROCID``.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    if "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ:
        return all(int(os.environ.get(name, 0)) == 0 for name in ("LOCAL_RANK", "NODE_RANK"))
    return not _under_srun() or int(os.environ.get("SLURM_PROCID", 0)) == 0
