"""Watches for collapse: what the loss does not tell, once an epoch, and a sentence when images stop mattering."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from carp_plugin.losses.collapse import CollapseValues, collapse_values, diagnose
from carp_plugin.losses.statistics import effective_rank
from carp_plugin.terminal import say

#: A verdict is on the end of an epoch, its last quarter and no more steps than these: an epoch's beginning may be of
#: another state, and the first epoch's always is, near uniform.
END_SHARE, END_STEPS = 4, 32

#: Rows of features whose effective rank is taken.
FEATURE_ROWS = 512

_TERMS = ("train_consistency", "train_entropy_gap", "train_information")


class CollapseMonitor(Callback):
    """Logs the effective rank of the features and judges, at the end of every epoch, whether training has collapsed.

    Of any method of the host: ``train_feature_rank``, RankMe (Garrido et al. 2023) of the backbone's features of the
    last ``FEATURE_ROWS`` training images of the epoch, one view of each, as the steps saw them;
    ``train_feature_rows`` is how many rows there were, and with the features' dimension it bounds the rank. And
    ``train_z_std``, that of the unit embeddings of the last step, from 0 to 1 / sqrt(D), where the method has a
    projector and does not log it itself.

    Of CARP and CARL, whose steps leave their terms and statistics in ``step_metrics``: the verdict. It compares
    consistency, entropy gap and information of the epoch's end with the values of uniform, one-hot and constant outputs
    (:func:`carp_plugin.losses.collapse.diagnose`) and says each kind once, with what to change; ``train_collapse`` is
    1 after an epoch with a verdict, else 0. Uniform assignments are where training begins, so they are judged from the
    second epoch on.

    Across ranks the images of rank 0 stand for all; its numbers and its verdict are every rank's, by one broadcast an
    epoch. Stands before what keeps metrics and writes checkpoints, which then hold the epoch's verdict.

    Args:
        stop: ends training after an epoch with a verdict; its checkpoint is written.

    Attributes:
        signs: sentences about the last epoch that was judged; empty where nothing is wrong.
        stopped: whether training was ended.
    """

    def __init__(self, stop: bool = False) -> None:
        self.stop, self.stopped = stop, False
        self.signs: List[str] = []
        self._said: List[str] = []
        self._steps = 0
        self._end: Deque[Dict[str, Tensor]] = deque(maxlen=END_STEPS)
        self._features: Deque[Tensor] = deque()
        self._embeddings: Optional[Tensor] = None
        self._views = 0  # of this step that passed the classifier; -1 outside a training step
        self._hooks: List[Any] = []

    def state_dict(self) -> Dict[str, Any]:
        """Plain lists and tensors, for checkpoints that are read with ``weights_only``."""
        return {
            "signs": self.signs,
            "said": self._said,
            "steps": self._steps,
            "end": [{key: value.cpu() for key, value in step.items()} for step in self._end],
            "features": [rows.cpu() for rows in self._features],
            "embeddings": None if self._embeddings is None else self._embeddings.cpu(),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Goes on within the epoch where the checkpoint was written within one."""
        self.signs, self._said = list(state_dict["signs"]), list(state_dict["said"])
        self._steps, self._embeddings = state_dict["steps"], state_dict["embeddings"]
        self._end = deque(state_dict["end"], maxlen=END_STEPS)
        self._features = deque(state_dict["features"])

    # ------------------------------------------------------------------------------ step by step

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Looks at what the online classifier is given, the features of every method, and at the projector's output."""
        if not trainer.is_global_zero:
            return
        self._hooks.append(module.classifier.register_forward_pre_hook(self._see_features))
        if isinstance(getattr(module, "projector", None), torch.nn.Module):
            self._hooks.append(module.projector.register_forward_hook(self._see_embeddings))

    def on_train_batch_start(self, trainer: Any, module: Any, *batch: Any) -> None:
        self._views = 0

    def _see_features(self, classifier: Any, inputs: Tuple[Tensor, ...]) -> None:
        """Keeps the features of the first view, where they are: copying them here would make an accelerator wait."""
        self._views += self._views >= 0
        if self._views != 1:
            return
        self._features.append(inputs[0].detach())
        while sum(map(len, self._features)) - len(self._features[0]) >= FEATURE_ROWS:
            self._features.popleft()

    def _see_embeddings(self, projector: Any, inputs: Any, output: Any) -> None:
        if self._views >= 0 and isinstance(output, Tensor) and output.ndim == 2:
            self._embeddings = output.detach()

    def on_train_batch_end(self, trainer: Any, module: Any, *batch: Any) -> None:
        self._views = -1
        metrics = getattr(module, "step_metrics", None)
        if metrics and trainer.is_global_zero:
            self._steps += 1
            self._end.append({key: metrics[key] for key in _TERMS})

    # -------------------------------------------------------------------------- at the epoch's end

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Logs, judges, says and, if asked to, stops; the same on every rank."""
        own = "train_z_std" in trainer.callback_metrics
        seen = self._of_epoch(own) if trainer.is_global_zero else None
        metrics, end = trainer.strategy.broadcast(seen)
        if end:
            self._judge(trainer, module, end)
            metrics["train_collapse"] = float(bool(self.signs))
        module.log_dict(metrics, sync_dist=True, batch_size=1)
        self._steps, self._embeddings = 0, None
        self._end.clear()
        self._features.clear()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Takes its eyes off the module."""
        while self._hooks:
            self._hooks.pop().remove()

    def _of_epoch(self, z_std_is_logged: bool) -> Tuple[Dict[str, float], Dict[str, float]]:
        """The metrics to log, and the means of the terms over the end of the epoch."""
        metrics = {}
        if self._features:
            # those that a checkpoint brought back are on the CPU
            rows = torch.cat([some.float().cpu() for some in self._features])[-FEATURE_ROWS:]
            metrics["train_feature_rank"] = effective_rank(rows)
            metrics["train_feature_rows"] = float(len(rows))
        if self._embeddings is not None and not z_std_is_logged:
            unit = F.normalize(self._embeddings.float(), dim=-1)
            metrics["train_z_std"] = float(unit.std(dim=0, correction=0).mean())
        last = list(self._end)[-max(1, math.ceil(self._steps / END_SHARE)) :]
        end = {
            key: float(torch.stack([step[key].cpu() for step in last]).mean())
            for key in _TERMS
            if last
        }
        return metrics, end

    def _judge(self, trainer: Any, module: Any, end: Dict[str, float]) -> None:
        self.signs = []
        values = values_of(module)
        terms = [end[key] for key in _TERMS]
        kind = diagnose(
            *terms, partition_size=module.partition_size, images=module.batch_size, values=values
        )
        if kind is None or (kind == "uniform" and trainer.current_epoch == 0):
            return
        images = module.batch_size * trainer.world_size
        sign = sentence(kind, *terms, carp=module, values=values, images=images)
        self.signs = [sign]
        if kind not in self._said:
            self._said.append(kind)
            if trainer.is_global_zero:
                say(f"warning: collapse in epoch {trainer.current_epoch}: {sign}", "yellow")
        if self.stop:
            trainer.should_stop = self.stopped = True


