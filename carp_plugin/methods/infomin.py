"""InfoMin Aug.: MoCo v2 with stronger views and a second query, made of patches (arXiv 2005.10243)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import omegaconf
import torch
import torch.nn.functional as F

from carp_plugin.host import BaseMomentumMethod, initialize_momentum_params, omegaconf_select
from carp_plugin.host.cfg import plain
from carp_plugin.losses.infomin import infomin_loss_func
from carp_plugin.methods.moco import enqueue, mlp, one_view_each
from carp_plugin.methods.patches import (
    PatchHead,
    check_takes_patches,
    features_of_patches,
    patches_of,
)
from carp_plugin.settings.methods import InfominKwargs
from carp_plugin.settings.reading import read


class InfoMin(BaseMomentumMethod):
    """InfoMin on the host's base for methods with a momentum encoder.

    State besides the weights: the queue and its pointer, which checkpoints hold.
    """

    #: The same on every rank; DistributedDataParallel would send them along at every step.
    _ddp_params_and_buffers_to_ignore = ("queue", "queue_ptr")

    num_crops: int
    num_large_crops: int

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements InfoMin Aug. (https://arxiv.org/abs/2005.10243).

        Extra cfg settings:
            method_kwargs:
                proj_hidden_dim (int): neurons of the heads' hidden layers.
                proj_output_dim (int): D, size of an embedding.
                temperature (float): temperature for the softmax in the contrastive losses.
                beta (float): weight of the patches' loss.
                queue_size (int): K, keys that are kept.
                symmetric (bool): both views are query and key, each with a queue of its own.
                jigsaw_size, jigsaw_min_scale, patch_size: of the patches, for the loader.
            momentum:
                base_tau, final_tau (float): 0.999 throughout in the release.
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.temperature: float = kwargs.temperature
        self.beta: float = kwargs.beta
        self.queue_size: int = kwargs.queue_size
        self.symmetric: bool = kwargs.symmetric
        check_takes_patches(self.backbone, kwargs.patch_size, cfg.backbone.name)

        # projector, and the head of the patches
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.projector = mlp(*sizes)
        self.patch_head = PatchHead(mlp(*sizes), kwargs.proj_output_dim)

        # momentum projector
        self.momentum_projector = mlp(*sizes)
        initialize_momentum_params(self.projector, self.momentum_projector)

        # one queue for each view that is a key, from a generator of its own: the same on every rank
        self.queue: torch.Tensor
        self.queue_ptr: torch.Tensor
        generator = torch.Generator().manual_seed(omegaconf_select(cfg, "seed", 5))
        shape = (1 + self.symmetric, self.queue_size, kwargs.proj_output_dim)
        rows = torch.randn(*shape, generator=generator)
        self.register_buffer("queue", F.normalize(rows, dim=-1))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

        #: Of the last step, until they enter the queue; and the view of the keys, while a step lasts.
        self._keys: Optional[torch.Tensor] = None
        self.key_view: Optional[torch.Tensor] = None

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

        cfg.momentum = omegaconf_select(cfg, "momentum", {})
        cfg = super(InfoMin, InfoMin).add_and_assert_specific_cfg(cfg)
        kwargs = read(InfominKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
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

    @property
    def momentum_pairs(self) -> List[Tuple[Any, Any]]:
        """Adds the projector to the parent's momentum pairs.

        Returns:
            List[Tuple[Any, Any]]: list of momentum pairs.
        """

        return super().momentum_pairs + [(self.projector, self.momentum_projector)]

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the projector.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the unit queries "z" (N, D).
        """

        out = super().forward(X)
        out.update({"z": F.normalize(self.projector(out["feats"]), dim=-1)})
        return out

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the momentum backbone and projector, in one direction of the view of the keys.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the unit keys "z" (N, D).
        """

        out = super().momentum_forward(X if self.key_view is None else self.key_view)
        out.update({"z": F.normalize(self.momentum_projector(out["feats"]), dim=-1)})
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step for InfoMin reusing BaseMomentumMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of two batches of images and one of patches (N, 9, 3, p, p).
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of InfoMin and classification loss.
        """

        batch, patches = patches_of(batch, "infomin")
        if self.symmetric:
            out = super().training_step(batch, batch_idx)
            keys = out["momentum_z"][::-1]
        else:
            indexes, (query_view, key_view), targets = batch
            with one_view_each(self, key_view):
                out = super().training_step([indexes, [query_view], targets], batch_idx)
            keys = out["momentum_z"]
        class_loss = out["loss"]
        feats = features_of_patches(self.backbone, patches, not self.no_channel_last)
        jigsaw = F.normalize(self.patch_head(feats), dim=-1)

        # ------- contrastive losses of image and patches -------
        losses = [
            infomin_loss_func(query, jigsaw, key, queue, self.temperature, self.beta)
            for query, key, queue in zip(out["z"], keys, self.queue.clone())
        ]
        loss = torch.stack(losses).mean()
        self._keys = torch.stack(list(keys), dim=1).detach()

        self.log("train_nce_loss", loss.detach(), on_epoch=True, sync_dist=True)
        return loss + class_loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Sequence[Any], batch_idx: int) -> None:
        """The host's momentum update; then the keys of all ranks take the place of the oldest.

        They do so here and not in the step, so that keys of a step that was not taken never enter.

        Args:
            outputs (Any): of the training step.
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y].
            batch_idx (int): index of the batch.
        """

        super().on_train_batch_end(outputs, batch, batch_idx)
        if self._keys is None:
            return
        enqueue(self.queue.transpose(0, 1), self.queue_ptr, self._keys)
        self._keys = None
