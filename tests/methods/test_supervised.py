"""Supervised training: the classifier's gradient reaches the backbone, and it is fine-tuning from random weights."""

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.errors import UserError
from carp_plugin.evaluation.finetune import FineTuning
from tests.helpers import augmentation, image_folder, small_settings
from tests.methods.steps import built, first_batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def test_it_is_fine_tuning_from_random_weights(images):
    """The same loss and gradients as the fine-tuning's model with the same weights, and so for step after step."""
    settings, model, _ = built(images, "supervised", augmentations=[augmentation(16, 1)])
    _, twin, _ = built(images, "supervised", augmentations=[augmentation(16, 1)])
    tuned = FineTuning(twin.backbone, 6, lr=0.1, classifier_lr=0.1, channels_last=True)
    tuned.classifier.load_state_dict(model.classifier.state_dict())
    _, (view,), targets = batch = first_batch(settings)
    loss = model.training_step(batch, 0)
    other = F.cross_entropy(tuned(view)["logits"], targets)
    assert loss.item() == pytest.approx(other.item(), rel=1e-6)
    loss.backward()
    other.backward()
    for name in ("backbone.conv1.weight", "classifier.weight"):
        own, theirs = model.get_parameter(name).grad, tuned.get_parameter(name).grad
        assert own.any() and torch.allclose(own, theirs, rtol=1e-4, atol=1e-7)


def test_all_decays_and_the_classifier_has_its_rate(images):
    _, model, _ = built(images, "supervised", optimizer__classifier_lr=0.2)
    groups = {group["name"]: group for group in model.learnable_params}
    assert "weight_decay" not in groups["classifier"]
    assert groups["classifier"]["lr"] == pytest.approx(0.2 * 8 / 256)


def test_several_views_are_averaged(images):
    settings, model, _ = built(images, "supervised")
    model.eval()
    _, views, targets = batch = first_batch(settings)
    expected = [F.cross_entropy(model(view)["logits"], targets) for view in views]
    assert model.training_step(batch, 0).item() == pytest.approx(sum(expected).item() / 2, rel=1e-6)


def test_without_labels_it_is_refused_in_a_sentence(images):
    with pytest.raises(UserError, match="supervised learns from labels, and data.no_labels=True"):
        small_settings(images, "supervised", data__no_labels=True, data__val_path=None)


def test_it_has_no_keys(images):
    with pytest.raises(UserError, match="method_kwargs.temperature is not a key of supervised"):
        small_settings(images, "supervised", method_kwargs__temperature=0.1)
