"""Logistic regression on features: the optimum of its objective, the choice of C, and data that are hardly any."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from carp_plugin.evaluation.protocols.logistic import logistic
from carp_plugin.evaluation.store import Features


def blobs(seed, n, classes=3, dim=6, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % classes
    feats = torch.eye(classes, dim)[targets] + spread * torch.randn(n, dim, generator=generator)
    return Features(F.normalize(feats), targets)


TRAIN, VAL = blobs(0, 120), blobs(1, 80)


def test_it_is_the_minimum_of_the_penalised_likelihood():
    """Newton's steps in float64 on the standardised rows give the same predictions as L-BFGS."""
    C = 0.3
    found = logistic(TRAIN, VAL, [C])
    rows, labels = TRAIN.feats.double(), TRAIN.targets
    mean, deviation = rows.mean(dim=0), rows.std(dim=0, correction=0)
    x = (rows - mean) / deviation
    weight = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10)

    def objective():
        solver.zero_grad()
        loss = C * F.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        loss = loss + weight.square().sum() / 2
        loss.backward()
        return loss

    solver.step(objective)
    guess = ((VAL.feats.double() - mean) / deviation @ weight.T + bias).argmax(dim=1)
    right = (guess == VAL.targets).numpy()
    assert np.array_equal(found.per_image["top1"], right)
    assert found.scores == {"top1": 100 * right.mean()} and 50 < found.scores["top1"] < 100


def test_C_is_chosen_on_held_out_training_images_alone():
    found = logistic(TRAIN, VAL, [1e-6, 1.0], seed=3)
    tried = found.details["held_out"]
    assert found.details["C"] == max((1e-6, 1.0), key=lambda C: tried[f"{C:g}"])
    shuffled = Features(VAL.feats, VAL.targets.flip(0))
    assert logistic(TRAIN, shuffled, [1e-6, 1.0], seed=3).details == found.details
    assert logistic(TRAIN, VAL, [1e-6, 1.0], seed=3).scores == found.scores
    equal = logistic(TRAIN, VAL, [2.0, 2.0 + 1e-9])
    assert equal.details["C"] == 2.0  # of equals the strongest penalty


def test_more_than_five_classes_have_a_top5():
    found = logistic(blobs(0, 140, 7, 8), blobs(1, 70, 7, 8), [1.0])
    assert 0 < found.scores["top1"] < found.scores["top5"] <= 100
    assert (found.per_image["top5"] >= found.per_image["top1"]).all()


@pytest.mark.parametrize("case", ["one image a class", "a missing class", "constant", "one class"])
def test_hardly_any_data_give_the_true_number(case):
    train, val = TRAIN, VAL
    if case == "one image a class":
        train = Features(TRAIN.feats[:3], TRAIN.targets[:3])
    if case == "a missing class":
        few = TRAIN.targets != 2
        train = Features(TRAIN.feats[few], TRAIN.targets[few])
    if case == "constant":
        train, val = (Features(torch.full_like(f, 0.4), t) for f, t in (TRAIN, VAL))
    if case == "one class":
        train = Features(TRAIN.feats, torch.ones_like(TRAIN.targets))
    found = logistic(train, val)
    right = found.per_image["top1"]
    assert found.scores["top1"] == 100 * right.mean() and len(right) == len(VAL.targets)
    if case == "one image a class":
        assert "not chosen on held-out" in found.remarks[0] and found.details["C"] == 1.0
    if case == "a missing class":
        assert not right[VAL.targets.numpy() == 2].any() and right.any()
    if case == "constant":  # one and the same class for all
        assert found.scores["top1"] == pytest.approx(100 / 3, abs=1)
    if case == "one class":
        assert found.scores["top1"] == 100 * (VAL.targets == 1).double().mean()
        assert found.remarks[0].startswith("warning: ")


def test_a_fit_that_did_not_end_is_said():
    found = logistic(TRAIN, VAL, [1000.0], max_iterations=1)
    assert "had not converged after 1 iterations at C = 1000" in found.remarks[0]
