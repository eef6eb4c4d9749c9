"""Optimizer and schedule for solo-learn 1.0.2 under the current names and meanings.

LARS is 1.0.2's own rescaling, made a real optimizer (Lightning 2 steps with a closure, before which 1.0.2 would
rescale gradients that do not exist yet). The schedule replaces lightning-bolts, which imports no longer.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR


class LinearWarmupCosineAnnealingLR(LRScheduler):
    """Linear warm-up to the base learning rate, then half a cosine down to ``eta_min``.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        warmup_epochs: number of scheduler steps of the warm-up; may be fractional.
        max_epochs: number of scheduler steps in all.
        warmup_start_lr: learning rate at step 0, where there is a warm-up.
        eta_min: learning rate at step ``max_epochs`` and after it.
        last_epoch: index of the last step taken, -1 to start.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_epochs: float,
        max_epochs: float,
        warmup_start_lr: float = 0.0,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_start_lr = warmup_start_lr
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> List[Any]:
        """Learning rate of each parameter group at the current step, in closed form."""
        step = self.last_epoch
        if step == 0 and self.warmup_epochs > 0:
            return [self.warmup_start_lr] * len(self.base_lrs)
        if step < self.warmup_epochs:
            done = step / max(self.warmup_epochs - 1, 1)
            return [
                self.warmup_start_lr + done * (lr - self.warmup_start_lr) for lr in self.base_lrs
            ]
        end = max(self.max_epochs - self.warmup_epochs, 1)
        # a run may have more steps than its schedule was made for
        done = min((step - self.warmup_epochs) / end, 1)
        shape = (1 + math.cos(math.pi * done)) / 2
        return [self.eta_min + shape * (lr - self.eta_min) for lr in self.base_lrs]


class LARS(torch.optim.SGD):
    """SGD with layer-wise adaptive rates (You et al. 2017), rescaled by solo-learn 1.0.2's LARSWrapper.

    Args:
        params: parameters or groups, as for SGD.
        lr: learning rate.
        momentum: momentum factor.
        dampening: dampening of the momentum.
        weight_decay: L2 penalty, part of the rescaled gradient.
        nesterov: Nesterov momentum.
        eta: trust coefficient.
        eps: added to the denominator of the trust ratio.
        clip_lr: caps the adapted rate at the learning rate (LARC).
        exclude_bias_n_norm: leaves one-dimensional parameters to plain SGD without weight decay.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        eta: float = 1e-3,
        eps: float = 1e-8,
        clip_lr: bool = False,
        exclude_bias_n_norm: bool = False,
    ) -> None:
        # Not above: this module is what lets solo be imported in the first place.
        from solo.utils.lars import LARSWrapper

        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        # The wrapper steps this plain twin, which shares groups and state; ours would call itself.
        self._twin = torch.optim.SGD(self.param_groups[0]["params"], lr=lr)
        self._rescaling = LARSWrapper(
            self._twin, eta=eta, clip=clip_lr, eps=eps, exclude_bias_n_norm=exclude_bias_n_norm
        )

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:  # type: ignore[override]
        """Evaluates the closure, if there is one, rescales the gradients and steps.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            Any: what the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._twin.param_groups, self._twin.state = self.param_groups, self.state
        self._rescaling.step()
        return loss


OPTIMIZERS: Dict[str, type] = {
    "sgd": torch.optim.SGD,
    "lars": LARS,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def split_weight_decay(groups: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Takes biases and normalisation parameters (at most one-dimensional) out of weight decay.

    Args:
        groups: parameter groups; ``params`` may be generators.

    Returns:
        List[Dict[str, Any]]: up to two groups for each one received.
    """
    out = []
    for group in groups:
        rest = {key: value for key, value in group.items() if key != "params"}
        params = list(group["params"])
        decayed = [param for param in params if param.ndim > 1]
        plain = [param for param in params if param.ndim <= 1]
        if decayed:
            out.append({**rest, "params": decayed})
        if plain:
            out.append({**rest, "params": plain, "weight_decay": 0})
    return out


def _keep_static(scheduler: LRScheduler, indexes: List[int], lr: float) -> None:
    """Groups at ``indexes`` keep ``lr`` throughout (SimSiam's predictor)."""
    scheduled = scheduler.get_lr

    def get_lr() -> List[Any]:
        return [lr if i in indexes else value for i, value in enumerate(scheduled())]

    scheduler.get_lr = get_lr  # type: ignore[method-assign]


def configure(
    module: Any, groups: List[Dict[str, Any]]
) -> Union[torch.optim.Optimizer, Tuple[List, List]]:
    """Optimizer and schedule of a module in the current host's meaning.

    Args:
        module: has ``cfg``, ``lr``, ``min_lr``, ``warmup_start_lr`` and a ``trainer``.
        groups: its learnable parameter groups.

    Returns:
        The optimizer, or ``([optimizer], [scheduler])``, as Lightning takes them.
    """
    cfg, kwargs = module.cfg, dict(module.extra_optimizer_args)
    groups = [dict(group) for group in groups]
    static = [i for i, group in enumerate(groups) if group.pop("static_lr", False)]
    if cfg.optimizer.exclude_bias_n_norm_wd:
        groups = split_weight_decay(groups)
    optimizer = OPTIMIZERS[cfg.optimizer.name](
        groups, lr=module.lr, weight_decay=cfg.optimizer.weight_decay, **kwargs
    )
    if cfg.scheduler.name == "none":
        return optimizer
    if cfg.scheduler.name == "step":
        scheduler: LRScheduler = MultiStepLR(optimizer, list(cfg.scheduler.lr_decay_steps))
        interval = "epoch"
    else:
        interval = cfg.scheduler.interval
        total = module.trainer.estimated_stepping_batches if interval == "step" else cfg.max_epochs
        scheduler = LinearWarmupCosineAnnealingLR(
            optimizer,
            warmup_epochs=cfg.scheduler.warmup_epochs * total / cfg.max_epochs,
            max_epochs=total,
            warmup_start_lr=module.warmup_start_lr
            if cfg.scheduler.warmup_epochs > 0
            else module.lr,
            eta_min=module.min_lr,
        )
    if static:
        _keep_static(scheduler, static, module.lr)
    return [optimizer], [{"scheduler": scheduler, "interval": interval, "frequency": 1}]
