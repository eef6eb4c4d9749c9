"""InfoMin as a method of the host: its step, its queue, its patches."""

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.errors import UserError
from carp_plugin.losses.infomin import infomin_loss_func
from carp_plugin.methods.moco import mlp
from carp_plugin.methods.patches import PatchHead, features_of_patches
from tests.helpers import image_folder, small_settings
from tests.methods.steps import built, first_batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def still(model):
    """Batch norm takes its running statistics, so that one pass is like another."""
    model.eval()
    return model


def after_step(model, batch):
    model.on_train_start()
    loss = model.training_step(batch, 0)
    model.trainer.global_step = 1
    model.on_train_batch_end(None, batch, 0)
    return loss


def test_step_is_the_loss_of_one_query_one_key_and_the_patches(images):
    settings, model, logged = built(images, "infomin")
    still(model)
    _, (one, other, patches), _ = batch = first_batch(settings)
    queue = model.queue.clone()
    q, k = model(one)["z"], model.momentum_forward(other)["z"]
    feats = features_of_patches(model.backbone, patches, channels_last=True)
    jigsaw = F.normalize(model.patch_head(feats), dim=-1)
    loss = after_step(model, batch)
    expected = infomin_loss_func(q, jigsaw, k, queue[0], 0.15, 0.5)
    assert logged["train_nce_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    trained = {id(p) for p in model.parameters() if p.grad is not None}
    assert trained == {id(p) for group in model.learnable_params for p in group["params"]}
    assert torch.equal(model.queue[0, :8], k) and torch.equal(model.queue[0, 8:], queue[0, 8:])
    assert model.queue_ptr.item() == 8


def test_with_beta_0_and_both_directions_it_is_the_hosts_moco(images):
    changes = {"method_kwargs__beta": 0.0, "method_kwargs__symmetric": True}
    settings, ours, logged = built(images, "infomin", **changes, method_kwargs__temperature=0.2)
    _, theirs, of_host = built(images, "mocov2plus")
    own = ours.state_dict()
    state = {name: own.get(name, tensor) for name, tensor in theirs.state_dict().items()}
    state["queue"] = own["queue"].flip(0).transpose(1, 2)  # the host's first is of the first view
    theirs.load_state_dict(state)
    batch = first_batch(settings)
    ours.training_step(batch, 0)
    theirs.training_step([batch[0], batch[1][:2], batch[2]], 0)
    assert logged["train_nce_loss"].item() == pytest.approx(
        of_host["train_nce_loss"].item(), rel=1e-5
    )


def test_the_queue_goes_round_and_a_batch_larger_than_it_leaves_its_last(images):
    settings, model, _ = built(images, "infomin", method_kwargs__queue_size=12)
    still(model)
    batch = first_batch(settings)
    key = model.momentum_forward(batch[1][1])["z"]
    after_step(model, batch)
    after_step(model, batch)  # of 12 rows the second 8 are 8 to 11 and 0 to 3
    assert model.queue_ptr.item() == 4
    _, model, _ = built(images, "infomin", method_kwargs__queue_size=5)
    still(model)
    after_step(model, batch)
    assert torch.equal(model.queue[0], key[-5:]) and model.queue_ptr.item() == 0


def test_the_order_of_patches_is_that_of_the_columns(images):
    """Permuted patches with the head's columns permuted back, batch statistics included: the same query."""
    torch.manual_seed(0)
    head = PatchHead(mlp(8, 8, 4), 4)
    feats = torch.randn(3, 9, 8)
    order = torch.randperm(9)
    expected = head(feats.flatten(0, 1))
    with torch.no_grad():
        columns = head.all.weight.view(4, 9, 4)[:, order].clone()
        head.all.weight.copy_(columns.flatten(1))
    assert torch.allclose(head(feats[:, order].flatten(0, 1)), expected, atol=1e-6)


def test_patches_that_say_nothing_make_one_query():
    head = PatchHead(mlp(8, 8, 4), 4)
    queries = head(torch.zeros(5 * 9, 8))
    assert queries.shape == (5, 4) and torch.equal(queries, queries[:1].expand(5, -1))


def test_a_step_that_is_not_taken_leaves_the_queue_alone(images):
    settings, model, _ = built(images, "infomin")
    before = model.queue.clone()
    model.training_step(first_batch(settings), 0)
    assert torch.equal(model.queue, before)


def test_a_loader_without_patches_is_named(images):
    _, model, _ = built(images, "infomin")
    indexes, views, labels = first_batch(small_settings(images))
    with pytest.raises(UserError, match="infomin looks at patches.*own main_pretrain.py"):
        model.training_step([indexes, views, labels], 0)


def test_a_backbone_of_one_size_is_refused(images):
    backbone = {"name": "swin_tiny"}
    with pytest.raises(UserError, match="takes no patches of 4 pixels"):
        built(images, "infomin", backbone=backbone)
