"""One step of a method outside of a trainer, on one process or on each of several ranks."""

from pathlib import Path
from typing import Any, Dict, Sequence

import torch
from lightning.pytorch import seed_everything
from torch.nn.modules.batchnorm import _BatchNorm

from carp_plugin import register
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.data.built import training_loader
from tests.helpers import small_settings
from tests.narrow import narrow_resnets


class FakeTrainer:
    """What a method asks a trainer for."""

    current_epoch = global_step = 0
    num_training_batches = 3
    estimated_stepping_batches = 6
    accumulate_grad_batches = 1
    max_epochs = 2
    sanity_checking = False
    train_dataloader: Any = None


def built(root: Path, method: str, **changes: Any):
    """(settings, a method outside of a trainer, what it logs), with the weights of a seed."""
    register()
    settings = small_settings(root, method, **changes)
    seed_everything(0, verbose=False)
    model: Any = build_model(settings, machine_of(settings))
    logged: Dict[str, Any] = {}
    made = type(model.__class__.__name__, (model.__class__,), {})  # what is replaced is of this one
    made.trainer = FakeTrainer()
    made.log_dict = lambda self, metrics, **_: logged.update(metrics)
    made.log = lambda self, name, value, **_: logged.update({name: value})
    model.__class__ = made
    made.trainer.train_dataloader = training_loader(settings)
    return settings, model, logged


def first_batch(settings: Any):
    """Of its loader."""
    return next(iter(training_loader(settings)))


def in_double(part: Any) -> Any:
    """The images of a batch, however nested, in float64."""
    if isinstance(part, torch.Tensor):
        return part.double() if part.is_floating_point() else part
    return [in_double(one) for one in part]


def share(part: Any, rank: int, world_size: int) -> Any:
    """The rows of a batch that are dealt to a rank."""
    if isinstance(part, torch.Tensor):
        return part[rank::world_size]
    return [share(one, rank, world_size) for one in part]


def stepped(
    rank: int, world_size: int, root: Path, methods: Sequence[str]
) -> Dict[str, Dict[str, Any]]:
    """{method: loss, gradients and, after the step, buffers}, of this rank's share of one batch; in float64.

    Batch norm takes its running statistics: on the CPU no kind of it looks at the images of other ranks.
    """
    found = {}
    for method in methods:
        settings, model, _ = built(root, method)
        model.double()
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()
        model.on_train_start()
        batch = share(in_double(first_batch(settings)), rank, world_size)
        loss = model.training_step(batch, 0)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.trainer.global_step = 1
        model.on_train_batch_end(None, batch, 0)
        buffers = {
            name: tensor.clone()
            for name, tensor in model.named_buffers()
            if "running" not in name and "num_batches" not in name
        }
        found[method] = {"loss": loss.detach(), "gradients": gradients, "buffers": buffers}
    return found


def stepped_on_rank(*arguments: Any) -> Dict[str, Dict[str, Any]]:
    """The same in a process of its own, whose networks are not narrow yet."""
    with narrow_resnets():
        return stepped(*arguments)
