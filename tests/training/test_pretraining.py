"""What a pretraining begins with."""

import pytest
import torch

from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import begin_with, build_model
from tests.helpers import image_folder, small_settings
from tests.linear_helpers import write_checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("method", ["mocov2plus", "swav"])
def test_a_new_run_begins_with_an_old_ones_weights_whenever_its_queue_was_made(
    method, images, tmp_path
):
    """MoCo's is made with the method and stays its own; SwAV's when training begins, and is left out."""
    path = write_checkpoint(tmp_path / "old", images, method, seed=3)
    content = torch.load(path, weights_only=True)
    content["state_dict"].setdefault("queue", torch.zeros(2, 16, 16))
    torch.save(content, path)
    settings = small_settings(images, method)
    model = build_model(settings, machine_of(settings))
    begin_with(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][name]), name
