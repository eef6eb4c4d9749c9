"""CARL: consistent assignment of views to prototypes, by one network without a teacher (arXiv 2112.15421)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import omegaconf
import torch
import torch.nn as nn

from carp_plugin.host import BaseMethod
from carp_plugin.host.cfg import plain
from carp_plugin.losses.carl import carl_loss_func
from carp_plugin.methods.carp import Prototypes, WatchesAssignments
from carp_plugin.settings.methods import CarlKwargs
from carp_plugin.settings.reading import read


class CARL(WatchesAssignments, BaseMethod):
    """CARL on the host's base for methods without a momentum encoder."""

    #: For the collapse monitor: one block of all prototypes that stays the same, and the consistency's weight.
    partition, consistency_weight = "constant", 1.0

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements CARL (https://arxiv.org/abs/2112.15421).

        Extra cfg settings:
            method_kwargs:
                proj_hidden_dim (int): neurons of the projector's hidden layers.
                proj_output_dim (int): D, size of an embedding.
                proj_layers (int): linear layers of the projector.
                num_prototypes (int): K.
                entropy_weight (float): lambda of the entropy gap.
                first_entropy_weight (float): lambda at the first step; None for one lambda.
                entropy_epochs (float): epochs in which lambda moves from the first to the last.
                normalize_prototypes (bool): unit rows, or a plain linear layer.
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.num_prototypes: int = kwargs.num_prototypes
        self.partition_size: int = kwargs.num_prototypes
        self.last_entropy_weight: float = kwargs.entropy_weight
        self.first_entropy_weight: Optional[float] = kwargs.first_entropy_weight
        self.entropy_epochs: float = kwargs.entropy_epochs
        #: Of the last training step.
        self.entropy_weight: float = kwargs.entropy_weight
        #: Of the last training step, as CARP's.
        self.step_metrics: Dict[str, torch.Tensor] = {}
        self.step_embeddings: Optional[torch.Tensor] = None

        # projector
        hidden, layers = kwargs.proj_hidden_dim, []
        widths = [self.features_dim] + [hidden] * (kwargs.proj_layers - 1)
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.GELU()]
        self.projector = nn.Sequential(*layers, nn.Linear(widths[-1], kwargs.proj_output_dim))
        for layer in self.projector:  # as CARP's
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

        self.prototypes = Prototypes(
            kwargs.num_prototypes, kwargs.proj_output_dim, kwargs.normalize_prototypes
        )
        self.register_buffer("permutation", torch.arange(self.num_prototypes), persistent=False)

    @staticmethod
    def add_and_assert_specific_cfg(cfg: omegaconf.DictConfig) -> omegaconf.DictConfig:
        """Adds method specific default values/checks for config.

        Args:
            cfg (omegaconf.DictConfig): DictConfig object.

        Returns:
            omegaconf.DictConfig: same as the argument, used to avoid errors.

        Raises:
            UserError: an unknown key, or a value out of range.
        """

        cfg = super(CARL, CARL).add_and_assert_specific_cfg(cfg)
        kwargs = read(CarlKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        for key, value in kwargs.model_dump().items():
            cfg.method_kwargs[key] = value
        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """Adds projector and prototypes to the parent's learnable parameters.

        Returns:
            List[dict]: list of learnable parameters.
        """

        extra_learnable_params = [
            {"name": "projector", "params": self.projector.parameters()},
            {"name": "prototypes", "params": self.prototypes.parameters()},
        ]
        return super().learnable_params + extra_learnable_params

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the projector.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the embeddings "z" (N, D).
        """

        out = super().forward(X)
        out.update({"z": self.projector(out["feats"])})
        return out

    def multicrop_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass for the small crops.

        Args:
            X (torch.Tensor): batch of images (N, 3, h, w).

        Returns:
            Dict[str, Any]: the outputs of the parent and the embeddings "z" (N, D).
        """

        out = super().multicrop_forward(X)
        out.update({"z": self.projector(out["feats"])})
        return out

    def weight_at(self, epochs: float) -> float:
        """Lambda after so many epochs, of which a part may be over."""
        if self.first_entropy_weight is None:
            return self.last_entropy_weight
        done = min(1.0, epochs / self.entropy_epochs)
        return (1 - done) * self.first_entropy_weight + done * self.last_entropy_weight

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step for CARL reusing BaseMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of size num_crops containing batches of images.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of CARL and classification loss.
        """

        out = super().training_step(batch, batch_idx)
        class_loss, z = out["loss"], out["z"]

        # ------- consistency of views and entropy of their mean assignment -------
        prototypes = self.prototypes()
        terms = carl_loss_func(z, prototypes, self.num_large_crops)
        if self.first_entropy_weight is not None:
            of_epoch = batch_idx / self.trainer.num_training_batches
            self.entropy_weight = self.weight_at(self.trainer.current_epoch + of_epoch)
        loss = terms.consistency + self.entropy_weight * terms.entropy_gap

        metrics = {
            "train_carl_loss": loss.detach(),
            "train_consistency": terms.consistency.detach(),
            "train_entropy_gap": terms.entropy_gap.detach(),
        }
        self.log_dict(metrics, on_epoch=True, sync_dist=True)
        watched = self.watch(z[: self.num_large_crops], prototypes, self.permutation)
        self.step_metrics = {**metrics, **watched, "train_class_loss": class_loss.detach()}
        self.step_embeddings = torch.cat(list(z)).detach()

        return loss + class_loss
