"""solo-learn 1.0.2's weighted k-NN classifier with the current one's normalisation."""

from __future__ import annotations

from typing import Tuple

import torch
import torch.nn.functional as F
from solo.utils.knn import WeightedKNNClassifier as _WeightedKNNClassifier


class WeightedKNNClassifier(_WeightedKNNClassifier):
    """Weighted k-NN; cosine features are l2-normalised here, as 1.0.2 forgot to do.

    See the host's class for the arguments.
    """

    @torch.no_grad()
    def compute(self) -> Tuple[float, float]:
        """Accuracy at 1 and at 5 in percent; (-1, -1) where a bank is empty."""
        if not self.train_features or not self.test_features:
            return -1.0, -1.0
        if self.distance_fx == "cosine":
            self.train_features = [F.normalize(features) for features in self.train_features]
            self.test_features = [F.normalize(features) for features in self.test_features]
        return super().compute()
