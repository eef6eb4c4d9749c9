"""SwAV of more than two views, which 1.0.2's takes for granted; the current host has it."""

from __future__ import annotations

from typing import Any, List, Sequence

import torch
import torch.nn.functional as F
from solo.methods.swav import SwAV as _TwoViews


class SwAV(_TwoViews):
    """1.0.2's SwAV, and with small views what its paper (section 3.4) adds.

    The assignments of the large views, made with the queue if there is one, are predicted from every other view.
    """

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The loss of a batch of [indexes, views, labels], the online classifier's added; pushes into the queue."""
        if not self.multicrop:
            return super().training_step(batch, batch_idx)
        out = super(_TwoViews, self).training_step(batch, batch_idx)
        embeddings = [F.normalize(self.projector(feats)) for feats in out["feats"]]
        scores = [self.prototypes(z) for z in embeddings]
        assignments = self.get_assignments(scores[: self.num_large_crops])
        loss = predicted(assignments, scores, self.temperature)
        if self.queue_size > 0:
            newest = torch.stack(embeddings[: self.num_large_crops]).detach()
            rows = newest.size(1)
            self.queue[:, rows:] = self.queue[:, :-rows].clone()
            self.queue[:, :rows] = newest
        self.log("train_swav_loss", loss, on_epoch=True, sync_dist=True)
        return loss + out["loss"]


def predicted(
    assignments: List[torch.Tensor], scores: List[torch.Tensor], temperature: float
) -> torch.Tensor:
    """Cross-entropy of each assignment (N, K) with the softmax of every other view's scores (N, K), averaged."""
    terms = [
        -(assigned * F.log_softmax(score / temperature, dim=1)).sum(dim=1).mean()
        for i, assigned in enumerate(assignments)
        for j, score in enumerate(scores)
        if i != j
    ]
    return torch.stack(terms).mean()
