"""Random numbers of training that are a function of the step, so that a resumed run draws what a whole one draws."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from carp_plugin.data.epochs import mixed, seed_host

_EPOCH, _BATCH = 0, 1


class SeedsSteps(Callback):
    """Seeds the generators of Python, numpy and torch before every training batch, and at the start of an epoch.

    What a method draws in a step (dropout, masks, queues) then depends on seed, epoch, batch and rank, and on nothing
    that came before, so that no state of a generator has to be kept.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._seed(_EPOCH, trainer.current_epoch, 0, trainer.global_rank)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._seed(_BATCH, trainer.current_epoch, batch_idx, trainer.global_rank)

    def _seed(self, *place: int) -> None:
        seed = mixed(self.seed, *place)
        seed_host(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
