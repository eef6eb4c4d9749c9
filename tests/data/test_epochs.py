"""Order and augmentation of an epoch: functions of seed and epoch, and of nothing else."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import Dataset

from carp_plugin.data.epochs import (
    EpochAugmented,
    EpochOrder,
    Forwarded,
    TracksEpoch,
    epoch_loader,
)
from carp_plugin.errors import UserError

IMAGES = 11


class Drawing(Dataset):
    """Gives its index and a random number, as a random transform would draw it."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return index, torch.rand(())


def served(epoch, seed=0, workers=0, disturb=0, trained=0):
    loader = epoch_loader(Drawing(), batch_size=4, num_workers=workers, seed=seed)
    loader.sampler.epoch, loader.sampler.begin = epoch, (epoch, trained)
    torch.rand(disturb)
    return [(i, x) for batch in loader for i, x in zip(*(part.tolist() for part in batch))]


def test_every_image_comes_once_in_an_order_of_its_epoch():
    order = EpochOrder(IMAGES, seed=3)
    first = list(order)
    order.epoch = 1
    second = list(order)
    assert {epoch for epoch, _ in first} == {0} and {epoch for epoch, _ in second} == {1}
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(IMAGES))
    assert [i for _, i in first] != [i for _, i in second]


def test_last_smaller_batch_is_dropped():
    assert len(served(epoch=0)) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_whatever_was_drawn_before_and_whoever_loads(workers):
    assert served(epoch=2) == served(epoch=2, workers=workers, disturb=5)


def test_epochs_and_seeds_differ_in_order_and_augmentation():
    drawn = [dict(served(*key)) for key in ((0, 0), (1, 0), (0, 1), (1, 1))]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not set(one.items()) & set(other.items())


def test_the_global_random_state_is_left_alone():
    loader = epoch_loader(Drawing(), batch_size=4, num_workers=0, seed=0)
    iterator = iter(loader)
    before = torch.get_rng_state()
    next(iterator)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_within_an_epoch_gets_the_rest_of_it(workers):
    assert served(epoch=3, workers=workers, trained=4) == served(epoch=3)[4:]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_an_epoch_and_have_equally_many_images(ranks):
    order, parts = EpochOrder(IMAGES, seed=0), []
    for order.rank in range(ranks):
        order.num_replicas = ranks
        parts.append([index for _, index in order])
        assert len(parts[-1]) == len(order) == IMAGES // ranks
    assert len({index for part in parts for index in part}) == IMAGES // ranks * ranks


def test_what_an_image_draws_is_its_own_with_every_generator():
    class Drawn(Drawing):
        def __getitem__(self, index):
            return random.random(), np.random.rand(), torch.rand(()).item()

    one, other = (EpochAugmented(Drawn(), seed=0) for _ in range(2))
    assert one[0, 1] == other[0, 1]
    assert not set(one[0, 1]) & set(one[0, 2]) and not set(one[0, 1]) & set(one[1, 1])
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    one[0, 3]
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_a_loader_with_an_order_of_its_own_leaves_out_the_batches_that_were_trained():
    loader = Forwarded(lambda: [0, 1, 2, 3], batch_size=2, dataset=range(8))
    assert list(loader) == [0, 1, 2, 3] and len(loader) == 4
    loader.epoch, loader.begin = 5, (5, 6)
    assert list(loader) == [3]
    loader.epoch = 6
    assert list(loader) == [0, 1, 2, 3]


class Tiny(LightningModule):
    """Something that Lightning trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch[1].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Skipping:
    """Serves its batches in every epoch but the second, as DALI once did; its length says nothing of it."""

    def __init__(self, short=0):
        self.passes, self.short = 0, short

    def __len__(self):
        return 3

    def __iter__(self):
        self.passes += 1
        served = self.short if self.passes == 2 else 3
        return iter([(torch.zeros(4), torch.ones(4))] * served)


def trained(loader, batches, **limits):
    """Trains on a loader for three epochs; returns the trainer."""
    order = Forwarded(lambda: loader, batch_size=4, dataset=range(8))
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TracksEpoch(order, 4, batches)],
        **limits,
    )
    trainer.fit(Tiny(), order)
    return trainer


@pytest.mark.parametrize("short", [0, 2])
def test_an_epoch_of_too_few_batches_is_an_error(short):
    with pytest.raises(UserError, match=f"epoch 1 had {short} training batches, expected 3"):
        trained(Skipping(short), batches=3)


def test_an_epoch_of_too_many_batches_is_an_error():
    with pytest.raises(UserError, match="epoch 0 had 3 training batches, expected 2"):
        trained(Skipping(3), batches=2)


def test_a_run_that_ends_within_an_epoch_as_it_was_told_is_none():
    assert trained(Skipping(3), batches=3, max_steps=4).global_step == 4
    assert trained(Skipping(3), batches=3).global_step == 9
