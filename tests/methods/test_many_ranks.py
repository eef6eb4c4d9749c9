"""Methods of ours on two gloo ranks with different images against one process with all of them."""

import pytest
import torch

from tests.distributed import run_on_ranks
from tests.helpers import image_folder
from tests.methods.steps import stepped, stepped_on_rank

METHODS = ["carl", "simclrv2", "supervised", "pirl", "infomin"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process saw, and what each of two ranks did."""
    images = image_folder(tmp_path_factory.mktemp("images"))
    folder = tmp_path_factory.mktemp("ranks")
    ranks = run_on_ranks(stepped_on_rank, 2, folder, 2, images, METHODS)
    return stepped(0, 1, images, METHODS), ranks


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_two_ranks_is_what_one_process_has(method, found):
    one, ranks = found[0][method], [rank[method] for rank in found[1]]
    # their images differ, and so does what each has of the loss's gradient
    assert not torch.equal(*(rank["gradients"]["backbone.conv1.weight"] for rank in ranks))
    mean = torch.stack([rank["loss"] for rank in ranks]).mean()
    assert torch.allclose(mean, one["loss"], rtol=1e-10)
    assert all(rank["gradients"].keys() == one["gradients"].keys() for rank in ranks)
    for name, gradient in one["gradients"].items():
        mean = torch.stack([rank["gradients"][name] for rank in ranks]).mean(0)
        assert torch.allclose(mean, gradient, rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_keeps_is_the_same_everywhere(method, found):
    one, ranks = found[0][method], [rank[method] for rank in found[1]]
    for name, buffer in one["buffers"].items():
        for rank in ranks:
            assert torch.allclose(rank["buffers"][name], buffer, rtol=1e-10, atol=0), name
