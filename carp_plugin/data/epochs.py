"""Training images whose order and augmentation depend on seed and epoch alone.

A resumed run then sees what the uninterrupted one would have seen, and the number of workers changes nothing.
"""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import numpy as np
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochOrder(Sampler):
    """Every image once, in an order of the epoch's own; yields (epoch, index).

    The epoch goes along with the index, since workers hold a copy of the data set that is never told of it.

    Args:
        images: number of images.
        seed: of all orders.
    """

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed, self.epoch = images, seed, 0

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        for index in torch.randperm(self.images, generator=generator).tolist():
            yield self.epoch, index


class EpochAugmented(Dataset):
    """A data set whose random transform is that of (seed, epoch, index).

    Args:
        dataset: takes an index; its transform draws from torch's generator, as torchvision's do.
        seed: of all transforms.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Tuple[int, int]) -> Any:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed every device that could be there, at ten times the cost
            torch.default_generator.manual_seed(_mixed(self.seed, epoch, index))
            return self.dataset[index]


class SetsEpoch(Callback):
    """Tells the order which epoch it is, also where Lightning has wrapped it for several processes.

    Args:
        order: of the training loader.
    """

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Sets the epoch that is about to begin."""
        self.order.epoch = trainer.current_epoch


def epoch_loader(
    dataset: Dataset, batch_size: int, num_workers: int, seed: int
) -> Tuple[DataLoader, EpochOrder]:
    """A training loader, with the last, smaller batch dropped as the hosts do, and its order.

    Args:
        dataset: gives (image, label).
        batch_size: images a batch.
        num_workers: processes that load images; 0 loads them in this one.
        seed: of orders and transforms.
    """
    order = EpochOrder(len(dataset), seed)  # type: ignore[arg-type]
    loader = DataLoader(
        EpochAugmented(dataset, seed),
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )
    return loader, order


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, without the overlaps that adding them would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
