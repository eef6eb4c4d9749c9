"""PCL v2 as a method of the host: which view passes which network, the E-step, the queue, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from carp_plugin.commands.pretrain import pretrain
from carp_plugin.errors import UserError
from carp_plugin.losses.info_nce import info_nce_func
from carp_plugin.losses.pclv2 import negatives_of, prototype_loss_func
from carp_plugin.methods import pclv2
from carp_plugin.partition import random_partition
from carp_plugin.settings.methods import PclKwargs
from tests.helpers import augmentation, image_folder, small_settings
from tests.methods.whole import bare


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def model_of(images, begun=True, **changes):
    return bare(small_settings(images, "pclv2", **changes), begun)


def batch_of(model):
    return next(iter(model.trainer.train_dataloader))


def test_defaults_are_those_of_the_paper():
    kwargs = PclKwargs()
    assert kwargs.num_clusters == (25000, 50000, 100000) and kwargs.temperature == 0.2
    assert (kwargs.queue_size, kwargs.num_negatives) == (16384, 16384)
    assert (kwargs.kmeans_iterations, kwargs.kmeans_redo) == (20, 5)


def test_the_first_view_is_the_query_and_the_second_the_key(images, monkeypatch):
    """Each passes one network, once; the loss is that of the embeddings."""
    model = model_of(images)
    passed, seen = [], {}
    for name in ("backbone", "momentum_backbone"):
        getattr(model, name).register_forward_pre_hook(
            lambda _, inputs, name=name: passed.append((name, inputs[0].clone()))
        )
    instance = lambda q, k, *rest: seen.update(q=q, k=k) or info_nce_func(q, k, *rest)  # noqa: E731
    monkeypatch.setattr(pclv2, "info_nce_func", instance)
    indexes, views, targets = batch_of(model)
    queue = model.queue.clone()
    loss = model.training_step([indexes, views, targets], 0)
    assert [name for name, _ in passed] == ["backbone", "momentum_backbone"]
    assert all(torch.equal(given, view) for (_, given), view in zip(passed, views))
    assert torch.equal(model.queue, queue)  # moves when the step has been taken
    q, k = seen["q"], seen["k"]
    assert not k.requires_grad and torch.allclose(q.norm(dim=1), torch.ones(8))
    expected = info_nce_func(q, k, queue.T, 0.2)
    for m, (K, at) in enumerate(((3, 0), (5, 3))):
        clusters = model.image_clusters[m, indexes].long()
        own = slice(at, at + K)
        negatives = negatives_of(clusters, random_partition(model.cluster_seed + m, 0, K), 4)
        expected = expected + 0.5 * prototype_loss_func(
            q, model.centroids[own], model.concentrations[own], clusters, torch.arange(8), negatives
        )
    assert model.logged["train_pcl_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    total = expected + model.logged["train_class_loss"]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert model.num_large_crops == 2  # as the host knows it


def test_the_clusters_are_of_the_momentum_embeddings_as_they_are(images):
    model = model_of(images)
    rows = model._embeddings_of_all()
    assert torch.allclose(rows.norm(dim=1), torch.ones(24)) and model.momentum_backbone.training
    for clusters, centroids, phi in zip(
        model.image_clusters, model.centroids.split([3, 5]), model.concentrations.split([3, 5])
    ):
        members = F.one_hot(clusters.long(), len(phi)).float()
        means = members.T @ rows / members.sum(dim=0)[:, None]
        nearest = torch.cdist(rows, means).argmin(dim=1)
        assert (nearest == clusters).float().mean() > 0.5  # after three iterations
        assert torch.allclose(centroids.norm(dim=1), torch.ones(len(phi)))
        assert phi.mean().item() == pytest.approx(0.2, rel=1e-5) and (phi > 0).all()


def test_clusters_stay_for_the_epoch_and_are_found_anew_in_the_next(images):
    model = model_of(images)
    with torch.no_grad():
        for parameter in model.momentum_projector.parameters():
            parameter.normal_()
    kept = model.centroids.clone()
    model.on_train_epoch_start()  # as a run that was resumed within the epoch does
    assert torch.equal(model.centroids, kept)
    model.trainer.current_epoch = 1
    model.on_train_epoch_start()
    assert not torch.equal(model.centroids, kept)


def test_before_the_prototypes_start_the_instance_loss_is_alone(images):
    model = model_of(images, method_kwargs__epoch_prototypes_start=1)
    assert int(model.clusters_epoch) == -1
    model.training_step(batch_of(model), 0)
    assert "train_prototype_loss" not in model.logged
    assert torch.equal(model.logged["train_pcl_loss"], model.logged["train_instance_loss"])
    model.trainer.current_epoch = 1
    model.on_train_epoch_start()
    model.training_step(batch_of(model), 0)
    assert int(model.clusters_epoch) == 1 and "train_prototype_loss" in model.logged
    model = model_of(images, method_kwargs__prototype_weight=0.0)
    model.training_step(batch_of(model), 0)
    assert int(model.clusters_epoch) == -1 and "train_prototype_loss" not in model.logged


@pytest.mark.parametrize("size", [20, 8, 5], ids=["no multiple", "one batch", "less than a batch"])
def test_the_queue_holds_the_last_keys(size, images):
    model = model_of(images, method_kwargs__queue_size=size)
    assert torch.allclose(model.queue.norm(dim=0), torch.ones(size))
    batch, keys = batch_of(model), []
    for step in range(3):
        model.training_step(batch, step)
        keys.append(model._keys.clone())
        model.trainer.global_step += 1
        model.on_train_batch_end(None, batch, step)
    last = torch.cat(keys)[-size:]
    turned = model.queue.T.roll(-int(model.queue_ptr), 0)
    assert torch.equal(turned, last)


def test_more_clusters_than_half_the_images_are_refused(images):
    """All clusters of one image: every concentration would be 0 / 0."""
    said = r"num_clusters holds 13, more than half of the 24 .*method_kwargs.num_clusters=\[1,1,1\]"
    with pytest.raises(UserError, match=said):
        model_of(images, method_kwargs__num_clusters=[3, 13])
    model_of(images, method_kwargs__num_clusters=[12])
    model_of(images, method_kwargs__num_clusters=[13], method_kwargs__prototype_weight=0.0)


def test_constant_embeddings_have_the_temperature(images):
    model = model_of(images, begun=False)
    with torch.no_grad():
        model.momentum_projector[2].weight.zero_()
    model.on_train_start()
    model.on_train_epoch_start()
    assert torch.allclose(model.concentrations, torch.full((8,), 0.2))
    assert model.training_step(batch_of(model), 0).isfinite()


def test_embeddings_that_are_not_finite_are_not_clustered(images):
    model = model_of(images, begun=False)
    with torch.no_grad():
        model.momentum_projector[2].bias[0] = float("nan")
    model.on_train_start()
    with pytest.raises(UserError, match="the embeddings of 24 of 24 are not finite; begin anew"):
        model.on_train_epoch_start()


def test_dali_and_small_views_are_refused_in_a_sentence(images):
    with pytest.raises(UserError, match="pclv2 goes over all .*; set data.format=image_folder"):
        small_settings(images, "pclv2", data__format="dali")
    views = [augmentation(16, 2), augmentation(8, 2)]
    with pytest.raises(
        UserError, match="pclv2 takes no small views, but the augmentations make 2 smaller"
    ):
        small_settings(images, "pclv2", augmentations=views)
    with pytest.raises(UserError, match="num_cluster is not a key of pclv2; did you mean"):
        small_settings(images, "pclv2", method_kwargs__num_cluster=[3])
    with pytest.raises(UserError, match="method_kwargs.num_clusters must be"):
        small_settings(images, "pclv2", method_kwargs__num_clusters=[])


def test_a_run_that_cannot_cluster_ends_in_a_sentence(images):
    settings = small_settings(images, "pclv2", method_kwargs__num_clusters=[20], max_epochs=1)
    with pytest.raises(UserError, match="more than half of the 24 training images"):
        pretrain(settings)
