"""A pass over all training images, and k-means of what it gives; whole methods on ranks against one process."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from carp_plugin.data.images import named_images
from carp_plugin.errors import UserError
from carp_plugin.methods.whole_set import (
    embeddings_of_all,
    evaluating,
    kmeans,
    leaving_statistics,
    size_of,
    still_transform,
    with_transform,
)
from tests.data.built import training_loader
from tests.distributed import run_on_ranks
from tests.helpers import image_folder, small_settings
from tests.methods.whole import FakeTrainer, bare, steps_on_ranks, trained
from tests.narrow import narrow_resnets


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images, no multiple of a batch of 5."""
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pcl(images):
    return bare(small_settings(images, "pclv2"), begun=False)


def stills_of(model, loader):
    """The images as they are, one by one."""
    dataset = with_transform(loader.dataset, still_transform(model.cfg))
    return torch.stack([dataset[i][1] for i in range(len(dataset))])


@pytest.mark.parametrize("batch_size, workers", [(5, 0), (24, 0), (8, 2)])
def test_every_image_has_its_row_whatever_the_batches(batch_size, workers, images, pcl):
    changes = {"optimizer__batch_size": batch_size, "data__num_workers": workers}
    loader = training_loader(small_settings(images, "pclv2", **changes))
    stills = stills_of(pcl, loader)
    before = torch.get_rng_state()
    with evaluating(pcl.backbone):
        rows = embeddings_of_all(
            loader, still_transform(pcl.cfg), pcl.backbone, pcl.classifier.weight
        )
        assert torch.allclose(rows, pcl.backbone(stills), atol=1e-5)
    assert pcl.backbone.training
    assert torch.equal(torch.get_rng_state(), before)  # training draws what it would have drawn
    assert rows.shape == (24, 64) and len(rows.unique(dim=0)) == 24


def test_an_image_as_it_is_is_a_central_crop_and_the_views_stay_views(images, pcl):
    loader = training_loader(small_settings(images, "pclv2"))
    stills = stills_of(pcl, loader)
    assert stills.shape == (24, 3, 16, 16)
    assert torch.equal(stills, stills_of(pcl, loader))
    indexes, views, labels = loader.dataset[(0, 3)]
    assert indexes == 3 and len(views) == 2 and not torch.equal(views[0], views[1])


def test_an_image_that_cannot_be_read_has_the_row_of_the_one_in_its_place(tmp_path, pcl):
    images = image_folder(tmp_path)
    (images / "train/class_1/2.png").write_bytes(b"no image")
    loader = training_loader(small_settings(images, "pclv2", data__max_bad_fraction=0.1))
    transform = still_transform(pcl.cfg)
    flat = lambda X: X.flatten(1)  # noqa: E731
    rows = embeddings_of_all(loader, transform, flat, pcl.classifier.weight)
    assert torch.equal(rows[6], rows[7]) and len(rows.unique(dim=0)) == 23
    assert len(named_images(loader).bad_images()) == 1  # said once, for training and for this


def test_a_data_set_without_a_transform_is_refused():
    with pytest.raises(UserError, match="a list cannot be seen without .*data.format=image_folder"):
        with_transform([1, 2], None)
    with pytest.raises(UserError, match="DALI's loader does not serve; set data.format=image_fol"):
        size_of(FakeTrainer(iter([])))


def test_batch_statistics_leave_the_running_ones_as_they_are():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    rows = torch.randn(6, 3) * 5
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with leaving_statistics(network):
        out = network(rows)
    assert torch.allclose(out.mean(dim=0), torch.zeros(4), atol=1e-5)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    network(rows)
    assert not torch.equal(network[1].running_mean, before["1.running_mean"])


