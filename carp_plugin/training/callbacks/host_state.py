"""Lets a resumed run continue with the state that the hosts' methods keep out of checkpoints, or make anew."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch.nn as nn
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from carp_plugin.training.state import TRAINING_BUFFERS


class RestoresHostState(Callback):
    """Restores what a resumed method would begin with anew, whatever the host.

    - ``MomentumUpdater.cur_tau`` is not in the checkpoint, and the step counter starts at 0: the first update after a
      resume would be made with ``base_tau``, and with accumulated gradients before any optimizer step.
    - ``TRAINING_BUFFERS``, such as SwAV's queue, are made at the start of training, full of zeros.
    - What a method does at the start of an epoch, Lightning leaves out in an epoch that is resumed within.

    A checkpoint's learning rate keeps the schedule that it was made for, also in a run of more epochs; tau keeps it
    too.

    Args:
        planned: optimizer steps that a checkpoint's run was planned with, where it does not say so itself.
    """

    def __init__(self, planned: Optional[int] = None) -> None:
        self.planned = planned
        self._begun = self._epoch_begun = False
        self._buffers: Dict[str, Tensor] = {}

    def state_dict(self) -> Dict[str, Any]:
        return {"planned": self.planned}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.planned = state_dict.get("planned", self.planned)

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Dict[str, Any]) -> None:
        """Keeps the buffers of the checkpoint for when the method has made its own."""
        state = checkpoint["state_dict"]
        self._buffers = {name: state[name].clone() for name in TRAINING_BUFFERS if name in state}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Sets tau to its place on the schedule, which is that of the run that the checkpoint was planned in."""
        self._begun = False
        total = trainer.estimated_stepping_batches
        if self.planned is None:
            self.planned = int(total)
        updater = getattr(module, "momentum_updater", None)
        if updater is None:
            return
        if self.planned != total:
            _keep_schedule(updater, self.planned)
        if trainer.global_step > 0:
            updater.update_tau(cur_step=trainer.global_step, max_steps=self.planned)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Comes after the method's own ``on_train_start`` and before its start of an epoch."""
        self._epoch_begun = True
        self._restore_buffers(module)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Sets the step counter, which the method's own ``on_train_start`` has put to 0, and begins the epoch."""
        if self._begun:
            return
        self._begun = True
        if hasattr(module, "last_step"):
            module.last_step = trainer.global_step
        if not self._epoch_begun:
            self._restore_buffers(module)
            module.on_train_epoch_start()

    def _restore_buffers(self, module: nn.Module) -> None:
        for name, tensor in self._buffers.items():
            module.get_buffer(name).copy_(tensor)
        self._buffers = {}


def planned_in(checkpoint: Dict[str, Any]) -> Optional[int]:
    """Optimizer steps that the schedules in a checkpoint are made for; None in one of an earlier release."""
    return (checkpoint.get("callbacks") or {}).get(RestoresHostState.__name__, {}).get("planned")


def _keep_schedule(updater: Any, planned: int) -> None:
    """Lets tau run over the planned steps, whatever number the method thinks there are, and stay where it ends."""
    update = updater.update_tau

    def within(cur_step: int, max_steps: int) -> None:
        update(cur_step=min(cur_step, planned), max_steps=planned)

    updater.update_tau = within


def make_room(model: nn.Module, state: Dict[str, Tensor]) -> None:
    """Gives a freshly built method the ``TRAINING_BUFFERS`` that a checkpoint holds, which is then loaded strictly.

    Args:
        model: of the host, changed in place.
        state: tensors of the checkpoint by their names.
    """
    own = model.state_dict()
    for name in TRAINING_BUFFERS:
        if name in state and name not in own:
            parent, _, leaf = name.rpartition(".")
            model.get_submodule(parent).register_buffer(leaf, state[name].clone())
