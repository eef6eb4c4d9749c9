"""SimCLR v2: SimCLR with a deeper head, from the middle of which it is fine-tuned (arXiv 2006.10029)."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import omegaconf
import torch
import torch.nn as nn

from carp_plugin.host import BaseMethod
from carp_plugin.host.cfg import plain
from carp_plugin.losses.simclrv2 import simclrv2_loss_func
from carp_plugin.settings.methods import Simclrv2Kwargs
from carp_plugin.settings.reading import read


def projection_head(
    features: int, hidden: int, output: int, layers: int, batch_norm: bool
) -> nn.Sequential:
    """The head of the authors' release: linear layers with batch norm and ReLU, the last one without ReLU.

    With batch norm no layer has a bias, and the last batch norm has no shift; weights start from N(0, 0.01^2).

    Args:
        features: size of the input.
        hidden: of the layers between.
        output: of the output.
        layers: linear layers, at least 1.
        batch_norm: False makes SimCLR's head: biases, and torch's initial weights.
    """
    widths = [features, *[hidden] * (layers - 1), output]
    built: List[nn.Module] = []
    for number, (before, after) in enumerate(zip(widths, widths[1:]), 1):
        linear = nn.Linear(before, after, bias=not batch_norm)
        built.append(linear)
        if batch_norm:
            nn.init.normal_(linear.weight, std=0.01)
            built.append(nn.BatchNorm1d(after))
        if number < layers:
            built.append(nn.ReLU())
    if batch_norm:
        built[-1].register_parameter("bias", None)
    return nn.Sequential(*built)


class SimCLRV2(BaseMethod):
    """SimCLR v2's pretraining on the host's base for methods without a momentum encoder."""

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements the pretraining of SimCLR v2 (https://arxiv.org/abs/2006.10029).

        Extra cfg settings:
            method_kwargs:
                proj_hidden_dim (int): neurons of the projector's hidden layers.
                proj_output_dim (int): D, size of an embedding.
                proj_layers (int): linear layers of the projector.
                proj_batch_norm (bool): batch norm behind each of them.
                temperature (float): temperature for the softmax in the contrastive loss.
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.temperature: float = kwargs.temperature

        # projector
        self.projector = projection_head(
            self.features_dim,
            kwargs.proj_hidden_dim,
            kwargs.proj_output_dim,
            kwargs.proj_layers,
            kwargs.proj_batch_norm,
        )

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

        cfg = super(SimCLRV2, SimCLRV2).add_and_assert_specific_cfg(cfg)
        kwargs = read(Simclrv2Kwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        for key, value in kwargs.model_dump().items():
            cfg.method_kwargs[key] = value
        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """Adds projector parameters to the parent's learnable parameters.

        Returns:
            List[dict]: list of learnable parameters.
        """

        extra_learnable_params = [{"name": "projector", "params": self.projector.parameters()}]
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

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step for SimCLR v2 reusing BaseMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of size num_crops containing batches of images.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of SimCLR v2 and classification loss.
        """

        out = super().training_step(batch, batch_idx)
        class_loss = out["loss"]
        z1, z2 = out["z"]

        # ------- contrastive loss -------
        nce_loss = simclrv2_loss_func(z1, z2, self.temperature)

        self.log("train_nce_loss", nce_loss, on_epoch=True, sync_dist=True)

        return nce_loss + class_loss
