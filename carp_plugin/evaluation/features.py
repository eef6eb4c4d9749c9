"""What a frozen backbone's features are worth: k-NN and a linear layer on features computed once."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader

from carp_plugin.evaluation.protocols.knn import weighted_knn
from carp_plugin.evaluation.store import Features, extract


def knn_accuracy(
    train: Features, val: Features, k: int = 20, temperature: float = 0.07
) -> Tuple[float, float]:
    """Accuracy of the weighted k-NN classifier of appendix C.3.

    Args:
        train: the bank.
        val: the queries.
        k: number of neighbours; all of a bank that is smaller.
        temperature: tau of the votes exp(similarity / tau); cosine similarity.

    Returns:
        Tuple[float, float]: top-1 and top-5 accuracy in percent.
    """
    k = min(k, len(train.feats))
    found = weighted_knn(train, val, [k], temperature)
    return found.top1[k], found.top5[k]


def linear_accuracy(
    train: Features,
    val: Features,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    optimizer: str,
    seed: int,
) -> float:
    """Accuracy of a linear layer trained on fixed features with the settings of an online classifier.

    Args:
        train: features the layer is trained on.
        val: features it is measured on.
        epochs: passes over ``train``.
        batch_size: images a step.
        lr: learning rate, constant but for a cosine decay to 0.
        optimizer: name of the run's optimizer; LARS means SGD with momentum here.
        seed: of the layer and of the order of the images; the global random state is untouched.

    Returns:
        float: top-1 accuracy on ``val`` in percent.
    """
    classes = int(max(train.targets.max(), val.targets.max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train.feats.shape[1], classes)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        kwargs: Dict[str, Any] = {} if optimizer in kinds else {"momentum": 0.9}
        solver = kinds.get(optimizer, torch.optim.SGD)(
            layer.parameters(), lr=lr, weight_decay=0, **kwargs
        )
        steps = max(1, len(train.feats) // batch_size) * epochs
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, steps)
        for _ in range(epochs):
            order = torch.randperm(len(train.feats))
            for batch in order[: len(order) - len(order) % batch_size or None].split(batch_size):
                solver.zero_grad()
                F.cross_entropy(layer(train.feats[batch]), train.targets[batch]).backward()
                solver.step()
                schedule.step()
    with torch.no_grad():
        return float((layer(val.feats).argmax(dim=1) == val.targets).float().mean() * 100)


class FeatureEvaluator:
    """Evaluates backbones on the same labelled images.

    Args:
        loaders: training and validation loaders, or None where there are no labels: then nothing is evaluated.
        device: where features are computed.
        k: neighbours.
        temperature: of the k-NN votes.
    """

    def __init__(
        self,
        loaders: Optional[Tuple[DataLoader, DataLoader]],
        device: torch.device,
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        self.loaders, self.device, self.k, self.temperature = loaders, device, k, temperature

    def features(self, backbone: nn.Module, name: str) -> Optional[Tuple[Features, Features]]:
        """Features of the training and the validation images, or None without labels."""
        if self.loaders is None:
            return None
        train, val = self.loaders
        backbone = backbone.to(self.device)
        return (
            extract(backbone, train, self.device, f"features of {name}, training images"),
            extract(backbone, val, self.device, f"features of {name}, validation images"),
        )

    def knn(self, features: Tuple[Features, Features]) -> float:
        """Top-1 k-NN accuracy in percent."""
        return knn_accuracy(*features, k=self.k, temperature=self.temperature)[0]
