"""Supervised training from random weights: the reference of the paper's tables, which sees the labels."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import omegaconf
import torch

from carp_plugin.host import BaseMethod
from carp_plugin.host.cfg import plain
from carp_plugin.settings.methods import SupervisedKwargs
from carp_plugin.settings.reading import read


class Supervised(BaseMethod):
    """Cross-entropy of the host's classifier, of which the gradient reaches the backbone."""

    @staticmethod
    def add_and_assert_specific_cfg(cfg: omegaconf.DictConfig) -> omegaconf.DictConfig:
        """Adds method specific default values/checks for config.

        Args:
            cfg (omegaconf.DictConfig): DictConfig object.

        Returns:
            omegaconf.DictConfig: same as the argument, used to avoid errors.

        Raises:
            UserError: a key in method_kwargs, which has none.
        """

        cfg = super(Supervised, Supervised).add_and_assert_specific_cfg(cfg)
        read(SupervisedKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """The parent's learnable parameters; the classifier's decay as all others do.

        Returns:
            List[dict]: list of learnable parameters.
        """

        groups = super().learnable_params
        for group in groups:
            if group["name"] == "classifier":
                group.pop("weight_decay", None)
        return groups

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the classifier.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent, with "logits" (N, C) that pass on their gradient.
        """

        out = super().forward(X)
        out.update({"logits": self.classifier(out["feats"])})
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step reusing BaseMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of size num_crops containing batches of images.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: cross-entropy, mean over the views.
        """

        return super().training_step(batch, batch_idx)["loss"]
