"""PIRL: an image, and patches of it, agree with what a memory holds of the image (arXiv 1912.01991)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import omegaconf
import torch
import torch.nn as nn
import torch.nn.functional as F

from carp_plugin.errors import UserError
from carp_plugin.host import BaseMethod, omegaconf_select
from carp_plugin.host.cfg import plain
from carp_plugin.losses.pirl import log_normaliser, moved_memory, pirl_loss_func
from carp_plugin.losses.ranks import gather_rows, own_rows
from carp_plugin.methods.moco import mlp
from carp_plugin.methods.patches import (
    PatchHead,
    check_takes_patches,
    features_of_patches,
    patches_of,
)
from carp_plugin.settings.methods import PirlKwargs
from carp_plugin.settings.reading import read


class PIRL(BaseMethod):
    """PIRL on the host's base for methods without a momentum encoder.

    State besides the weights: the memory, one row for each training image, and log Z, which checkpoints hold.
    """

    #: The same on every rank; DistributedDataParallel would send them along at every step.
    _ddp_params_and_buffers_to_ignore = ("memory_bank", "log_z")

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements PIRL (https://arxiv.org/abs/1912.01991).

        Extra cfg settings:
            method_kwargs:
                head (str): "linear" or "mlp".
                proj_hidden_dim (int): of the mlp, neurons of the hidden layer.
                proj_output_dim (int): D, size of an embedding and of a row of the memory.
                loss (str): "nce" or "cross_entropy".
                temperature (float): T.
                patch_weight (float): of the patches' loss.
                num_negatives (int): K, rows of the memory that are drawn with replacement.
                shared_negatives (bool): one draw for all images of a step, or one for each.
                memory_momentum (float): how much of a row stays when its image was seen.
                jigsaw_size, jigsaw_min_scale, patch_size: of the patches, for the loader.
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.nce: bool = kwargs.loss == "nce"
        self.temperature: float = kwargs.temperature
        self.patch_weight: float = kwargs.patch_weight
        self.num_negatives: int = kwargs.num_negatives
        self.shared_negatives: bool = kwargs.shared_negatives
        self.memory_momentum: float = kwargs.memory_momentum
        self.memory_dim: int = kwargs.proj_output_dim
        self.memory_seed: int = omegaconf_select(cfg, "seed", 5)
        check_takes_patches(self.backbone, kwargs.patch_size, cfg.backbone.name)

        # projector, and the head of the patches
        self.projector = self._projector(kwargs)
        each = self._projector(kwargs)
        if kwargs.head == "mlp":
            each.append(nn.ReLU())
        self.patch_head = PatchHead(each, kwargs.proj_output_dim)

        self.memory_bank: torch.Tensor
        self.log_z: torch.Tensor
        self.register_buffer("log_z", torch.zeros(()))
        #: Numbers and embeddings of the last step's images, until they enter the memory.
        self._seen: Optional[Tuple[torch.Tensor, torch.Tensor]] = None

    def _projector(self, kwargs: omegaconf.DictConfig) -> nn.Sequential:
        if kwargs.head == "mlp":
            return mlp(self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        return nn.Sequential(nn.Linear(self.features_dim, kwargs.proj_output_dim))

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

        cfg = super(PIRL, PIRL).add_and_assert_specific_cfg(cfg)
        kwargs = read(PirlKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        for key, value in kwargs.model_dump().items():
            cfg.method_kwargs[key] = value
        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """Adds both heads to the parent's learnable parameters.

        Returns:
            List[dict]: list of learnable parameters.
        """

        extra_learnable_params = [
            {"name": "projector", "params": self.projector.parameters()},
            {"name": "patch_head", "params": self.patch_head.parameters()},
        ]
        return super().learnable_params + extra_learnable_params

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the projector.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the unit embeddings "z" (N, D).
        """

        out = super().forward(X)
        out.update({"z": F.normalize(self.projector(out["feats"]), dim=-1)})
        return out

    def on_train_start(self) -> None:
        """Makes the memory: random unit rows, a function of the seed.

        Raises:
            UserError: the loader knows no images.
        """
        super().on_train_start()
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        if dataset is None:
            raise UserError(
                "pirl keeps a row for each training image, whose numbers NVIDIA DALI's loader does not serve; set "
                "data.format=image_folder."
            )
        rows = torch.rand(len(dataset), self.memory_dim, generator=_generator(self.memory_seed))
        memory = F.normalize(rows.mul_(2).sub_(1), dim=-1)
        self.register_buffer("memory_bank", memory.to(self.log_z))

    def negatives(self, images: int, batch_idx: int) -> torch.Tensor:
        """Rows of the memory: (K, D), or (N, K, D) where each image has its own.

        They are drawn with replacement, an image's own row not left out; the draw is a function of seed, epoch, batch
        and, for an image's own, its place in the batch of all ranks.

        Args:
            images: N.
            batch_idx: index of the batch.
        """
        n, at = len(self.memory_bank), (self.memory_seed, self.trainer.current_epoch, batch_idx)
        if self.shared_negatives:
            drawn = torch.randint(n, (self.num_negatives,), generator=_generator(*at))
        else:
            places = own_rows(images, torch.device("cpu")).tolist()
            drawn = torch.stack(
                [
                    torch.randint(n, (self.num_negatives,), generator=_generator(*at, place))
                    for place in places
                ]
            )
        return self.memory_bank[drawn.to(self.memory_bank.device, non_blocking=True)]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step for PIRL reusing BaseMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of a batch of images and one of patches (N, 9, 3, p, p).
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of PIRL and classification loss.
        """

        batch, patches = patches_of(batch, "pirl")
        indexes = batch[0]
        out = super().training_step(batch, batch_idx)
        class_loss, (image,) = out["loss"], out["z"]
        feats = features_of_patches(self.backbone, patches, not self.no_channel_last)
        jigsaw = F.normalize(self.patch_head(feats), dim=-1)

        # ------- image and patches against the memory -------
        memory, n = self.memory_bank[indexes], len(self.memory_bank)
        negatives = self.negatives(len(image), batch_idx)
        if self.nce and self.trainer.global_step == 0 and batch_idx == 0:
            found = log_normaliser(image, memory, negatives, self.temperature, n)
            self.log_z.copy_(found)
        loss = pirl_loss_func(
            image,
            jigsaw,
            memory,
            negatives,
            self.temperature,
            self.patch_weight,
            log_z=self.log_z if self.nce else None,
            images=n,
        )
        self._seen = (indexes, image.detach())

        self.log("train_pirl_loss", loss.detach(), on_epoch=True, sync_dist=True)
        return loss + class_loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Sequence[Any], batch_idx: int) -> None:
        """Moves the rows of all ranks' images in the memory; not in the step, which may turn out not to be taken.

        Args:
            outputs (Any): of the training step.
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y].
            batch_idx (int): index of the batch.
        """

        super().on_train_batch_end(outputs, batch, batch_idx)
        if self._seen is None:
            return
        indexes, embeddings = (gather_rows(part) for part in self._seen)
        self._seen = None
        rows = moved_memory(self.memory_bank[indexes], embeddings, self.memory_momentum)
        self.memory_bank[indexes] = rows


def _generator(*numbers: int) -> torch.Generator:
    """Of torch on the CPU, seeded by numbers >= 0."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
