"""SimCLR v2 as a method of the host: its head, and that it is SimCLR where the head is SimCLR's."""

import pytest
import torch
from torch import nn

from carp_plugin.errors import UserError
from carp_plugin.methods.simclrv2 import projection_head
from tests.helpers import augmentation, image_folder, small_settings
from tests.methods.steps import built, first_batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def test_the_head_is_the_releases():
    head = projection_head(24, 32, 16, 3, batch_norm=True)
    names = [type(layer).__name__ for layer in head]
    assert names == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in linear] == [(32, 24), (32, 32), (16, 32)]
    assert all(layer.bias is None for layer in linear)
    assert [layer.bias is None for layer in head if isinstance(layer, nn.BatchNorm1d)] == [
        False,
        False,
        True,
    ]
    weights = torch.cat([layer.weight.detach().flatten() for layer in linear])
    assert weights.std().item() == pytest.approx(0.01, rel=0.1)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(head)[-1].bias is None


def test_with_two_layers_and_no_batch_norm_it_is_simclr_at_twice_the_loss(images):
    """The host's own method with the same weights on the same batch: value and gradient."""
    changes = {"method_kwargs__proj_layers": 2, "method_kwargs__proj_batch_norm": False}
    settings, ours, logged = built(images, "simclrv2", **changes)
    _, theirs, of_host = built(images, "simclr")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    batch = first_batch(settings)
    gradients = []
    for model in (ours, theirs):
        model.training_step(batch, 0).backward()
        gradients.append(model.projector[0].weight.grad)
    assert logged["train_nce_loss"].item() == pytest.approx(
        2 * of_host["train_nce_loss"].item(), rel=1e-5
    )
    assert torch.allclose(gradients[0], 2 * gradients[1], rtol=1e-3, atol=1e-6)


def test_everything_that_learns_is_given_to_the_optimizer_and_has_a_gradient(images):
    settings, model, _ = built(images, "simclrv2")
    model.training_step(first_batch(settings), 0).backward()
    given = {id(p) for group in model.learnable_params for p in group["params"]}
    assert given == {id(p) for p in model.parameters()}
    assert all(p.grad is not None for p in model.parameters())


def test_small_views_are_refused(images):
    views = [augmentation(16, 2), augmentation(8, 1)]
    with pytest.raises(UserError, match="simclrv2 takes no small views.*make 1 smaller"):
        small_settings(images, "simclrv2", augmentations=views)
