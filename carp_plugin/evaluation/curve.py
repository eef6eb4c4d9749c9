"""Follows the k-NN accuracy of student and teacher during training: the learning curve of figure A.1."""

from __future__ import annotations

from typing import Any, Dict

import torch

from carp_plugin.evaluation.features import FeatureEvaluator
from carp_plugin.training.state import NETWORKS


class KnnCurve:
    """Measures ``knn_student`` and, where the method has a teacher, ``knn_teacher``: top-1 on the validation images, %.

    Training goes on as without it: the random state that loading the images would advance is put back.

    Args:
        evaluator: has the labelled images.
        frequency: epochs between two measurements; the last epoch is measured always. 0 measures never.
    """

    def __init__(self, evaluator: FeatureEvaluator, frequency: int) -> None:
        self.evaluator, self.frequency = evaluator, frequency

    def __call__(self, trainer: Any, module: Any) -> Dict[str, float]:
        """What was measured at the end of an epoch; nothing when it is not due, or on another rank than the first."""
        epoch = trainer.current_epoch + 1
        due = self.frequency and (epoch % self.frequency == 0 or epoch == trainer.max_epochs)
        if not due or not trainer.is_global_zero:
            return {}
        measured = {}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for name, attribute in NETWORKS.items():
                backbone = getattr(module, attribute, None)
                features = backbone is not None and self.evaluator.features(backbone, "")
                if features:
                    measured[f"knn_{name}"] = self.evaluator.knn(features)
        return measured
