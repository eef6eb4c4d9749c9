"""Training without labels: the host's online classifiers rest."""

from __future__ import annotations

from typing import Any, Callable, Dict

from lightning.pytorch import LightningModule
from torch import Tensor

#: The host's steps that end in a classifier's cross-entropy, of the student and of the teacher.
_STEPS = ("_base_shared_step", "_shared_step_momentum")


def rest_classifiers(model: LightningModule) -> None:
    """Makes the online classifiers' losses 0 where no image has a label, whatever the method.

    The host takes the mean cross-entropy over the images that have a label. Where ``data.no_labels`` gives all the
    label -1, that is 0 / 0, and the NaN is added to the method's own loss.

    Args:
        model: of the host, changed in place.
    """
    for name in _STEPS:
        if hasattr(model, name):
            setattr(model, name, _without_loss(getattr(model, name)))


def _without_loss(step: Callable[[Tensor, Tensor], Dict[str, Any]]) -> Any:
    def rested(X: Tensor, targets: Tensor) -> Dict[str, Any]:
        out = step(X, targets)
        if "loss" in out:  # there is no momentum classifier unless it is asked for
            # Still a function of the classifier: DistributedDataParallel wants a gradient, here 0, of every weight.
            out["loss"] = 0 * out["logits"].sum()
        return out

    return rested
