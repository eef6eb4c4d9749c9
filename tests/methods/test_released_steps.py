"""Ten training steps beside the authors' released head, partition and loss views one by one, the teacher last."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from carp_plugin.methods import carp as carp_module
from carp_plugin.methods.carp import CARP
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.helpers import augmentation, image_folder, small_settings

FILES = sorted((Path(__file__).parents[1] / "golden" / "steps").glob("*.npz"))


class Trainer:
    """What the method asks a trainer for."""

    global_step = 0
    estimated_stepping_batches = 10
    sanity_checking = False
    accumulate_grad_batches, max_epochs, train_dataloader = 1, 1, range(10)


def released(file):
    return {
        name: torch.from_numpy(value) if value.ndim or "." in name else value.item()
        for name, value in np.load(file).items()
    }


def built(data, images, monkeypatch):
    """CARP with the release's first weights, on features in place of a backbone."""
    _, views, _, _ = data["features"].shape
    settings = small_settings(
        images,
        augmentations=[augmentation(16, 2)] + [augmentation(8, views - 2)] * (views > 2),
        method_kwargs={
            "proj_hidden_dim": data["before.projector.0.bias"].shape[0],
            "proj_output_dim": data["before.projector.6.bias"].shape[0],
            "num_prototypes": data["before.prototypes.weight"].shape[0],
            "partition_size": data["partition_size"],
        },
        momentum={"base_tau": data["tau"], "final_tau": data["tau"], "classifier": False},
    )
    model = build_model(settings, machine_of(settings))
    model.backbone, model.momentum_backbone = nn.Flatten(), nn.Flatten()
    model.double()
    for network, name, value in tensors(data, "before."):
        for of in (network, f"momentum_{network}"):
            model.get_submodule(of).state_dict()[name].copy_(value)
    monkeypatch.setattr(CARP, "trainer", Trainer())
    for log in ("log", "log_dict"):
        monkeypatch.setattr(CARP, log, lambda self, *_, **__: None)
    return model


def tensors(data, prefix):
    """What the release calls a network's weights: (network, name in it, value)."""
    for name, value in data.items():
        if name.startswith(prefix):
            yield (*name[len(prefix) :].split(".", 1), value)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_losses_and_weights_of_ten_steps_are_the_releases(file, fused, tmp_path, monkeypatch):
    data = released(file)
    model = built(data, image_folder(tmp_path), monkeypatch)
    model.fused = fused
    monkeypatch.setattr(
        carp_module, "partition", lambda kind, seed, step, *_: data["partitions"][step]
    )
    head = [*model.projector.parameters(), *model.prototypes.parameters()]
    model.on_train_start()
    optimizer = torch.optim.SGD(head, lr=data["lr"], momentum=data["momentum"])
    for step, views in enumerate(data["features"].double()):
        model.trainer.global_step = step
        batch = [torch.arange(len(views[0])), list(views[..., None, None]), torch.zeros(6).long()]
        optimizer.zero_grad()
        model.training_step(batch, step).backward()
        optimizer.step()
        model.trainer.global_step = step + 1  # the host's momentum update looks whether it moved
        model.on_train_batch_end(None, batch, step)
        terms = [model.step_metrics[f"train_{term}"] for term in ("consistency", "entropy_gap")]
        torch.testing.assert_close(torch.stack(terms), data["losses"][step], rtol=1e-10, atol=1e-12)
    for network, momentum in (("student.", ""), ("teacher.", "momentum_")):
        for module, name, value in tensors(data, network):
            ours = model.get_submodule(momentum + module).state_dict()[name]
            torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-12)


def test_there_are_two_and_four_views():
    assert [file.stem for file in FILES] == ["2views", "4views"]
