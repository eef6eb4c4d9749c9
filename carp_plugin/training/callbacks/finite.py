"""Stops training before a loss that is not finite reaches the weights."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from carp_plugin.errors import UserError
from carp_plugin.losses.statistics import largest_logit
from carp_plugin.training.callbacks.checkpoint import Checkpointer

#: The terms of CARP in ``step_metrics``, in words.
_TERMS = {
    "train_consistency": "the consistency",
    "train_entropy_gap": "the entropy gap",
    "train_class_loss": "the online classifier's loss",
}

#: What a pretraining may do about it.
CHANGE = "begin anew with a lower optimizer.lr or a longer scheduler.warmup_epochs"


class FiniteLoss(Callback):
    """Ends training with one sentence when the loss or a gradient is not finite, after saving what was good.

    Before every optimizer step one number is looked at: the sum of the norms of all gradients, with the loss. The
    norms are one call for all gradients, on an accelerator a few kernels.
    That is where an accelerator is waited for, once a step. A look one step late would spare the wait and lose what
    is saved: by then the step has written the gradients into the weights, the optimizer's state and the teacher, and
    the state before is nowhere, unless a second copy of all of it is held and written at every step. So what is saved
    is the state before the bad step: weights, teacher, optimizer, and the running statistics of batch norm, which the
    forward pass has changed already and which are put back. Queues and centres that other methods update in the
    forward pass are not put back; if one of them, or a weight, is not finite, nothing is saved, and the sentence
    names the checkpoint before.

    Across ranks DistributedDataParallel has averaged the gradients by then, so a loss that is not finite on one rank
    has spoilt them on all, and all leave together; nothing more is sent as long as all is well. (A loss of one rank
    that is infinite and yet has finite gradients goes unnoticed there: no weight is harmed.) With a gradient scaler
    (16-mixed on CUDA) gradients that overflow are usual and the scaler leaves the step out; only then the ranks ask
    each other about their losses, and only a loss that is not finite ends training.

    Args:
        checkpointer: of the run; None saves nothing.
        change: what the user may do about it, as a part of a sentence.
    """

    def __init__(self, checkpointer: Optional[Checkpointer] = None, change: str = CHANGE) -> None:
        self.checkpointer, self.change = checkpointer, change
        self._batch: Any = None
        self._loss: Optional[Tensor] = None  # of the step's batches; a sum keeps what is not finite
        self._statistics: List[Tensor] = []
        self._before: List[Tensor] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Finds the running statistics and makes room for their copies."""
        norms = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
        self._statistics = [buffer for layer in norms for buffer in layer.buffers()]
        self._before = [buffer.clone() for buffer in self._statistics]
        self._loss = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Copies the running statistics where a step begins; later batches of an accumulation belong to it."""
        self._batch = batch
        if self._loss is None and self._before:
            torch._foreach_copy_(self._before, self._statistics)

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        """Adds up what the step's batches lose."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Looks, once the gradients of all ranks are in.

        Raises:
            UserError: something is not finite; on every rank alike.
        """
        loss, self._loss = self._loss, None
        trained = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in trained if p.grad is not None]
        if not gradients:  # a step that trains nothing can harm nothing
            return
        own = loss if trainer.world_size == 1 else None
        # Norms pass on what is not finite; largest entries would too, at many times the price on a CPU.
        norms = torch._foreach_norm(gradients)
        total = torch.stack([norm.float() for norm in norms]).sum()
        if math.isfinite(float(total if own is None else total + own)):
            return
        harmless = own is None or math.isfinite(float(own))
        if harmless and _first_bad(_gradients(module)) is None:
            return  # all are finite, if too large for their norm
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            lost = loss is not None and not math.isfinite(float(loss))
            if not trainer.strategy.reduce_boolean_decision(lost, all=False):
                return
        what, change = self._what_broke(trainer, module, loss)
        raise UserError(
            f"training was stopped at step {trainer.global_step}, learning rate "
            f"{optimizer.param_groups[0]['lr']:.4g}: {what}; {change}; {self._save(trainer, module)}"
        )

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Lets go of the batch."""
        self._batch = None

    # ------------------------------------------------------------------------------ the sentence

    def _what_broke(self, trainer: Any, module: Any, loss: Optional[Tensor]) -> Tuple[str, str]:
        """The terms that are not finite on some rank, for CARP the largest logit of all ranks, and what to change."""
        terms = getattr(module, "step_metrics", None) or {"loss": loss}
        names = {key: _TERMS.get(key, "the loss") for key in terms if key in (*_TERMS, "loss")}
        broken = [not bool(torch.as_tensor(terms[key]).isfinite().all()) for key in names]
        spoilt = any(not view.isfinite().all() for view in _images(self._batch))
        embeddings = getattr(module, "step_embeddings", None)
        logit, bad_rows, rows = math.nan, 0, 0
        if embeddings is not None:
            logit = largest_logit(embeddings, module.prototypes())
            bad_rows, rows = int((~embeddings.isfinite().all(dim=1)).sum()), len(embeddings)
        own = torch.tensor([*broken, spoilt, bad_rows, rows, logit], dtype=torch.float64)
        every = trainer.strategy.all_gather(own.to(module.device)).reshape(-1, len(own))
        *broken_of, spoilt_of, bad_rows_of, rows_of, logit_of = every.cpu().unbind(1)

        said = [name for name, ranks in zip(names.values(), broken_of) if ranks.any()]
        if said:
            listed = " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
            what = f"{listed} {'are' if len(said) > 1 else 'is'} not finite"
        else:
            bad = _first_bad(_gradients(module)) or "a parameter"
            what = f"the gradient of {bad} is not finite, though the loss is"
        if embeddings is not None:
            finite = logit_of[logit_of.isfinite()]
            largest = f"{float(finite.max()):.3g}" if len(finite) else "none"
            what += (
                f" (largest finite logit {largest}; {int(bad_rows_of.sum())} of {int(rows_of.sum())} "
                "embeddings not finite)"
            )
        if spoilt_of.any():
            return f"{what}, nor is an image of the batch", "look at the images and augmentations"
        return what, self.change + (
            ", or set precision=32-true" if "16" in str(trainer.precision) else ""
        )

    def _save(self, trainer: Any, module: Any) -> str:
        """Saves the state before the step, and says where it is."""
        if self._before:
            torch._foreach_copy_(self._statistics, self._before)
        trainer.strategy.barrier()
        if self.checkpointer is None:
            return "nothing was saved (checkpoint.enabled=False)."
        last = trainer.strategy.broadcast(getattr(self.checkpointer, "last_ckpt", None))
        bad = _first_bad({**dict(module.named_parameters()), **dict(module.named_buffers())})
        bad = bad or _first_bad(_optimizer_state(trainer))
        if trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            kept = "no checkpoint had been written" if last is None else f"the last one is {last}"
            return (
                f"no checkpoint was written, for {bad or 'a tensor'} is not finite already; {kept}."
            )
        try:
            path = self.checkpointer.save_within_epoch(trainer)
        except UserError as error:  # a full disk, say
            return f"the state before that step could not be saved: {error}"
        return f"the state before that step is saved in {path}."


def _gradients(module: Any) -> Dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _optimizer_state(trainer: Any) -> Dict[str, Tensor]:
    return {
        f"the optimizer's {name}": value
        for optimizer in trainer.optimizers
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _first_bad(tensors: Dict[str, Tensor]) -> Optional[str]:
    """The name of the first tensor that is not finite."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def _images(batch: Any) -> Tuple[Tensor, ...]:
    """The floating point tensors of a batch, however it is nested."""
    if isinstance(batch, Tensor):
        return (batch,) if batch.is_floating_point() else ()
    inner = batch.values() if isinstance(batch, dict) else batch
    if not isinstance(batch, (list, tuple, dict)):
        return ()
    return tuple(view for part in inner for view in _images(part))
