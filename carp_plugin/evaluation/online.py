"""What a pretraining measures of itself: features before the first step, on the way (figure A.1), and at the end."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple, cast

import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from carp_plugin.evaluation.features import FeatureEvaluator, linear_accuracy
from carp_plugin.settings.pretraining import Evaluation, Pretraining
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.plan import Plan
from carp_plugin.training.report import Row
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


class OnlineEvaluation:
    """The rows of the table that a pretraining ends with.

    Args:
        loaders: of labelled images, or None: then nothing is measured.
        evaluation: what is to be measured.
        device: where features are computed.

    Attributes:
        curve: measures at the end of epochs.
        k: neighbours; all training images where there are fewer.
    """

    def __init__(
        self,
        loaders: Optional[Tuple[DataLoader, DataLoader]],
        evaluation: Evaluation,
        device: torch.device,
    ) -> None:
        wanted = evaluation.enabled and is_main_process()
        bank = len(loaders[0].dataset) if loaders else evaluation.k  # type: ignore[arg-type]
        self.k = min(evaluation.k, bank)
        if self.k < evaluation.k and wanted:
            said = f"evaluation.k={evaluation.k} is more than the {bank} training images"
            say(f"warning: {said}: the {self.k} of them vote.", "yellow")
        self.evaluator = FeatureEvaluator(
            loaders if wanted else None, device, self.k, evaluation.temperature
        )
        self.curve = KnnCurve(self.evaluator, evaluation.frequency)

    def before(self, model: Any, settings: Pretraining, plan: Plan) -> Row:
        """The backbone before the first step; its linear layer is trained on features computed once."""
        name = "random, before training"
        if settings.initial_checkpoint is not None:
            name = "given, before training"
        features = self.evaluator.features(cast(nn.Module, model.backbone), "the random backbone")
        if features is None:
            return Row(name, None, None)
        accuracy = linear_accuracy(
            *features,
            epochs=settings.max_epochs,
            batch_size=settings.optimizer.batch_size,
            lr=plan.classifier_lr / settings.accumulate_grad_batches,  # its batches are one by one
            optimizer=settings.optimizer.name,
            seed=settings.seed,
        )
        return Row(name, self.evaluator.knn(features), accuracy)

    def after(self, model: Any, last_epoch: Mapping[str, float]) -> List[Row]:
        """Student, and teacher where the method has one; the linear column is the online classifier's.

        Args:
            model: the method.
            last_epoch: metrics of the last epoch.
        """
        rows = []
        for name, attribute in NETWORKS.items():
            backbone = getattr(model, attribute, None)
            if backbone is None:
                continue
            knn = last_epoch.get(f"knn_{name}")  # measured after the last epoch already
            if knn is None:
                features = self.evaluator.features(backbone, f"the {name}")
                knn = None if features is None else self.evaluator.knn(features)
            metric = "val_acc1" if name == "student" else "momentum_val_acc1"
            rows.append(Row(name, knn, last_epoch.get(metric)))
        return rows
