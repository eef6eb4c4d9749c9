"""What a checkpoint holds, for whoever reads it."""

import torch

from carp_plugin.training.callbacks.checkpoint import AtomicCheckpointIO


def test_weights_are_contiguous_whatever_the_memory_format(tmp_path):
    """safetensors refuses other strides, and another backbone would take them over."""
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    given = {"state_dict": {"w": weight, "n": torch.tensor(3)}, "epoch": 1}
    AtomicCheckpointIO().save_checkpoint(given, tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["state_dict"]["w"].is_contiguous() and saved["epoch"] == 1
    assert torch.equal(saved["state_dict"]["w"], weight)
    assert given["state_dict"]["w"] is weight  # what trains is left as it is
