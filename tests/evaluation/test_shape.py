"""The shape of the protocols: images pass once, scores have intervals, and every protocol of the registry keeps it."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

from carp_plugin.evaluation.protocols import PROTOCOLS
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.settings.protocols import Evaluate


def made_images(n=40, classes=4, seed=0):
    """Images of 2 x 2 pixels whose classes can be told apart, seen by two networks."""
    generator = torch.Generator().manual_seed(seed)
    loaders = {}
    for part in ("train", "val"):
        targets = torch.arange(n) % classes
        pixels = torch.randn(n, 3, 2, 2, generator=generator)
        pixels[:, 0, 0, 0] += 4.0 * targets
        loaders[part] = DataLoader(TensorDataset(pixels, targets), batch_size=7)
    networks = {
        "student": (nn.Flatten(), {"backbone": nn.Identity(), "projector": nn.Linear(12, 5)}),
        "teacher": (nn.Flatten(), {"backbone": nn.Identity()}),
    }
    return Images(networks, loaders, torch.device("cpu"), transform=torch.as_tensor)


def test_images_pass_the_networks_once_whatever_reads_them():
    images = made_images()
    for _ in range(2):
        assert set(images.train) == {"student/backbone", "student/projector", "teacher/backbone"}
        assert images.val["student/projector"].feats.shape == (40, 5)
    assert images.passes == {"train": 1, "val": 1}
    assert images.classes == ["0", "1", "2", "3"]


def test_every_protocol_has_a_node_of_its_name():
    assert set(PROTOCOLS) <= set(Evaluate.model_fields)


@pytest.mark.parametrize("right, n", [(0, 10), (7, 10), (10, 10)])
def test_the_interval_of_an_accuracy_is_wilsons(right, n):
    low, high = Result({"top1": 100 * right / n}, {"top1": np.arange(n) < right}).interval("top1")
    z, p = 1.959963984540054, right / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == pytest.approx((100 * max(0, middle - half), 100 * min(1, middle + half)))
    floats = Result({"top1": 100 * right / n}, {"top1": (np.arange(n) < right).astype(float)})
    assert floats.interval("top1") == (low, high)


def test_the_interval_of_other_means_is_students():
    result = Result({"mAP": 50.0, "NMI": 3.0}, {"mAP": np.array([0.25, 0.5, 0.75])})
    half = 4.302652729749464 * 0.25 / 3**0.5  # t of two degrees of freedom
    assert result.interval("mAP") == pytest.approx(
        (max(0, 100 * (0.5 - half)), min(100, 100 * (0.5 + half)))
    )
    assert result.interval("NMI") is None
    assert Result({"mAP": 1.0}, {"mAP": np.array([0.01])}).interval("mAP") is None
