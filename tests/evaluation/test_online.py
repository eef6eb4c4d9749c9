"""The learning curve: what it measures and that it leaves training as it was."""

import json
from pathlib import Path

import pytest
import torch

from carp_plugin.commands.pretrain import pretrain
from tests.helpers import image_folder, small_settings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def trained(images, frequency, method="carp", **changes):
    evaluation = {"k": 5, "frequency": frequency}
    summary = pretrain(small_settings(images, method, evaluation=evaluation, **changes))
    checkpoint = Path(summary["checkpoint"])
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    return summary, json.loads((checkpoint.parent / "metrics.json").read_text()), weights


def test_measures_when_due_and_after_the_last_epoch(images):
    summary, epochs, _ = trained(images, 2, max_epochs=3)
    measured = ["knn_student" in epoch for epoch in epochs]
    assert measured == [False, True, True]
    assert ["knn_teacher" in epoch for epoch in epochs] == measured
    rows = {row["features"]: row["knn"] for row in summary["accuracy"]}
    assert rows["student"] == epochs[-1]["knn_student"]
    assert rows["teacher"] == epochs[-1]["knn_teacher"]


def test_training_is_the_same_with_and_without(images):
    _, _, without = trained(images, 0, checkpoint__dir="without")
    _, _, measured = trained(images, 1, checkpoint__dir="measured")
    assert without.keys() == measured.keys()
    for name, tensor in without.items():
        assert torch.equal(tensor, measured[name]), name


def test_last_point_is_the_accuracy_without_a_curve(images):
    (without, _, _), (measured, _, _) = trained(images, 0), trained(images, 1)
    assert without["accuracy"] == measured["accuracy"]


def test_a_method_without_teacher_has_one_curve(images):
    _, epochs, _ = trained(images, 1, method="simsiam", max_epochs=1)
    assert "knn_student" in epochs[0] and "knn_teacher" not in epochs[0]


def test_seconds_of_training_are_noted(images):
    _, epochs, _ = trained(images, 0, max_epochs=2)
    assert all(epoch["train_seconds"] > 0 for epoch in epochs)


def test_the_layer_on_random_features_takes_its_batches_one_by_one(images, monkeypatch):
    """Accumulated batches raise the rate of the online classifier, which steps on their mean, and not this one's."""
    seen = []

    def accuracy(*features, **how):
        seen.append(how)
        return 0.0

    monkeypatch.setattr("carp_plugin.evaluation.online.linear_accuracy", accuracy)
    for accumulated in (1, 2):
        trained(images, 0, max_epochs=1, accumulate_grad_batches=accumulated)
    assert seen[0] == seen[1] and seen[0]["batch_size"] == 8
    assert seen[0]["lr"] == pytest.approx(0.3 * 8 / 256)
