"""What torchrun or srun has started, and whether it fits what is configured."""

from __future__ import annotations

import os
import re

from carp_plugin.errors import LonelyError, UserError
from carp_plugin.terminal import under_srun

#: What tells a process of the others; any of them is enough for Lightning, or torch, to look for them.
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def check_launcher(devices: int, nodes: int) -> None:
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
    elif under_srun():
        slurm_nodes = int(os.environ.get("SLURM_NNODES", 1))
        tasks = os.environ.get("SLURM_NTASKS_PER_NODE")
        if tasks is None and int(os.environ["SLURM_NTASKS"]) > 1:
            raise UserError(
                f"Lightning needs to know SLURM's tasks a node; use --nodes={nodes} --ntasks-per-node={devices} "
                "in place of --ntasks."
            )
        if (int(tasks or 1), slurm_nodes) != (devices, nodes):
            raise UserError(
                f"SLURM has tasks-per-node={tasks or 1} and nodes={slurm_nodes}, but the configuration devices="
                f"{devices} and num_nodes={nodes}; srun must start one task a device: use "
                f"--nodes={nodes} --ntasks-per-node={devices}, or devices={tasks or 1} num_nodes={slurm_nodes}."
            )
    else:
        _check_strays()


def _check_strays() -> None:
    """Without a launcher none of its variables stands: Lightning would take this process for one of several.

    Raises:
        LonelyError: one does, and nothing says where the others are.
    """
    strays = [name for name in _OF_LAUNCHERS if name in os.environ]
    if strays and not all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT")):
        named = ", ".join(f"{name}={os.environ[name]}" for name in strays)
        raise LonelyError(
            f"the environment says {named}, as a launcher tells its processes, but neither torchrun nor srun has "
            f"started this one: `unset {' '.join(strays)}`, or start it with torchrun. (By hand, each process needs "
            "MASTER_ADDR and MASTER_PORT too.)"
        )


def another_ended(error: BaseException) -> bool:
    """Whether ``error`` is what remains of a collective whose other side is gone."""
    kind, text = type(error).__name__, str(error)
    return kind in ("DistBackendError", "DistNetworkError") or bool(
        re.search(r"Connection (closed|reset) by|\bgloo\b|\bNCCL\b", text)
    )
