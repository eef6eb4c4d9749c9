"""CARL as a method of the host: its step, its lambda, what watches it."""

import pytest
import torch

from carp_plugin.commands.pretrain import pretrain
from carp_plugin.errors import UserError
from carp_plugin.losses.carl import carl_loss_func
from carp_plugin.losses.collapse import collapse_values
from carp_plugin.settings.methods import CarlKwargs
from carp_plugin.training.callbacks.collapse import sentence, values_of
from carp_plugin.training.devices import machine_of
from carp_plugin.training.plan import plan_of, warnings_of
from tests.helpers import augmentation, image_folder, small_settings
from tests.methods.steps import built, first_batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("small_crops", [0, 1])
def test_step_is_the_loss_of_its_embeddings(small_crops, images):
    views = [augmentation(16, 2)] + ([augmentation(8, small_crops)] if small_crops else [])
    settings, model, logged = built(
        images, "carl", augmentations=views, method_kwargs__entropy_weight=0.5
    )
    loss = model.training_step(first_batch(settings), 0)
    z = model.step_embeddings.chunk(2 + small_crops)
    terms = carl_loss_func(z, model.prototypes().detach())
    expected = terms.consistency + 0.5 * terms.entropy_gap
    assert logged["train_carl_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx((expected + logged["train_class_loss"]).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    given = {id(p) for group in model.learnable_params for p in group["params"]}
    assert given == {id(p) for p in model.parameters()}


def test_lambda_moves_in_a_straight_line_and_stays(images):
    changes = {
        "method_kwargs__entropy_weight": 1.0,
        "method_kwargs__first_entropy_weight": 4.0,
        "method_kwargs__entropy_epochs": 1.5,
    }
    settings, model, _ = built(images, "carl", **changes)
    batch = first_batch(settings)
    seen = []
    for epoch, step in ((0, 0), (0, 1), (1, 0), (1, 2), (5, 0)):  # of 3 steps an epoch
        model.trainer.current_epoch = epoch
        model.training_step(batch, step)
        seen.append(model.entropy_weight)
    assert seen == pytest.approx([4.0, 4 - 3 * (1 / 3) / 1.5, 2.0, 1.0, 1.0])


def test_one_lambda_needs_no_epochs(images):
    _, model, _ = built(images, "carl")
    assert model.weight_at(0) == model.weight_at(3.5) == CarlKwargs().entropy_weight


@pytest.mark.parametrize("key, value", [("first_entropy_weight", 2.0), ("entropy_epochs", 3)])
def test_half_a_way_is_said(key, value, images):
    with pytest.raises(UserError, match="method_kwargs.first_entropy_weight and .* go together"):
        small_settings(images, "carl", **{f"method_kwargs__{key}": value})


def test_the_projector_is_as_long_as_it_is_said_to_be(images):
    _, model, _ = built(images, "carl", method_kwargs__proj_layers=1)
    assert [type(layer) for layer in model.projector] == [torch.nn.Linear]
    _, model, _ = built(images, "carl", method_kwargs__proj_layers=4)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in model.projector) == 4


def test_collapse_is_judged_by_one_block_of_all_prototypes(images):
    _, model, _ = built(images, "carl", method_kwargs__entropy_weight=0.7)
    assert values_of(model) == collapse_values(16, 1.0, 0.7, 16)
    for kind in ("uniform", "one-hot", "constant"):
        said = sentence(kind, 1.0, 1.0, 0.0, carp=model, values=values_of(model), images=8)
        assert "partition_size" not in said and "block" not in said
    assert "one prototype takes all images" in sentence(
        "one-hot", 0.0, 2.7, 0.0, carp=model, values=values_of(model), images=8
    )


def test_more_prototypes_than_rows_are_warned_of(images):
    def said(K):
        settings = small_settings(images, "carl", method_kwargs__num_prototypes=K)
        return warnings_of(settings, plan_of(settings, machine_of(settings), 24, 6))

    assert not said(16)
    (warning,) = said(17)
    assert "16 rows (2 views), fewer than the num_prototypes K = 17" in warning
    assert "method_kwargs.num_prototypes=16 or less" in warning


def test_a_collapse_on_the_way_is_seen(images, capsys):
    """Without an entropy term at a large rate, one prototype takes all images."""
    changes = {"method_kwargs__entropy_weight": 0.0, "optimizer__lr": 30.0, "max_epochs": 4}
    changes["evaluation"] = {"enabled": False}
    summary = pretrain(small_settings(images, "carl", **changes))
    assert summary["signs_of_collapse"] and "train_collapse" in summary["last_epoch"]
    assert "method_kwargs.num_prototypes" in capsys.readouterr().out
