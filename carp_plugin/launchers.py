"""What torchrun, srun or Lightning itself has told this process of the others: its place among them, and who speaks.

Nothing of torch or of solo-learn is imported: mistakes are said before either is there.
"""

from __future__ import annotations

import os
import re
import sys

from carp_plugin.errors import UserError


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
                f"SLURM has tasks-per-node={tasks or 1} and nodes={slurm_nodes}, but the configuration devices="
                f"{devices} and num_nodes={nodes}; srun must start one task a device: use "
                f"--nodes={nodes} --ntasks-per-node={devices}, or devices={tasks or 1} num_nodes={slurm_nodes}."
            )


def _under_srun() -> bool:
    """Whether Lightning takes this process for a task of SLURM's; those of an interactive shell are none."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not interactive


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


def has_the_say() -> bool:
    """Whether a mistake that this process finds is its to say.

    Before the processes have met, all of a node find the same one, and the first of them says it. Later it may be one
    process's alone, such as an image that cannot be read.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return True
    return is_first_of_node()


def is_first_of_node() -> bool:
    """Whether this is the first process of its node."""
    local = os.environ.get("LOCAL_RANK")
    if local is None and _under_srun():
        local = os.environ.get("SLURM_LOCALID")
    return int(local or 0) == 0


def another_ended(error: BaseException) -> bool:
    """Whether ``error`` is what remains of a collective whose other side is gone."""
    kind, text = type(error).__name__, str(error)
    return kind in ("DistBackendError", "DistNetworkError") or bool(
        re.search(r"Connection (closed|reset) by|\bgloo\b|\bNCCL\b", text)
    )
