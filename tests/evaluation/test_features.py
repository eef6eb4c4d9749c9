"""k-NN and linear accuracy of features, against values known beforehand."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from carp_plugin.evaluation.features import (
    FeatureEvaluator,
    Features,
    extract,
    knn_accuracy,
    linear_accuracy,
)


class WithBatchNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten, self.norm = torch.nn.Flatten(), torch.nn.BatchNorm1d(12)

    def forward(self, images):
        return self.norm(self.flatten(images))


def loader(n=10):
    images = torch.arange(n * 12, dtype=torch.float32).view(n, 3, 2, 2)
    return DataLoader(TensorDataset(images, torch.arange(n) % 3), batch_size=4)


def test_extraction_keeps_order_mode_and_statistics():
    model = WithBatchNorm().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = extract(model, loader(), torch.device("cpu"))
    expected = torch.arange(120.0).view(10, 12) / (1 + model.norm.eps) ** 0.5
    assert torch.allclose(found.feats, expected) and found.targets.tolist() == [
        i % 3 for i in range(10)
    ]
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def blobs(seed, n=60, spread=0.1):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    feats = torch.eye(3, 8)[targets] + spread * torch.randn(n, 8, generator=generator)
    return Features(feats, targets)


def reference_knn(train, val, k, temperature):
    """Brute force in float64, one query at a time."""
    bank = torch.nn.functional.normalize(train.feats.double())
    correct = 0
    for query, target in zip(torch.nn.functional.normalize(val.feats.double()), val.targets):
        similarity, index = (bank @ query).topk(k)
        votes = torch.zeros(3, dtype=torch.float64)
        for s, i in zip(similarity, index):
            votes[train.targets[i]] += torch.exp(s / temperature)
        correct += int(votes.argmax() == target)
    return 100 * correct / len(val.targets)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (20, 0.5)])
def test_knn_is_that_of_the_paper(k, temperature):
    train, val = blobs(0, spread=0.8), blobs(1, spread=0.8)
    expected = reference_knn(train, val, k, temperature)
    assert 40 < expected < 100
    assert knn_accuracy(train, val, k, temperature)[0] == pytest.approx(expected)


def test_linear_layer_finds_what_is_separable_and_is_repeatable():
    settings = {"epochs": 20, "batch_size": 8, "lr": 0.1, "optimizer": "sgd", "seed": 3}
    state = torch.random.get_rng_state()
    first = linear_accuracy(blobs(0), blobs(1), **settings)
    assert first == 100.0 == linear_accuracy(blobs(0), blobs(1), **settings)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam", "adamw"])
def test_linear_layer_takes_every_optimizer_of_a_run(optimizer):
    accuracy = linear_accuracy(
        blobs(0), blobs(1), epochs=10, batch_size=8, lr=0.05, optimizer=optimizer, seed=0
    )
    assert accuracy > 90


def test_without_labels_nothing_is_evaluated():
    assert FeatureEvaluator(None, torch.device("cpu")).features(WithBatchNorm(), "x") is None
