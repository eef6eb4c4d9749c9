"""Which devices a run has: one spelling for all, as many as there are processes."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Tuple

import torch

from carp_plugin.errors import UserError
from carp_plugin.settings.trainer import Trainer
from carp_plugin.training.launchers import check_launcher


class Machine(NamedTuple):
    """What a run trains on.

    Attributes:
        accelerator: "cpu", or the name of an accelerator.
        devices: a number for each process of a node.
        nodes: machines.
    """

    accelerator: str
    devices: Tuple[int, ...]
    nodes: int = 1

    @property
    def world(self) -> int:
        """Processes of the run."""
        return len(self.devices) * self.nodes

    @property
    def device(self) -> torch.device:
        """Where this process evaluates."""
        return torch.device("cpu" if self.accelerator == "cpu" else "cuda")

    def as_dict(self) -> Dict[str, Any]:
        """As json takes it."""
        return {**self._asdict(), "devices": list(self.devices)}

    def __str__(self) -> str:
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{len(self.devices)} x {self.accelerator}{nodes}"


def machine_of(settings: Trainer) -> Machine:
    """The devices that the settings mean on this machine.

    ``1``, ``[0]``, ``"0,1"`` and ``auto`` mean on any machine what Lightning means by them; ``auto`` is one process
    on a CPU and every card elsewhere.

    Raises:
        UserError: a GPU that is not there, devices that cannot be read, another number of them than processes that
            torchrun or srun started, or synchronised batch norm over processes without a GPU.
    """
    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    on_cards = accelerator in ("gpu", "cuda")
    if on_cards and not torch.cuda.is_available():
        raise UserError(
            f"accelerator={accelerator} but no CUDA device is visible; add accelerator=cpu "
            "(and precision=32-true strategy=auto sync_batchnorm=False) to train on the CPU."
        )
    count = torch.cuda.device_count() if on_cards else 1
    machine = Machine(accelerator, tuple(_device_list(settings.devices, count)), settings.num_nodes)
    if on_cards and max(machine.devices) >= count:
        raise UserError(
            f"devices={_as_typed(settings.devices)} names card {max(machine.devices)}, counted from 0, but {count} "
            f"{'is' if count == 1 else 'are'} visible; use devices={count} or fewer."
        )
    check_launcher(len(machine.devices), machine.nodes)
    if machine.world > 1 and accelerator == "cpu" and settings.sync_batchnorm:
        raise UserError(
            "sync_batchnorm=True with accelerator=cpu: torch synchronises batch norm on GPUs alone; "
            "add sync_batchnorm=False, and each process normalises with its own images."
        )
    return machine


def _as_typed(devices: Any) -> Any:
    return list(devices) if isinstance(devices, tuple) else devices


def _device_list(devices: Any, available: int) -> List[int]:
    unreadable = UserError(
        f"devices={_as_typed(devices)} cannot be read; give a number (devices=1), a list (devices=[0,1]) or auto."
    )
    if isinstance(devices, tuple):
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
