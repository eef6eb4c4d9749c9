"""What some methods do at an epoch's start: the embeddings of all training images, by all ranks, and their clusters."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np
import omegaconf
import torch
import torch.distributed as dist
import torch.nn as nn
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from carp_plugin.errors import UserError
from carp_plugin.host import build_transform_pipeline
from carp_plugin.losses.ranks import gather_rows, rank, world_size

#: The shorter side of an image over the side of its central crop: 256 pixels to 224.
ZOOM = 8 / 7

_POINTS = 1000  # images a centroid that k-means is fitted on, at most
_ROWS = 2**16  # whose distances are taken at once


def from_all(tensor: Tensor) -> Tensor:
    """The rows of all ranks in the order that one process has them, (ranks * N, …), without gradient."""
    return gather_rows(tensor.detach())


def still_transform(cfg: omegaconf.DictConfig) -> Callable[[Any], Tensor]:
    """An image as it is: the shorter side resized, a central crop of a large view's size, normalised as the views are.

    Args:
        cfg: the host's, of the method.
    """
    view = cfg.augmentations[0]
    normalised = build_transform_pipeline(cfg.data.dataset, view).transforms[-2:]  # type: ignore[attr-defined]
    size = int(view.crop_size)
    resize = transforms.Resize(math.ceil(size * ZOOM))
    return transforms.Compose([resize, transforms.CenterCrop(size), *normalised])


def with_transform(dataset: Any, transform: Callable) -> Any:
    """A copy of a data set, whatever is wrapped around the images, with another transform of them.

    Args:
        dataset: left as it is.
        transform: of an image.

    Raises:
        UserError: a data set that has no transform to replace.
    """
    other = copy.copy(dataset)
    if hasattr(other, "transform"):
        other.transform = transform
    elif hasattr(other, "dataset"):
        other.dataset = with_transform(other.dataset, transform)
    else:
        raise UserError(
            f"the images of a {type(dataset).__name__} cannot be seen without augmentation, which the method needs at "
            "an epoch's start; set data.format=image_folder."
        )
    return other


def size_of(trainer: Any) -> int:
    """n, the number of training images.

    Raises:
        UserError: the loader has no data set of images (DALI's).
    """
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if dataset is None:
        raise UserError(
            "the method goes over all training images at an epoch's start, which NVIDIA DALI's loader does not serve; "
            "set data.format=image_folder."
        )
    return len(dataset)


class _Share(Dataset):
    """Every world-th image from this rank's on, in whole batches; the first ones come again where images run out."""

    def __init__(self, images: Any, total: int, batch_size: int) -> None:
        self.images, self.total = images, total
        self.rows = math.ceil(total / (world_size() * batch_size)) * batch_size
        self.first, self.every = rank(), world_size()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Tensor:
        return self.images[(row * self.every + self.first) % self.total][1]


@torch.no_grad()
def embeddings_of_all(
    loader: DataLoader, transform: Callable, embed: Callable[[Tensor], Tensor], like: Tensor
) -> Tensor:
    """One row for every training image, in the order of the data set; the ranks share the work.

    An image that cannot be read has the row of the one that stands in for it in training.

    Args:
        loader: of the training batches [indexes, views, labels].
        transform: of an image.
        embed: images (N, 3, H, W) to rows (N, D).
        like: a weight of the network, for its device and type.

    Returns:
        Tensor: (n, D) on that device, the same on every rank.
    """
    images = with_transform(loader.dataset, transform)
    batch_size = int(loader.batch_size or 1)
    share = _Share(images, len(images), batch_size)
    still = DataLoader(
        share,
        batch_size=batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # or it would draw from the one that training draws from
    )
    rows = [embed(X.to(like.device, like.dtype, non_blocking=True)) for X in still]
    return from_all(torch.cat(rows))[: len(images)]


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode, with the buffers of rank 0, as a step of DistributedDataParallel begins."""
    before = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
        for buffer in network.buffers() if world_size() > 1 else ():
            dist.broadcast(buffer, 0)
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def leaving_statistics(*networks: nn.Module) -> Iterator[None]:
    """Batch norm takes the statistics of the batch, and its running ones stay as they are."""
    norms = [
        module
        for network in networks
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        of_images: (n,) int64.
        distances: (n,) float32, Euclidean, to the centroid.
        centroids: (k, D) float32, means of their members: not of unit length.
    """

    of_images: NDArray[np.int64]
    distances: NDArray[np.float32]
    centroids: NDArray[np.float32]


def kmeans(
    rows: NDArray[np.float32], k: int, *, iterations: int = 20, redo: int = 5, seed: int = 0
) -> Clusters:
    """k-means by faiss; the same for the same seed and number of threads.

    Fitted on at most 1,000 images a centroid, drawn by the seed. On a GPU where faiss has one.

    Args:
        rows: (n, D).
        k: clusters, at most n.
        iterations: of Lloyd's algorithm.
        redo: starts, of which the best is kept.
        seed: of the first start.

    Raises:
        ValueError: more clusters than images, or rows that are not finite.
    """
    import faiss  # a method that clusters nothing does without it

    if rows.ndim != 2 or not 1 <= k <= len(rows):
        raise ValueError(f"k: expected 1 to n of rows (n, D), received {k} and {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("rows: expected finite numbers, received some that are not")
    model: Any = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=iterations,
        nredo=redo,
        seed=seed % 2**31,
        min_points_per_centroid=1,  # fewer than 39 a centroid are no reason to say so
        max_points_per_centroid=_POINTS,
        gpu=faiss.get_num_gpus() > 0,
    )
    model.train(rows)
    _, found = model.assign(rows)
    centroids = np.asarray(model.centroids)
    # faiss's own distances are differences of large numbers, and those of copies are not 0
    distances = np.empty(len(rows), dtype=np.float32)
    for at in range(0, len(rows), _ROWS):
        some = slice(at, at + _ROWS)
        distances[some] = np.linalg.norm(rows[some] - centroids[found[some]], axis=1)
    return Clusters(found.astype(np.int64), distances, centroids)


def check_finite(rows: Tensor, method: str) -> None:
    """All embeddings are finite.

    Raises:
        UserError: they are not, on every rank alike.
    """
    bad = int((~rows.isfinite().all(dim=-1)).sum())
    if bad:
        raise UserError(
            f"{method} cannot group the training images: the embeddings of {bad} of {rows.shape[-2]} are not finite; "
            "begin anew with a lower optimizer.lr."
        )


def broadcast_from(source: int, *tensors: Tensor) -> None:
    """Gives all ranks the tensors of one, in place."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor, source)
