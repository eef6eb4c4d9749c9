"""solo-learn 1.0.2's checkpointer and UMAP callback with the current arguments."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, Union

import solo.utils.checkpointer as _checkpointer
from omegaconf import DictConfig, OmegaConf


class Checkpointer(_checkpointer.Checkpointer):
    """Saves a checkpoint every ``frequency`` epochs under ``logdir``/run, and the cfg as ``args.json`` beside it.

    Args:
        cfg: the configuration; has ``name``.
        logdir: folder of the method's runs.
        frequency: epochs between two checkpoints.
        keep_prev: keep the earlier ones.
    """

    def __init__(
        self,
        cfg: DictConfig,
        logdir: Union[str, Path] = "trained_models",
        frequency: int = 1,
        keep_prev: bool = False,
    ) -> None:
        super().__init__(Namespace(name=cfg.name), logdir, frequency, keep_prev)
        self.cfg = cfg

    def save_args(self, trainer: Any) -> None:
        """Writes the configuration for the resumer."""
        if trainer.is_global_zero:
            logger = trainer.logger
            args: Any = OmegaConf.to_container(self.cfg, resolve=True)
            args["wandb_run_id"] = None if logger is None else str(logger.version)
            (self.path / "args.json").write_text(json.dumps(args))

    def save(self, trainer: Any) -> None:
        """Saves a checkpoint; on every rank, since Lightning 2 synchronises them while saving."""
        if trainer.sanity_checking:
            return
        path = self.path / self.ckpt_placeholder.format(trainer.current_epoch)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and self.last_ckpt not in (None, path):
            if not self.keep_previous_checkpoints:
                Path(self.last_ckpt).unlink(missing_ok=True)
        self.last_ckpt = path


try:
    from solo.utils.auto_umap import AutoUMAP as _AutoUMAP
except ImportError:
    AutoUMAP = None
else:

    class _ListsLoaders:
        """A trainer whose validation loaders are a list, as Lightning 1 had them."""

        def __init__(self, trainer: Any) -> None:
            self._trainer = trainer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._trainer, name)

        @property
        def val_dataloaders(self) -> list:
            loaders = self._trainer.val_dataloaders
            return loaders if isinstance(loaders, list) else [loaders]

    class AutoUMAP(_AutoUMAP):  # type: ignore[no-redef]
        """Draws a UMAP of the validation features every ``frequency`` epochs.

        Args:
            name: name of the run.
            logdir: where the pictures go.
            frequency: epochs between two pictures.
        """

        def __init__(
            self, name: str, logdir: Union[str, Path] = "auto_umap", frequency: int = 1
        ) -> None:
            super().__init__(Namespace(name=name), logdir=logdir, frequency=frequency)

        def plot(self, trainer: Any, module: Any) -> None:
            """Draws the validation features of this epoch."""
            super().plot(_ListsLoaders(trainer), module)
