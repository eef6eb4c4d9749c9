"""k-NN and linear accuracy of features, against values known beforehand."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from carp_plugin.errors import UserError
from carp_plugin.evaluation import store
from carp_plugin.evaluation.features import (
    FeatureEvaluator,
    Features,
    extract,
    knn_accuracy,
    linear_accuracy,
)
from carp_plugin.evaluation.store import stream


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


HEADS = {"net": (torch.nn.Flatten(), {"own": torch.nn.Identity(), "flat": torch.nn.Linear(12, 4)})}


@pytest.mark.parametrize("folder", [None, "store"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_streamed_rows_are_unit_rows_rounded_to_their_type(folder, dtype, tmp_path):
    folder = folder and tmp_path / folder
    found = stream(HEADS, loader(), torch.device("cpu"), folder=folder, dtype=dtype)
    images = torch.arange(120.0).view(10, 12)
    for head, module in HEADS["net"][1].items():
        rows = found[f"net/{head}"]
        expected = torch.nn.functional.normalize(module(images)).to(dtype)
        assert rows.feats.dtype == dtype and torch.equal(rows.feats, expected)
        assert rows.targets.tolist() == [i % 3 for i in range(10)]
    if folder:
        assert sorted(path.name for path in folder.iterdir()) == ["net-flat.npy", "net-own.npy"]
        found["net/own"].feats[0] = 0  # what is mapped is a copy on write
        assert np.load(folder / "net-own.npy")[0].any()


def test_half_precision_moves_a_similarity_by_less_than_it_says():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(50, 512, generator=generator).double())
    halves = torch.nn.functional.normalize(rows.half().double())
    moved = (rows @ rows.T - halves @ halves.T).abs()
    assert float(moved.max()) < 2**-10 and float(moved.mean()) < 2e-5


def test_a_broken_stream_leaves_no_file(tmp_path):
    class Breaks(torch.nn.Module):
        def forward(self, images):
            if images[0, 0, 0, 0] > 0:
                raise RuntimeError("second batch")
            return images.flatten(1)

    with pytest.raises(RuntimeError, match="second batch"):
        networks = {"net": (Breaks(), {"own": torch.nn.Identity()})}
        stream(networks, loader(), torch.device("cpu"), folder=tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to .*file"):
        stream(HEADS, loader(), torch.device("cpu"), folder=tmp_path / "file")


def test_a_bank_smaller_than_k_gives_all_its_neighbours():
    assert knn_accuracy(blobs(0, n=9), blobs(1), k=20) == knn_accuracy(blobs(0, n=9), blobs(1), k=9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_have_the_type_of_the_networks_weights(dtype):
    """precision=64-true and bf16-true convert the module for good."""
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).to(dtype)
    images = torch.arange(36.0).reshape(3, 3, 2, 2)
    loader = torch.utils.data.DataLoader([(image, 0) for image in images], batch_size=2)
    found = store.extract(backbone, loader, torch.device("cpu"))
    assert found.feats.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(found.feats, backbone(images.to(dtype)).float())
    rows = store.stream({"a": (backbone, {"b": torch.nn.Identity()})}, loader, torch.device("cpu"))
    assert rows["a/b"].feats.shape == (3, 4)
