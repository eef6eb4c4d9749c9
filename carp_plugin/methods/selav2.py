"""SeLa v2: self-labelling by optimal transport (Caron et al., NeurIPS 2020, arXiv 2006.09882, appendix D)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import omegaconf
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from carp_plugin.host import BaseMethod, omegaconf_select
from carp_plugin.host.cfg import plain
from carp_plugin.losses.ranks import own_rows, rank, world_size
from carp_plugin.losses.selav2 import (
    Plan,
    hard_labels,
    selav2_loss_func,
    sinkhorn_plan,
    soft_labels,
)
from carp_plugin.methods.whole_set import (
    check_finite,
    embeddings_of_all,
    from_all,
    leaving_statistics,
    size_of,
    still_transform,
)
from carp_plugin.partition import random_partition
from carp_plugin.settings.methods import SelaKwargs
from carp_plugin.settings.reading import read
from carp_plugin.terminal import is_main_process, say

#: Spread of unit embeddings over the images below which they are one and the same but for rounding.
_CONSTANT = 1e-4


class SeLav2(BaseMethod):
    """SeLa v2 on the host's base.

    State besides the weights: the last embedding of every image, one of each large view, and the labels of the epoch,
    which a resumed run goes on with.
    """

    #: Every rank holds the same of these; DistributedDataParallel would send them along at every step.
    _ddp_params_and_buffers_to_ignore = (
        "image_memory",
        "image_labels",
        "plan_log_v",
        "plan_prototypes",
        "labels_epoch",
    )

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements SeLa v2 (https://arxiv.org/abs/2006.09882, appendix D).

        Extra cfg settings:
            method_kwargs:
                proj_hidden_dim (int): neurons of the projector's hidden layer.
                proj_output_dim (int): D, size of an embedding.
                num_prototypes (Sequence[int]): K of each head.
                temperature (float): T of the softmax that is trained.
                epsilon (float): entropy of the assignment.
                labels (str): "hard" or "soft".
                sinkhorn_iterations (int): of the assignment, at most.
                sinkhorn_tolerance (float): that ends it.
                normalize_prototypes (bool): unit rows after every step.
                freeze_prototypes_epochs (int): in which prototypes do not move.
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.proj_output_dim: int = kwargs.proj_output_dim
        self.num_prototypes: List[int] = list(kwargs.num_prototypes)
        self.temperature: float = kwargs.temperature
        self.epsilon: float = kwargs.epsilon
        self.labels: str = kwargs.labels
        self.sinkhorn_iterations: int = kwargs.sinkhorn_iterations
        self.sinkhorn_tolerance: float = kwargs.sinkhorn_tolerance
        self.normalize_prototypes: bool = kwargs.normalize_prototypes
        self.freeze_prototypes_epochs: int = kwargs.freeze_prototypes_epochs
        self.label_seed: int = omegaconf_select(cfg, "seed", 5)

        # projector
        self.projector = nn.Sequential(
            nn.Linear(self.features_dim, kwargs.proj_hidden_dim),
            nn.BatchNorm1d(kwargs.proj_hidden_dim),
            nn.ReLU(),
            nn.Linear(kwargs.proj_hidden_dim, kwargs.proj_output_dim),
        )

        # prototypes
        dim = self.proj_output_dim
        self.prototypes = nn.ModuleList(
            [nn.Linear(dim, K, bias=False) for K in self.num_prototypes]
        )
        self._to_unit_rows()

        self.image_memory: Tensor
        self.image_labels: Tensor
        self.plan_log_v: Tensor
        self.plan_prototypes: Tensor
        self.labels_epoch: Tensor
        self._seen: Optional[Tuple[Tensor, Tensor]] = None
        self._said: Set[str] = set()

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

        cfg = super(SeLav2, SeLav2).add_and_assert_specific_cfg(cfg)
        kwargs = read(SelaKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        for key, value in kwargs.model_dump(mode="json").items():
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

    def _embedded(self, out: Dict[str, Any]) -> Dict[str, Any]:
        z = F.normalize(self.projector(out["feats"]), dim=-1)
        out.update({"z": z, "p": [head(z) for head in self.prototypes]})
        return out

    def forward(self, X: Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone, the projector and the prototypes.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent, the unit embeddings "z" (N, D) and, of each head, the cosines
                "p" (N, K).
        """

        return self._embedded(super().forward(X))

    def multicrop_forward(self, X: Tensor) -> Dict[str, Any]:
        """Performs the forward pass for the small crops.

        Args:
            X (torch.Tensor): batch of images (N, 3, h, w).

        Returns:
            Dict[str, Any]: as of :meth:`forward`, without logits.
        """

        return self._embedded(super().multicrop_forward(X))

    # ------------------------------------------------------------------------------ the assignment

    def on_train_start(self) -> None:
        """Makes room for the embeddings and the labels of all training images.

        Raises:
            UserError: a loader that knows no images.
        """
        super().on_train_start()
        images, dim = size_of(self.trainer), self.proj_output_dim
        heads, total = len(self.num_prototypes), sum(self.num_prototypes)
        empty = {
            "image_memory": torch.zeros(self.num_large_crops, images, dim),
            "labels_epoch": torch.tensor(-1),
        }
        if self.labels == "hard":
            empty["image_labels"] = torch.zeros(heads, images, dtype=torch.int32)
        else:
            empty["plan_log_v"] = torch.zeros(total)
            empty["plan_prototypes"] = torch.zeros(total, dim)
        for name, tensor in empty.items():
            self.register_buffer(name, tensor.to(self.device))

    def on_train_epoch_start(self) -> None:
        """Labels all training images anew, unless the epoch is one that was resumed within."""
        epoch = int(self.labels_epoch)
        if epoch == self.current_epoch:
            return
        if epoch < 0:
            self.image_memory[:] = self._first_embeddings()
        self._assign()
        self.labels_epoch.fill_(self.current_epoch)

    def _first_embeddings(self) -> Tensor:
        """Unit embeddings (n, D) of all training images as they are, with the batches' own statistics.

        Without them a random network would point the same way for every image.
        """
        with leaving_statistics(self.backbone, self.projector):
            return embeddings_of_all(
                self.trainer.train_dataloader,
                still_transform(self.cfg),
                lambda X: F.normalize(self.projector(self.backbone(X)), dim=-1),
                next(self.projector.parameters()),
            ).float()

    def _assign(self) -> None:
        """The optimal transport of all images to the prototypes of each head, and the labels that follow from it."""
        check_finite(self.image_memory.flatten(0, 1), "selav2")
        found: Dict[str, List[float]] = {"error": [], "used": [], "largest": []}
        at = 0
        for h, head in enumerate(self.prototypes):
            rows_nD = self.image_memory[h % self.num_large_crops]
            C_KD = head.weight.detach().float()  # type: ignore[operator]
            plan = sinkhorn_plan(
                rows_nD[rank() :: world_size()],
                C_KD,
                self.epsilon,
                max_iterations=self.sinkhorn_iterations,
                tolerance=self.sinkhorn_tolerance,
            )
            labels_n = self._labels(h, rows_nD, C_KD, plan)
            if self.labels == "hard":
                self.image_labels[h] = labels_n.to(self.image_labels)
            else:
                own = slice(at, at + len(C_KD))
                self.plan_log_v[own], self.plan_prototypes[own] = plan.log_v_K, C_KD
            at += len(C_KD)
            share_K = torch.bincount(labels_n, minlength=len(C_KD)) / len(labels_n)
            found["error"].append(plan.error)
            found["used"].append(float((share_K > 0).float().mean()))
            found["largest"].append(float(share_K.max()))
        self._tell(found)

    def _labels(self, h: int, rows_nD: Tensor, C_KD: Tensor, plan: Plan) -> Tensor:
        """The largest entry of every image's row: (n,) int64, by all ranks together."""
        images = len(rows_nD)
        places = own_rows(-(-images // world_size()), rows_nD.device).remainder_(images)
        order_K = random_partition(self.label_seed + h, self.current_epoch, len(C_KD), C_KD.device)
        own = hard_labels(rows_nD[places], C_KD, self.epsilon, plan.log_v_K, order_K, places)
        return from_all(own)[:images]

    def _tell(self, found: Dict[str, List[float]]) -> None:
        """Logs how equal the clusters are, and says once where they are not."""
        worst = {
            "train_plan_error": max(found["error"]),
            "train_largest_label": max(found["largest"]),
        }
        logged = {**worst, "train_labels_used": min(found["used"])}
        self.log_dict(logged, on_step=False, on_epoch=True, sync_dist=True)
        spread = self.image_memory.std(dim=1).square().sum(dim=-1).sqrt().min()
        if float(spread) < _CONSTANT:
            self._say(
                "warning: the embeddings are the same for every image, so labels are dealt out in turn and say nothing."
            )
        elif worst["train_plan_error"] > max(self.sinkhorn_tolerance, 0.1):
            self._say(
                f"warning: after {self.sinkhorn_iterations} iterations a cluster's share is still off by "
                f"{worst['train_plan_error']:.0%}; method_kwargs.sinkhorn_iterations={10 * self.sinkhorn_iterations} "
                "takes it further."
            )
        elif self.labels == "hard" and worst["train_largest_label"] > 0.5:
            self._say(
                f"warning: one label has {worst['train_largest_label']:.0%} of the images, for the largest entry of a "
                f"nearly uniform row says little; method_kwargs.epsilon={self.epsilon / 10:g} sharpens the plan."
            )

    def _say(self, sentence: str) -> None:
        kind = sentence[:24]
        if kind not in self._said and is_main_process():
            say(sentence, "yellow")
        self._said.add(kind)

    def _labels_of(self, indexes_N: Tensor) -> List[Tensor]:
        """What the images of a batch are trained on, of each head: (N,) or, soft, (N, K)."""
        if self.labels == "hard":
            return list(self.image_labels[:, indexes_N].long())
        plans = zip(
            self.plan_prototypes.split(self.num_prototypes),
            self.plan_log_v.split(self.num_prototypes),
        )
        return [
            soft_labels(
                self.image_memory[h % self.num_large_crops][indexes_N], C_KD, self.epsilon, log_v_K
            )
            for h, (C_KD, log_v_K) in enumerate(plans)
        ]

    # ------------------------------------------------------------------------------ the training

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Training step for SeLa v2 reusing BaseMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of size num_crops containing batches of images.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of SeLa and classification loss.
        """

        indexes = batch[0]
        out = super().training_step(batch, batch_idx)
        class_loss = out["loss"]

        cosines = [torch.stack(views) for views in zip(*out["p"])]
        loss = selav2_loss_func(cosines, self._labels_of(indexes), self.temperature)
        large = torch.stack(out["z"][: self.num_large_crops])
        self._seen = indexes, large.detach()

        self.log("train_sela_loss", loss.detach(), on_epoch=True, sync_dist=True)
        return loss + class_loss

    def on_after_backward(self) -> None:
        """Prototypes do not move in the first epochs."""
        if self.current_epoch < self.freeze_prototypes_epochs:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Sequence[Any], batch_idx: int) -> None:
        """Keeps the embeddings of all ranks for the next assignment, and prototypes at unit length.

        Args:
            outputs (Any): of the training step.
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y].
            batch_idx (int): index of the batch.
        """

        super().on_train_batch_end(outputs, batch, batch_idx)
        if self._seen is None:
            return
        indexes_N, large_VND = self._seen
        self._seen = None
        rows_PVD = from_all(large_VND.transpose(0, 1).float())
        self.image_memory[:, from_all(indexes_N)] = rows_PVD.transpose(0, 1)
        if self.normalize_prototypes:
            self._to_unit_rows()

    @torch.no_grad()
    def _to_unit_rows(self) -> None:
        for head in self.prototypes:
            weight: Any = head.weight
            weight.copy_(F.normalize(weight, dim=1))
