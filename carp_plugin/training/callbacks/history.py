"""Keeps what was logged, epoch by epoch, beside the checkpoint and inside it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from lightning.pytorch.callbacks import Callback

from carp_plugin.errors import UserError

Measure = Callable[[Any, Any], Dict[str, float]]


class History(Callback):
    """Metrics of every epoch, in ``metrics.json`` of the run's folder; a resumed run continues them.

    Each epoch has its number, the optimizer steps so far, what the method logged, what ``measure`` returned, and
    ``train_seconds``: from the start of the epoch to the end of its last training batch, without validation.

    Args:
        checkpointer: the run's, whose ``path`` is its folder; None keeps the metrics in memory only.
        measure: takes the trainer and the method at the end of an epoch and returns further metrics.
    """

    def __init__(self, checkpointer: Any = None, measure: Optional[Measure] = None) -> None:
        self.checkpointer, self.measure = checkpointer, measure
        self.epochs: List[Dict[str, float]] = []
        self._started = self._trained = 0.0

    def state_dict(self) -> Dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """A run that is resumed within an epoch has no start of that epoch."""
        self._started = self._trained = time.perf_counter()

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._started = self._trained = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, *batch: Any) -> None:
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Notes the epoch's metrics; the step's twin of an averaged metric is left out."""
        metrics = {
            key[: -len("_epoch")] if key.endswith("_epoch") else key: float(value)
            for key, value in trainer.callback_metrics.items()
            if not key.endswith("_step") and f"{key}_epoch" not in trainer.callback_metrics
        }
        measured = self.measure(trainer, module) if self.measure else {}
        for logger in trainer.loggers if measured else []:
            logger.log_metrics(measured, step=trainer.global_step)
        self.epochs.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "train_seconds": round(self._trained - self._started, 3),
                **metrics,
                **measured,
            }
        )
        if self.checkpointer is not None and trainer.is_global_zero:
            write_json(self.checkpointer.path / "metrics.json", self.epochs)

    @property
    def last(self) -> Dict[str, float]:
        """Metrics of the last epoch; empty before the first."""
        return self.epochs[-1] if self.epochs else {}


def write_json(path: Any, content: Any) -> None:
    """Writes ``content`` to ``path`` as a whole or not at all.

    Raises:
        UserError: it cannot be written; an earlier file of that name is intact.
    """
    unfinished = Path(f"{path}.{os.getpid()}.part")
    try:
        with open(unfinished, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); what was there is intact: make room, or give another folder."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
