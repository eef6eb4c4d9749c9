"""Retrieval, leave one out: brute force and scikit-learn on random data, chance for what tells nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from carp_plugin.errors import UserError
from carp_plugin.evaluation import ranking
from carp_plugin.evaluation.protocols.retrieval import measure, retrieval
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Retrieval
from tests.evaluation.test_shape import made_images


def random_features(seed, n=90, classes=6, dim=8, pull=0.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (n,), generator=generator)
    feats = torch.randn(n, dim, generator=generator) + pull * torch.eye(classes, dim)[targets]
    return Features(F.normalize(feats), targets)


@pytest.mark.parametrize("few", [False, True])
def test_it_is_brute_force_and_scikit_learn(few, monkeypatch):
    if few:  # queries at a time
        monkeypatch.setattr(ranking, "_QUERIES", 7)
        monkeypatch.setattr(ranking, "_VALUES", 1)
    data = random_features(0, pull=1.0)
    found = retrieval(data, (1, 5, 10))
    unit = F.normalize(data.feats.double())
    cosines, labels = (unit @ unit.T).numpy(), data.targets.numpy()
    ap, hits = [], {1: [], 5: [], 10: []}
    for query in range(len(labels)):
        others = np.delete(np.arange(len(labels)), query)
        positive = labels[others] == labels[query]
        ap.append(average_precision_score(positive, cosines[query, others]))
        first = positive[np.argsort(-cosines[query, others])]
        for k in hits:
            hits[k].append(first[:k].any())
    assert found.scores["mAP"] == pytest.approx(100 * np.mean(ap), rel=1e-9)
    assert found.per_image["mAP"] == pytest.approx(ap, rel=1e-9)
    for k, wanted in hits.items():
        assert np.array_equal(found.per_image[f"recall@{k}"], wanted)
        assert found.scores[f"recall@{k}"] == 100 * np.mean(wanted)
    assert found.details["queries"] == 90 and not found.remarks


def test_features_that_know_the_class_score_all():
    data = random_features(0)
    known = Features(torch.eye(6)[data.targets], data.targets)
    assert set(retrieval(known).scores.values()) == {100.0}


def test_a_collapsed_network_scores_chance_whatever_the_order_of_the_files():
    for constant in (torch.full((90, 8), 0.3), torch.zeros(90, 8)):
        data = Features(constant, random_features(0).targets.sort().values)
        found = retrieval(data)
        for name, value in found.scores.items():
            assert value == pytest.approx(found.details["chance"][name], rel=1e-12)
        counts = torch.bincount(data.targets).double()
        wanted = (counts * (counts - 1) / 89).sum() / 90
        assert found.scores["recall@1"] == pytest.approx(100 * float(wanted))
        assert found.scores["mAP"] < 40


def test_random_features_score_chance():
    """The mean over draws lies within four deviations of its own."""
    runs = [retrieval(random_features(seed, n=60)) for seed in range(40)]
    for name in ("mAP", "recall@1", "recall@5"):
        gaps = np.array([run.scores[name] - run.details["chance"][name] for run in runs])
        assert abs(gaps.mean()) < 4 * gaps.std(ddof=1) / len(gaps) ** 0.5


def test_an_image_that_is_alone_in_its_class_asks_for_nothing_and_stays_among_the_others():
    data = random_features(0, pull=2.0)
    more = Features(
        torch.cat([data.feats, torch.ones(1, 8)]), torch.cat([data.targets, torch.tensor([6])])
    )
    found = retrieval(more)
    assert found.details["queries"] == 90 and len(found.per_image["mAP"]) == 90
    assert found.remarks == ("1 of 91 images is alone in its class and asks for nothing.",)
    assert found.scores["mAP"] < retrieval(data).scores["mAP"]


def test_one_image_a_class_is_said():
    with pytest.raises(UserError, match="a class with two validation images"):
        retrieval(Features(torch.eye(3), torch.arange(3)))


def test_a_missing_class_and_a_k_beyond_the_images_are_the_true_number():
    data = Features(torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 5, 5]))
    found = retrieval(data, (1, 100))
    assert found.scores == {"mAP": 100.0, "recall@1": 100.0, "recall@100": 100.0}


def test_features_that_are_not_finite_are_said():
    data = random_features(0)
    data.feats[3, 2] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        retrieval(data)


def test_every_column_is_measured_on_one_pass_of_the_validation_images():
    images = made_images()
    found = measure(images, Retrieval())
    assert list(found) == images.columns and images.passes == {"val": 1}
    assert (
        found["student/backbone"].scores["mAP"] > found["student/backbone"].details["chance"]["mAP"]
    )
