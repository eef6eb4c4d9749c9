"""solo-learn 1.0.2's linear evaluation model, built from a backbone and a cfg."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from omegaconf import DictConfig, OmegaConf
from solo.methods import linear as _linear
from solo.methods.linear import LinearModel as _LinearModel

from carp_plugin.errors import UserError
from carp_plugin.host.common import within_classes
from carp_plugin.host.pypi import optim
from carp_plugin.host.pypi.config import with_defaults

_DEFAULTS: Dict[str, Any] = {
    "optimizer.exclude_bias_n_norm_wd": False,
    "optimizer.kwargs": {},
    "optimizer.layer_decay": 0.0,
    "finetune": False,
    "accumulate_grad_batches": 1,
    "scheduler.lr_decay_steps": None,
    "scheduler.min_lr": 0.0,
    "scheduler.warmup_start_lr": 3e-5,
    "scheduler.warmup_epochs": 10,
    "scheduler.interval": "step",
    "performance.disable_channel_last": False,
}

_linear.accuracy_at_k = within_classes(_linear.accuracy_at_k)


class LinearModel(_LinearModel):
    """A linear classifier on a frozen backbone.

    Args:
        backbone: gives features (N, F); has ``inplanes`` or ``num_features``.
        cfg: the configuration of a linear evaluation.
        loss_func: not in 1.0.2; must be None.
        mixup_func: not in 1.0.2; must be None.

    Raises:
        UserError: for what only the current host can do: fine-tuning, mixup, another loss.
    """

    validation_epoch_end = None

    def __init__(
        self,
        backbone: torch.nn.Module,
        cfg: DictConfig,
        loss_func: Optional[Callable] = None,
        mixup_func: Optional[Callable] = None,
    ) -> None:
        cfg = self.add_and_assert_specific_cfg(cfg)
        if (
            cfg.finetune
            or mixup_func is not None
            or loss_func is not None
            or cfg.optimizer.layer_decay
        ):
            raise UserError(
                "finetune, layer_decay, mixup and label smoothing need solo-learn 1.0.6 or later; "
                "1.0.2 trains a linear layer on a frozen backbone with cross-entropy only."
            )
        kwargs = OmegaConf.to_container(cfg.optimizer.kwargs)
        super().__init__(
            backbone=backbone,
            num_classes=cfg.data.num_classes,
            max_epochs=cfg.max_epochs,
            batch_size=cfg.optimizer.batch_size,
            optimizer=cfg.optimizer.name,
            lars=False,
            lr=cfg.optimizer.lr,
            weight_decay=cfg.optimizer.weight_decay,
            exclude_bias_n_norm=False,
            extra_optimizer_args=kwargs,
            scheduler=cfg.scheduler.name,
            lr_decay_steps=cfg.scheduler.lr_decay_steps,
        )
        self.cfg = cfg
        self.min_lr = cfg.scheduler.min_lr
        self.warmup_start_lr = cfg.scheduler.warmup_start_lr
        self.validation_step_outputs: List[Dict[str, Any]] = []

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Adds the defaults of a linear evaluation, in place."""
        return with_defaults(cfg, _DEFAULTS)

    def configure_optimizers(self) -> Any:
        return optim.configure(
            self, [{"name": "classifier", "params": self.classifier.parameters()}]
        )

    def validation_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> Dict[str, Any]:
        outs = super().validation_step(batch, batch_idx)
        self.validation_step_outputs.append(outs)
        return outs

    def on_validation_epoch_end(self) -> None:
        outs = list(self.validation_step_outputs)
        self.validation_step_outputs.clear()
        super().validation_epoch_end(outs)