def values_of(carp: Any) -> CollapseValues:
    """What the terms of this CARP, or CARL, are where it has collapsed."""
    drawn = carp.partition == "random"
    return collapse_values(
        carp.partition_size,
        carp.consistency_weight,
        carp.entropy_weight,
        carp.num_prototypes if drawn else carp.partition_size,
    )


def sentence(
    kind: str,
    consistency: float,
    entropy_gap: float,
    information: float,
    *,
    carp: Any,
    values: CollapseValues,
    images: int,
) -> str:
    """What a kind of collapse looks like here, and what to change.

    Args:
        kind: "uniform", "one-hot" or "constant".
        consistency: of the end of the epoch, nats.
        entropy_gap: likewise.
        information: likewise.
        carp: the method, for its partition and its weights; CARL has one block of all prototypes.
        values: of :func:`values_of`.
        images: of a batch, over all ranks.
    """
    B, e = carp.partition_size, carp.entropy_weight
    one_block = B == carp.num_prototypes
    whole = one_block and carp.partition != "random"  # as CARL's, which has no key for blocks
    size = "method_kwargs.num_prototypes" if whole else "method_kwargs.partition_size"
    what, terms, change = {
        "uniform": (
            "every image gets every prototype alike",
            values.uniform,
            f"lower method_kwargs.entropy_weight (now {e:g}) or raise optimizer.lr",
        ),
        "one-hot": (
            f"one prototype {'' if one_block else 'of each block '}takes all images",
            values.one_hot,
            f"raise method_kwargs.entropy_weight (now {e:g}) or lower {size} (now {B})",
        ),
        "constant": (
            "every image gets nearly the same assignment",
            values.constant,
            f"lower optimizer.lr or {size} (now {B})",
        ),
    }[kind]
    # A sharp prototype for each image has consistency 0 and a gap of log B - log images.
    apart = e * max(0.0, math.log(B / images))
    if values.constant.loss < apart:
        change = (
            f"lower {size} (now {B}): a constant output costs {values.constant.loss:.2f}, less "
            f"than a prototype of its own for each of the {images} images of a batch, {apart:.2f}"
        )
    return (
        f"{kind} assignments, {what} (information {information:.2g}; consistency {consistency:.2f} and entropy gap "
        f"{entropy_gap:.2f}, in a whole collapse {terms.consistency:.2f} and {terms.entropy_gap:.2f}); {change}."
    )
