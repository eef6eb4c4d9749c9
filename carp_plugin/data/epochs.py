"""Training images whose order and augmentation depend on seed, epoch and image alone.

A resumed run then sees what the uninterrupted one would have seen, and the number of workers changes nothing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import random
import signal
from typing import Any, Callable, Dict, Iterator, Sized, Tuple, Union, cast

import numpy as np
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling
from torch.utils.data.distributed import DistributedSampler

from carp_plugin.errors import UserError


class EpochOrder(DistributedSampler):
    """Every image once, in an order of the epoch's own; yields (epoch, index).

    The epoch goes along with the index, since workers hold a copy of the data set that is never told of it. Of
    several ranks each takes every ``world``-th image of the one order, all of them equally many: what is left over at
    the end of an epoch is dropped, as the last, smaller batch is. It is a DistributedSampler so that Lightning leaves
    it in its place.

    Args:
        images: number of images.
        seed: of all orders.

    Attributes:
        epoch: that the next pass is of.
        begin: (epoch, images): an epoch and how many images of this rank it leaves out at its beginning, for a run
            resumed within it.
        rank: of this process, set before training.
        num_replicas: ranks, set before training.
    """

    def __init__(self, images: int, seed: int) -> None:
        super().__init__(range(images), num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]
        self.images, self.begin = images, (0, 0)

    def __len__(self) -> int:
        return self.images // self.num_replicas

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator)
        own = order[self.rank :: self.num_replicas][: len(self)].tolist()
        epoch = self.epoch
        trained = self.begin[1] if self.begin[0] == epoch else 0
        return iter([(epoch, index) for index in own[trained:]])


class EpochAugmented(Dataset):
    """A data set whose random transform is that of (seed, epoch, index); an index alone is one of epoch 0.

    Args:
        dataset: takes an index; its transform may draw from torch's generator, Python's and numpy's.
        seed: of all transforms.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Union[int, Tuple[int, int]]) -> Any:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            seed_host(mixed(self.seed, epoch, index))
            return self.dataset[index]
        finally:  # without workers this is the process that trains
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class Forwarded:
    """A loader that has an order of its own (DALI's), for a run resumed within an epoch.

    It cannot begin there, so the batches before are loaded and thrown away: the epoch has as many as it should, but
    not those that an uninterrupted run would have had. Attributes as those of :class:`EpochOrder`.

    Args:
        build: returns the loader, once there is one.
        batch_size: images a batch and rank.
        dataset: the images, as many as an epoch of all ranks has; DeepClusterV2 asks for their number.
    """

    def __init__(self, build: Callable[[], Any], batch_size: int, dataset: Sized) -> None:
        self._build, self.batch_size, self.dataset = build, batch_size, dataset
        self.epoch, self.begin, self.rank, self.num_replicas = 0, (0, 0), 0, 1

    def __len__(self) -> int:
        return len(self._build())

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._build())
        if self.begin[0] == self.epoch:
            for _ in range(self.begin[1] // self.batch_size):
                next(batches)
        yield from batches


def training_order(train: Any, batch_size: int) -> Union[EpochOrder, Forwarded]:
    """What decides on the images of an epoch.

    Args:
        train: a loader of :func:`epoch_loader`, or a DALI data module, which will serve its batches through it.
        batch_size: images a batch and rank.
    """
    if isinstance(train, DataLoader):
        return cast(EpochOrder, train.sampler)
    forwarded = Forwarded(train.train_dataloader, batch_size, train.train_data_path.samples)
    train.train_dataloader = lambda: forwarded
    return forwarded


class TracksEpoch(Callback):
    """Tells the order where training is, and a resumed run's where the checkpoint was written; counts batches.

    Stands before whatever writes checkpoints at the end of an epoch: of one that was cut short none is written.

    Args:
        order: of the training images.
        batch_size: images a batch and rank.
        batches: of a whole epoch and rank.
    """

    def __init__(self, order: Union[EpochOrder, Forwarded], batch_size: int, batches: int) -> None:
        self.order, self.batch_size, self.batches = order, batch_size, batches
        self._next = {"epoch": 0, "batch": 0}

    def state_dict(self) -> Dict[str, int]:
        return dict(self._next)

    def load_state_dict(self, state_dict: Dict[str, int]) -> None:
        """Workers begin to load before any other hook is called."""
        self._next = dict(state_dict)
        self.order.epoch = state_dict["epoch"]
        self.order.begin = (state_dict["epoch"], state_dict["batch"] * self.batch_size)

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self.order.rank, self.order.num_replicas = trainer.global_rank, trainer.world_size

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.order.epoch = trainer.current_epoch

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._next = {"epoch": trainer.current_epoch, "batch": batch_idx}

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._next = {"epoch": trainer.current_epoch, "batch": batch_idx + 1}

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Counts, whatever the loader says of its length: DALI once skipped every second epoch (solo-learn issue 265).

        Raises:
            UserError: the epoch had another number of batches than it is to have.
        """
        here = self._next["epoch"] == trainer.current_epoch
        batches = self._next["batch"] if here else 0
        over = 0 < trainer.max_steps <= trainer.global_step  # within the epoch, as it was asked for
        if batches != self.batches and not over:
            raise UserError(
                f"epoch {trainer.current_epoch} had {batches} training batches, expected {self.batches}: the loader "
                "did not serve them all, as DALI left out every second epoch; the checkpoints before it stand, and "
                "data.format=image_folder takes the images in an order of the run's own."
            )
        self._next = {"epoch": trainer.current_epoch + 1, "batch": 0}


def epoch_loader(dataset: Dataset, batch_size: int, num_workers: int, seed: int) -> DataLoader:
    """A training loader, with the last, smaller batch dropped as the hosts do; its sampler is an :class:`EpochOrder`.

    Args:
        dataset: takes an index.
        batch_size: images a batch.
        num_workers: processes that load images; 0 loads them in this one.
        seed: of orders and transforms.
    """
    loader = DataLoader(
        EpochAugmented(dataset, seed),
        batch_size=batch_size,
        sampler=EpochOrder(len(dataset), seed),  # type: ignore[arg-type]
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        generator=torch.Generator(),  # or a loader would draw from the one that training draws from
    )
    return with_our_workers(loader)


def with_our_workers(loader: DataLoader) -> DataLoader:
    """A loader whose workers leave signals alone, and are forked where the system can.

    The hosts' data sets are local classes, which the other ways to start a process (the default on macOS, and on Linux
    from Python 3.14 on) cannot hand over.

    Args:
        loader: changed in place.
    """
    _look_at_workers_between_steps()
    loader.worker_init_fn = leave_signals
    if loader.num_workers and "fork" in multiprocessing.get_all_start_methods():
        loader.multiprocessing_context = "fork"
    return loader


def _look_at_workers_between_steps() -> None:
    """A worker that was killed is found out where a batch is waited for, and nowhere else.

    torch would also raise from its handler of SIGCHLD, wherever this process happens to be: in the middle of an
    optimizer's step, which leaves weights that are of no step and cannot be saved. A loader that waits for a batch
    looks after its workers every five seconds by itself.
    """
    signal_handling._SIGCHLD_handler_set = True  # as if it were there already


def leave_signals(worker: int) -> None:
    """A signal may reach a whole group of processes; what to do is the training process's to decide."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):  # Windows lacks most of them
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Ends the workers that an error has left behind: Python would send them SIGTERM, and wait for them for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def mixed(*numbers: int) -> int:
    """One 64-bit seed of several numbers >= 0, without the overlaps that adding them would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed_host(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generator on the CPU.

    Args:
        seed: of 64 bits; numpy takes the lower half.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would seed every device that could be there, at ten times the cost
    torch.default_generator.manual_seed(seed)
