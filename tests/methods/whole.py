"""The methods that go over all images at an epoch's start, outside a trainer, in one process and on ranks."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Dict, List
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning.pytorch import seed_everything
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from carp_plugin import register
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.host import METHODS
from carp_plugin.settings.pretraining import Pretraining
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.data.built import training_loader
from tests.distributed import Collectives
from tests.rank_runs import digest, under_torchrun


class FakeTrainer:
    """What a method asks a trainer for."""

    def __init__(self, loader: Any) -> None:
        self.train_dataloader = loader
        self.global_step = self.current_epoch = 0
        self.estimated_stepping_batches, self.max_epochs, self.accumulate_grad_batches = 10, 2, 1
        self.sanity_checking = False


def bare(settings: Pretraining, begun: bool = True) -> Any:
    """A method with a trainer that is none, and what it logs as ``logged``; training has begun unless told not."""
    register()
    seed_everything(0, verbose=False)
    model: Any = build_model(settings, machine_of(settings))
    trainer = FakeTrainer(training_loader(settings))
    logged: Dict[str, Any] = {}
    attributes = {
        "trainer": trainer,
        "logged": logged,
        "current_epoch": property(lambda self: trainer.current_epoch),
        "log_dict": lambda self, metrics, **_: logged.update(metrics),
        "log": lambda self, name, value, **_: logged.update({name: value}),
    }
    model.__class__ = type(type(model).__name__, (type(model),), attributes)
    if begun:
        model.on_train_start()
        model.on_train_epoch_start()
    return model


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Changes the model: what an image gives no longer depends on the others of its batch."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    return model


def steps_on_ranks(rank: int, world_size: int, settings: Pretraining, steps: int) -> Dict[str, Any]:
    """Tensors of a method after steps of SGD on this rank's share of the same global batches, in float64.

    Gradients are averaged over the ranks, as DistributedDataParallel does.

    Args:
        rank: of this process.
        world_size: 1 is one process on the whole batches.
        settings: ``optimizer.batch_size`` is of the global batch.
        steps: of an epoch; two epochs are trained.
    """
    model = bare(settings, begun=False)
    without_batch_norm(model).double()
    if dist.is_initialized():  # what counts is that ranks differ in nothing that they are told
        assert dist.get_world_size() == world_size
    model.on_train_start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader, losses = model.trainer.train_dataloader, []
    for epoch in range(2):
        model.trainer.current_epoch = loader.sampler.epoch = epoch
        model.on_train_epoch_start()
        for index, (indexes, views, targets) in zip(range(steps), loader):
            own = slice(rank, None, world_size)  # as EpochOrder deals images out
            batch: List[Any] = [indexes[own], [v[own].double() for v in views], targets[own]]
            optimizer.zero_grad()
            loss = model.training_step(batch, index)
            loss.backward()
            model.on_after_backward()
            for parameter in model.parameters():
                if world_size > 1 and parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world_size
            optimizer.step()
            losses.append(loss.item())
            model.trainer.global_step += 1
            model.on_train_batch_end(None, batch, index)
    return {**model.state_dict(), "losses": torch.tensor(losses)}


def trained(rank: int, world_size: int, folder: Path, settings: Pretraining) -> Dict[str, Any]:
    """One whole training through Lightning: digests of all tensors, and the most numbers that a step's forward sent.

    Args:
        rank: of this process.
        world_size: ranks.
        folder: to run in.
        settings: of several devices.
    """
    register()
    under_torchrun(rank, world_size)
    os.chdir(folder)
    method, models, most = METHODS[settings.method], [], []
    step = method.training_step

    def training_step(self: Any, batch: Any, index: int) -> Any:
        models.append(self)
        before = len(sent.calls)
        loss = step(self, batch, index)
        most.extend(call.elements for call in sent.calls[before:])
        return loss

    with Collectives() as sent, redirect_stdout(StringIO()):
        with patch.object(method, "training_step", training_step):
            pretrain(settings)
    tensors = {name: digest(tensor.float()) for name, tensor in models[-1].state_dict().items()}
    return {"tensors": tensors, "sent": max(most, default=0)}
