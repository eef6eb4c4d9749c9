"""Copy detection: brute force on random data, all for copies that are none, chance for what tells nothing."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader
from torchvision import transforms

from carp_plugin.data.images import NamesBadImages
from carp_plugin.data.loaders import labelled_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation import ranking
from carp_plugin.evaluation.copies import planned
from carp_plugin.evaluation.protocols.copies import copy_detection, measure
from carp_plugin.evaluation.shape import Images
from carp_plugin.settings.protocols import CopyDetection
from carp_plugin.settings.trained import TrainedData
from tests.helpers import image_folder

KINDS = ("crop", "blur")


def made(seed=0, images=20, dim=6, distance=0.8):
    """Features of images, of others, and of copies of every second image, which lie beside their originals."""
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(images, dim, generator=generator)
    others = torch.randn(15, dim, generator=generator)
    copies = planned(range(0, images, 2), KINDS)
    away = torch.randn(len(copies), dim, generator=generator)
    return [bank, others], bank[[c.image for c in copies]] + distance * away, copies


@pytest.mark.parametrize("few", [False, True])
def test_it_is_brute_force_and_scikit_learn(few, monkeypatch):
    if few:
        monkeypatch.setattr(ranking, "_QUERIES", 7)
        monkeypatch.setattr(ranking, "_VALUES", 1)
    banks, features, copies = made()
    found = copy_detection(banks, features, copies)
    cosines = (F.normalize(features.double()) @ F.normalize(torch.cat(banks).double()).T).numpy()
    originals = np.array([c.image for c in copies])
    own = cosines[np.arange(len(copies)), originals]
    places = (cosines > own[:, None]).sum(axis=1)
    for name in (None, *KINDS):
        some = np.array([name in (None, c.transformation) for c in copies])
        said = f" ({name})" if name else ""
        assert found.scores["recall@1" + said] == pytest.approx(100 * (places[some] == 0).mean())
        assert found.scores["mAP" + said] == pytest.approx(100 * (1 / (places[some] + 1)).mean())
        pairs = np.zeros_like(cosines, dtype=bool)
        pairs[np.arange(len(copies)), originals] = True
        micro = average_precision_score(pairs[some].ravel(), cosines[some].ravel())
        assert found.scores["µAP" + said] == pytest.approx(100 * micro, rel=1e-6)
    by_image = [(places[originals == i] == 0).mean() for i in range(0, 20, 2)]
    assert np.array_equal(found.per_image["recall@1"], by_image)
    assert 100 * np.mean(by_image) == pytest.approx(found.scores["recall@1"])
    mild = [place == 0 for place, c in zip(places, copies) if c.strength == 0.8]
    assert found.details["recall@1 by strength"]["crop"]["0.8"] == pytest.approx(
        100 * np.mean(mild)
    )
    assert 0 < found.scores["recall@1"] < 100 and found.details["searched"] == 35


def test_copies_that_are_the_images_score_all():
    banks, features, copies = made(distance=0.0)
    found = copy_detection(banks, features, copies)
    assert set(found.scores.values()) == {100.0} and not found.remarks


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_a_collapsed_network_scores_chance(constant):
    banks, features, copies = made()
    flat = [torch.full_like(bank, constant) for bank in banks]
    found = copy_detection(flat, torch.full_like(features, constant), copies)
    assert found.scores["recall@1"] == pytest.approx(100 / 35)
    assert found.details["chance"]["recall@1"] == pytest.approx(100 / 35)
    assert found.scores["mAP"] == pytest.approx(100 * np.mean(1 / np.arange(1, 36)))
    assert found.scores["µAP"] < 100 / 35 + 2
    if constant:
        assert found.remarks[0].startswith("10 of 10 originals have the features of another image")


def test_random_features_score_chance():
    hits = []
    for seed in range(60):
        banks, features, copies = made(seed)
        features = torch.randn(features.shape, generator=torch.Generator().manual_seed(1000 + seed))
        hits.append(copy_detection(banks, features, copies).scores["recall@1"] - 100 / 35)
    assert abs(np.mean(hits)) < 4 * np.std(hits, ddof=1) / len(hits) ** 0.5


def test_an_image_that_is_there_twice_is_said_and_counts_half():
    banks, features, copies = made(distance=0.0)
    banks[1][0] = banks[0][0]
    found = copy_detection(banks, features, copies)
    assert found.per_image["recall@1"].tolist() == [0.5, *[1.0] * 9]
    assert found.remarks[0].startswith("1 of 10 originals have the features of another image")


def test_what_cannot_be_searched_is_said():
    _, features, copies = made()
    with pytest.raises(UserError, match="among two images or more"):
        copy_detection([torch.ones(1, 6)], features[:1], planned([0], ("none",)))
    banks, _, _ = made()
    with pytest.raises(UserError, match="not finite"):
        copy_detection(banks, features * float("nan"), copies)


def images_of(tmp_path, backbone=None, per_class=4, classes=3):
    folder = image_folder(tmp_path, per_class=per_class, classes=classes)
    transform = transforms.Compose(
        [transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()]
    )
    data = TrainedData(
        dataset="custom", train_path=str(folder / "train"), val_path=str(folder / "val")
    )
    both = labelled_images(data, transform, transform)
    loaders = {
        name: DataLoader(NamesBadImages(part), batch_size=5)
        for name, part in zip(("train", "val"), both)
    }
    networks = {"student": (backbone or nn.Flatten(), {"backbone": nn.Identity()})}
    return Images(networks, loaders, torch.device("cpu"), transform)


def test_files_become_scores_and_copies_that_are_none_score_all(tmp_path):
    images = images_of(tmp_path)
    told = CopyDetection(transformations=("none", "jpeg"), images=7)
    found = measure(images, told)["student/backbone"]
    for name in ("recall@1", "mAP", "µAP"):
        assert found.scores[f"{name} (none)"] == 100.0
    assert found.details["originals"] == 7 and found.details["searched"] == 24
    assert images.passes == {"copies": 1, "val": 1, "train": 1}
    again = measure(images_of(tmp_path), told)["student/backbone"]
    assert again.scores == found.scores


def test_distractors_can_be_left_out_and_one_image_a_class_is_enough(tmp_path):
    images = images_of(tmp_path, per_class=1)
    found = measure(images, CopyDetection(distractors="none"))["student/backbone"]
    assert found.details["searched"] == 3 and "train" not in images.passes
    assert found.details["copies"] == 36
