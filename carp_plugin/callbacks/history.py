"""Keeps what was logged, epoch by epoch, beside the checkpoint and inside it."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional

from lightning.pytorch.callbacks import Callback

from carp_plugin.host import Checkpointer


class History(Callback):
    """Metrics of every epoch, in ``metrics.json`` of the run's folder; a resumed run continues them.

    Args:
        checkpointer: whose folder is the run's; None keeps the metrics in memory only.
    """

    def __init__(self, checkpointer: Optional[Checkpointer] = None) -> None:
        self.checkpointer = checkpointer
        self.epochs: List[Dict[str, float]] = []

    def state_dict(self) -> Dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Notes the epoch's metrics; the step's twin of an averaged metric is left out."""
        metrics = {
            key[: -len("_epoch")] if key.endswith("_epoch") else key: float(value)
            for key, value in trainer.callback_metrics.items()
            if not key.endswith("_step") and f"{key}_epoch" not in trainer.callback_metrics
        }
        self.epochs.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        if self.checkpointer is not None and trainer.is_global_zero:
            write_json(self.checkpointer.path / "metrics.json", self.epochs)

    @property
    def last(self) -> Dict[str, float]:
        """Metrics of the last epoch; empty before the first."""
        return self.epochs[-1] if self.epochs else {}


def write_json(path: Any, content: Any) -> None:
    """Writes ``content`` to ``path`` as a whole or not at all."""
    unfinished = f"{path}.{os.getpid()}.part"
    with open(unfinished, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(unfinished, path)
