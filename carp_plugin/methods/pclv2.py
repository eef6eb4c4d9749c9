"""PCL v2: prototypical contrastive learning (Li et al., ICLR 2021, arXiv 2005.04966)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import omegaconf
import torch
import torch.nn.functional as F
from torch import Tensor

from carp_plugin.errors import UserError
from carp_plugin.host import BaseMomentumMethod, initialize_momentum_params, omegaconf_select
from carp_plugin.host.cfg import plain
from carp_plugin.losses.info_nce import info_nce_func
from carp_plugin.losses.pclv2 import (
    concentration_func,
    negatives_of,
    prototype_loss_func,
)
from carp_plugin.losses.ranks import own_rows, rank, world_size
from carp_plugin.methods.moco import enqueue, mlp, one_view_each
from carp_plugin.methods.whole_set import (
    broadcast_from,
    check_finite,
    embeddings_of_all,
    evaluating,
    from_all,
    kmeans,
    size_of,
    still_transform,
)
from carp_plugin.partition import random_partition
from carp_plugin.settings.methods import PclKwargs
from carp_plugin.settings.reading import read


class PCLv2(BaseMomentumMethod):
    """PCL v2 on the host's base for methods with a momentum encoder.

    The first view is the query, the second the key: each passes one network. State besides the weights: the queue, and
    the clusters of the epoch, which a resumed run goes on with.
    """

    #: Every rank holds the same of these; DistributedDataParallel would send them along at every step.
    _ddp_params_and_buffers_to_ignore = (
        "queue",
        "queue_ptr",
        "image_clusters",
        "centroids",
        "concentrations",
        "clusters_epoch",
    )

    num_crops: int
    num_large_crops: int

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements PCL v2 (https://arxiv.org/abs/2005.04966).

        Extra cfg settings:
            method_kwargs:
                proj_hidden_dim (int): neurons of the projector's hidden layer.
                proj_output_dim (int): D, size of an embedding.
                temperature (float): T of the instance loss, and the mean of the clusters' concentrations.
                queue_size (int): keys of earlier batches.
                num_clusters (Sequence[int]): k of each clustering.
                num_negatives (int): prototypes of each clustering besides those of the batch; as many as there are.
                epoch_prototypes_start (int): first epoch that has clusters.
                prototype_weight (float): of the prototypes' loss.
                kmeans_iterations (int): of k-means.
                kmeans_redo (int): starts of k-means.
            momentum:
                base_tau, final_tau (float): 0.999 throughout in the paper.
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.temperature: float = kwargs.temperature
        self.queue_size: int = kwargs.queue_size
        self.num_clusters: List[int] = list(kwargs.num_clusters)
        self.num_negatives: int = kwargs.num_negatives
        self.epoch_prototypes_start: int = kwargs.epoch_prototypes_start
        self.prototype_weight: float = kwargs.prototype_weight
        self.kmeans_iterations: int = kwargs.kmeans_iterations
        self.kmeans_redo: int = kwargs.kmeans_redo
        self.cluster_seed: int = omegaconf_select(cfg, "seed", 5)

        # projector
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.projector = mlp(*sizes)

        # momentum projector
        self.momentum_projector = mlp(*sizes)
        initialize_momentum_params(self.projector, self.momentum_projector)

        # queue, from a generator of its own: the same on every rank
        generator = torch.Generator().manual_seed(self.cluster_seed)
        queue_RD = torch.randn(self.queue_size, kwargs.proj_output_dim, generator=generator)
        self.queue: Tensor
        self.queue_ptr: Tensor
        self.register_buffer("queue", F.normalize(queue_RD, dim=1).T.contiguous())
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

        self.image_clusters: Tensor
        self.centroids: Tensor
        self.concentrations: Tensor
        self.clusters_epoch: Tensor
        self.key_view: Optional[Tensor] = None
        self._keys: Optional[Tensor] = None

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
        cfg = super(PCLv2, PCLv2).add_and_assert_specific_cfg(cfg)
        kwargs = read(PclKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        for key, value in kwargs.model_dump(mode="json").items():
            cfg.method_kwargs[key] = value
        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """Adds the projector to the parent's learnable parameters.

        Returns:
            List[dict]: list of learnable parameters.
        """

        extra_learnable_params = [{"name": "projector", "params": self.projector.parameters()}]
        return super().learnable_params + extra_learnable_params

    @property
    def momentum_pairs(self) -> List[Tuple[Any, Any]]:
        """Adds the projector to the parent's momentum pairs.

        Returns:
            List[Tuple[Any, Any]]: list of momentum pairs.
        """

        return super().momentum_pairs + [(self.projector, self.momentum_projector)]

    def forward(self, X: Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the projector.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the unit embeddings "z" (N, D).
        """

        out = super().forward(X)
        out.update({"z": F.normalize(self.projector(out["feats"]), dim=-1)})
        return out

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the momentum backbone and projector, in a training step on the view of the keys.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the unit keys "z" (N, D).
        """

        out = super().momentum_forward(X if self.key_view is None else self.key_view)
        out.update({"z": F.normalize(self.momentum_projector(out["feats"]), dim=-1)})
        return out

    # ------------------------------------------------------------------------------ the E-step

    def on_train_start(self) -> None:
        """Makes room for the clusters of all training images.

        Raises:
            UserError: more clusters than half the images, or a loader that knows no images.
        """
        super().on_train_start()
        images = size_of(self.trainer)
        most = max(self.num_clusters)
        if self.prototype_weight and most > images // 2:
            fits = [max(1, images // size) for size in (51, 26, 13)]  # the paper's images a cluster
            raise UserError(
                f"method_kwargs.num_clusters holds {most}, more than half of the {images} training images: most "
                "clusters would be of one image, and nothing tells how dense those are; the paper's share is "
                f"method_kwargs.num_clusters={str(fits).replace(' ', '')}."
            )
        total, dim = sum(self.num_clusters), self.queue.shape[0]
        empty = {
            "image_clusters": torch.zeros(len(self.num_clusters), images, dtype=torch.int32),
            "centroids": torch.zeros(total, dim),
            "concentrations": torch.full((total,), self.temperature),
            "clusters_epoch": torch.tensor(-1),
        }
        for name, tensor in empty.items():
            self.register_buffer(name, tensor.to(self.device))

    def on_train_epoch_start(self) -> None:
        """Clusters the momentum embeddings of all training images, unless the epoch is one that was resumed within."""
        due = self.prototype_weight > 0 and self.current_epoch >= self.epoch_prototypes_start
        if due and int(self.clusters_epoch) != self.current_epoch:
            self._cluster(self._embeddings_of_all())
            self.clusters_epoch.fill_(self.current_epoch)

    def _embeddings_of_all(self) -> Tensor:
        """Unit keys (n, D) of all training images as they are, the momentum encoder in evaluation mode."""
        with evaluating(self.momentum_backbone, self.momentum_projector):
            rows = embeddings_of_all(
                self.trainer.train_dataloader,
                still_transform(self.cfg),
                lambda X: self.momentum_forward(X)["z"],
                next(self.momentum_projector.parameters()),
            )
        check_finite(rows, "pclv2")
        return rows.float()

    def _cluster(self, rows_nD: Tensor) -> None:
        """k-means, one clustering a rank in turn; all ranks then have all of them."""
        points = rows_nD.cpu().numpy()
        centroids = self.centroids.split(self.num_clusters)  # views
        concentrations = self.concentrations.split(self.num_clusters)
        for m, k in enumerate(self.num_clusters):
            if m % world_size() != rank():
                continue
            rounds = {"iterations": self.kmeans_iterations, "redo": self.kmeans_redo}
            found = kmeans(points, k, seed=self.cluster_seed + m, **rounds)
            clusters_n = torch.from_numpy(found.of_images)
            distances_n = torch.from_numpy(found.distances).double()
            phi_K = concentration_func(distances_n, clusters_n, k, self.temperature)
            self.image_clusters[m].copy_(clusters_n)
            centroids[m].copy_(F.normalize(torch.from_numpy(found.centroids), dim=1))
            concentrations[m].copy_(phi_K)
        for m in range(len(self.num_clusters)):
            parts = (self.image_clusters[m], centroids[m], concentrations[m])
            broadcast_from(m % world_size(), *parts)

    # ------------------------------------------------------------------------------ the M-step

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Training step for PCL v2 reusing BaseMomentumMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of two batches of images, of queries and of keys.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of PCL and classification loss.
        """

        indexes, (query_view, key_view), targets = batch
        with one_view_each(self, key_view):
            out = super().training_step([indexes, [query_view], targets], batch_idx)
        class_loss = out["loss"]
        (query,), (key,) = out["z"], out["momentum_z"]
        self._keys = key.detach()

        # ------- instances -------
        instance = info_nce_func(query, key, self.queue.T, self.temperature)
        metrics, loss = {"train_instance_loss": instance.detach()}, instance

        # ------- prototypes -------
        if self.prototype_weight and self.current_epoch >= self.epoch_prototypes_start:
            prototypes = self._prototype_loss(query, indexes)
            metrics["train_prototype_loss"] = prototypes.detach()
            loss = loss + self.prototype_weight * prototypes

        self.log_dict({**metrics, "train_pcl_loss": loss.detach()}, on_epoch=True, sync_dist=True)
        return loss + class_loss

    def _prototype_loss(self, query_ND: Tensor, indexes_N: Tensor) -> Tensor:
        """(1 / M) sum_m L_proto^m."""
        clusters_MP = from_all(self.image_clusters[:, indexes_N].T).T.long()
        own_N = own_rows(len(query_ND), query_ND.device)
        losses = []
        every = zip(
            clusters_MP,
            self.centroids.split(self.num_clusters),
            self.concentrations.split(self.num_clusters),
        )
        for m, (positives_P, centroids_KD, phi_K) in enumerate(every):
            order_K = random_partition(
                self.cluster_seed + m, self.trainer.global_step, len(phi_K), query_ND.device
            )
            negatives = negatives_of(positives_P, order_K, self.num_negatives)
            losses.append(
                prototype_loss_func(query_ND, centroids_KD, phi_K, positives_P, own_N, negatives)
            )
        return torch.stack(losses).mean()

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Sequence[Any], batch_idx: int) -> None:
        """The host's momentum update, and the keys of all ranks in the place of the oldest.

        Args:
            outputs (Any): of the training step.
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y].
            batch_idx (int): index of the batch.
        """

        super().on_train_batch_end(outputs, batch, batch_idx)
        if self._keys is None:
            return
        enqueue(self.queue.T, self.queue_ptr, self._keys)
        self._keys = None
