"""Order and augmentation of an epoch: functions of seed and epoch, and of nothing else."""

import pytest
import torch
from torch.utils.data import Dataset

from carp_plugin.data.epochs import EpochOrder, epoch_loader

IMAGES = 11


class Drawing(Dataset):
    """Gives its index and a random number, as a random transform would draw it."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return index, torch.rand(())


def served(epoch, seed=0, workers=0, disturb=0):
    loader, order = epoch_loader(Drawing(), batch_size=4, num_workers=workers, seed=seed)
    order.epoch = epoch
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
    loader, _ = epoch_loader(Drawing(), batch_size=4, num_workers=0, seed=0)
    iterator = iter(loader)
    before = torch.get_rng_state()
    next(iterator)
    assert torch.equal(before, torch.get_rng_state())
