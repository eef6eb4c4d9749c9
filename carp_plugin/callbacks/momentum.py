"""Lets a resumed run continue with the momentum coefficient it was stopped at."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback


class ResumeMomentum(Callback):
    """Restores tau and the step counter of a method with a momentum copy, whatever the host.

    The host keeps ``MomentumUpdater.cur_tau`` out of the checkpoint and starts its step counter at 0, so the first
    update after a resume is made with ``base_tau``, and with accumulated gradients before any optimizer step.
    """

    def __init__(self) -> None:
        self._begun = False

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Sets tau to its place on the schedule."""
        self._begun = False
        updater = getattr(module, "momentum_updater", None)
        if updater is not None and trainer.global_step > 0:
            updater.update_tau(
                cur_step=trainer.global_step, max_steps=trainer.estimated_stepping_batches
            )

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Sets the step counter; the host's ``on_train_start``, which runs after ours, has put it to 0.

        Lightning leaves out the start of an epoch that is resumed within; what a method does there is made up for.
        """
        if self._begun:
            return
        self._begun = True
        if hasattr(module, "last_step"):
            module.last_step = trainer.global_step
        if batch_idx > 0:
            module.on_train_epoch_start()
