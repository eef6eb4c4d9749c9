"""Checkpoints that are whole or not there: the host's checkpointer, writing atomically."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Dict, Optional

import torch.nn as nn
from lightning.pytorch.plugins.io import TorchCheckpointIO

from carp_plugin.errors import UserError
from carp_plugin.evaluation.state import fit, read_state_dict
from carp_plugin.host import Checkpointer as HostCheckpointer


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a killed or a full machine leaves no torn checkpoint."""

    def save_checkpoint(
        self, checkpoint: Dict[str, Any], path: Any, storage_options: Optional[Any] = None
    ) -> None:
        """Saves ``checkpoint`` under ``path``.

        Raises:
            UserError: the file cannot be written; an earlier checkpoint of that name is intact.
        """
        # SimSiam's schedule carries the function that keeps its predictor's rate; weights_only would refuse it.
        for state in checkpoint.get("lr_schedulers", []):
            for key in [key for key, value in state.items() if callable(value)]:
                del state[key]
        target = Path(path)
        unfinished = target.with_name(target.name + f".{os.getpid()}.part")
        try:
            super().save_checkpoint(checkpoint, unfinished, storage_options)
            os.replace(unfinished, target)
        except (OSError, RuntimeError) as error:
            reason = _why_not_written(error)
            if reason is None:
                raise
            raise UserError(
                f"the checkpoint {target} cannot be written ({reason}); earlier checkpoints are intact: "
                "make room or give another checkpoint.dir, and the same command resumes if auto_resume.enabled=True."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)


def _why_not_written(error: BaseException) -> Optional[str]:
    """The reason of a failed write in words, None if the error is something else."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    written = any(word in str(error) for word in ("PytorchStreamWriter", "file write", "iostream"))
    return os.strerror(errno.ENOSPC) + "?" if written else None


class Checkpointer(HostCheckpointer):
    """The host's checkpointer, which saves the last epoch whatever ``frequency`` is."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Saves when the epoch is due, or the last one."""
        super().on_train_epoch_end(trainer, module)
        epoch = trainer.current_epoch
        if epoch % self.frequency != 0 and epoch + 1 == trainer.max_epochs:
            self.save(trainer)


def check_checkpoint(path: Path, model: nn.Module) -> None:
    """Checks that a checkpoint holds the tensors of the model, all of them and no others.

    Raises:
        UserError: the file is torn or no checkpoint, or its tensors are another model's.
    """
    result = fit(model.state_dict(), read_state_dict(path))
    if result.complaint():
        raise UserError(f"the checkpoint {path} is of another model: {result.complaint()}.")
