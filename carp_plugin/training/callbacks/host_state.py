"""Lets a resumed run continue with the state that the hosts' methods keep out of checkpoints, or make anew."""

from __future__ import annotations

from typing import Any, Dict

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
    """

    def __init__(self) -> None:
        self._begun = self._epoch_begun = False
        self._buffers: Dict[str, Tensor] = {}

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Dict[str, Any]) -> None:
        """Keeps the buffers of the checkpoint for when the method has made its own."""
        state = checkpoint["state_dict"]
        self._buffers = {name: state[name].clone() for name in TRAINING_BUFFERS if name in state}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Sets tau to its place on the schedule."""
        self._begun = False
        updater = getattr(module, "momentum_updater", None)
        if updater is not None and trainer.global_step > 0:
            updater.update_tau(
                cur_step=trainer.global_step, max_steps=trainer.estimated_stepping_batches
            )

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