def test_kmeans_gives_means_of_members_and_exact_distances_and_is_repeated():
    rows = F.normalize(torch.randn(90, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    rows[45:] = rows[:45]  # copies
    found = kmeans(rows.numpy(), 45, iterations=40, redo=2, seed=3)
    again = kmeans(rows.numpy(), 45, iterations=40, redo=2, seed=3)
    assert all(np.array_equal(*pair) for pair in zip(found, again))
    nearest = torch.cdist(rows.double(), torch.from_numpy(found.centroids).double())
    assert torch.allclose(
        torch.from_numpy(found.distances).double(), nearest.min(dim=1).values, atol=1e-6
    )
    assert (found.distances < 1e-7).mean() > 0.5  # a pair of copies; faiss's own would be 3e-4


def test_kmeans_refuses_what_it_cannot_do():
    rows = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(ValueError, match=r"expected 1 to n of rows \(n, D\), received 4"):
        kmeans(rows, 4)
    with pytest.raises(ValueError, match="expected finite numbers"):
        kmeans(rows * np.nan, 2)


# ------------------------------------------------------------------------------ ranks

METHODS = {
    "pclv2": {"method_kwargs__queue_size": 12, "momentum": {"base_tau": 0.5, "final_tau": 0.5}},
    "selav2": {},
    "selav2, soft": {"method_kwargs__labels": "soft"},
}


def settings_of(images, name):
    changes = {"optimizer__batch_size": 8, "data__val_path": None, **METHODS[name]}
    return small_settings(images, name.partition(",")[0], **changes)


def all_methods(rank, world_size, images, folder):
    torch.set_num_threads(1)
    several = {"devices": world_size, "strategy": "ddp", "evaluation": {"enabled": False}}
    with narrow_resnets():
        steps = {
            name: steps_on_ranks(rank, world_size, settings_of(images, name), 2) for name in METHODS
        }
        whole = {}
        for name in METHODS:  # from here on this is a process of torchrun's
            changes = {"optimizer__batch_size": 5, "data__val_path": None, **several}
            whole[name] = trained(
                rank,
                world_size,
                folder,
                small_settings(images, name.partition(",")[0], **changes, **METHODS[name]),
            )
    return steps, whole


@pytest.fixture(scope="module")
def both(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return run_on_ranks(all_methods, 2, folder, 2, images, folder)


@pytest.fixture
def ranks(both):
    """Of each rank: method -> tensors after some steps in float64, without batch norm."""
    return [dict(steps) for steps, _ in both]


@pytest.mark.parametrize("name", METHODS)
def test_ranks_of_a_whole_training_end_with_the_same_weights_and_state(name, both):
    """But for the running statistics of batch norm, which are rank 0's as soon as the next step begins."""
    first, second = (
        {key: value for key, value in whole[name]["tensors"].items() if "running_" not in key}
        for _, whole in both
    )
    assert first == second and len(first) > 60
    state = {"pclv2": ["queue", "image_clusters", "centroids"]}.get(name, ["image_memory"])
    assert set(state) <= set(first)
    for _, whole in both:
        # the clusters of all ranks' images, of two clusterings; else a number that is logged
        assert whole[name]["sent"] == (2 * 2 * 5 if name == "pclv2" else 1)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_several_ranks_sends_no_state_along(name, images):
    """DistributedDataParallel broadcasts the buffers of rank 0 before every forward pass, but for these."""
    model = bare(settings_of(images, name))
    norms = ("running_mean", "running_var", "num_batches_tracked")
    state = {name for name, _ in model.named_buffers() if not name.endswith(norms)}
    assert len(state) >= 3 and state <= set(model._ddp_params_and_buffers_to_ignore)


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_of_different_images_are_one_process(name, ranks, images):
    """Weights, queue, clusters, memory and labels after two epochs."""
    whole = steps_on_ranks(0, 1, settings_of(images, name), 2)
    losses = torch.stack([found[name].pop("losses") for found in ranks])
    assert torch.allclose(losses.mean(dim=0), whole.pop("losses"), rtol=1e-6)
    assert not torch.equal(losses[0], losses[1])  # different images
    for found in ranks:
        assert found[name].keys() == whole.keys()
        for key, tensor in whole.items():
            near = {"rtol": 1e-6, "atol": 1e-7} if tensor.is_floating_point() else {}
            assert torch.allclose(found[name][key], tensor, **near), key
    state = {key.partition(".")[0] for key in whole}
    assert {"pclv2": "image_clusters", "selav2": "image_labels", "selav2, soft": "plan_log_v"}[
        name
    ] in state
