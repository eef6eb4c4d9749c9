"""Trainings that every rank of :func:`tests.distributed.run_on_ranks` does, and what is seen of them."""

import hashlib
import os
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Dict
from unittest.mock import patch

import torch

from carp_plugin import register
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.host import METHODS, MomentumUpdater
from carp_plugin.methods import carp
from carp_plugin.settings.pretraining import Pretraining
from tests.distributed import Collectives
from tests.helpers import small_settings
from tests.narrow import narrow_resnets


def under_torchrun(rank: int, world_size: int) -> None:
    """What torchrun says to a process, for Lightning not to start any."""
    world = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({key: str(value) for key, value in {**world, **own}.items()})


def trained(
    rank: int, world_size: int, root: Path, folder: Path, runs: Dict[str, Dict[str, Any]]
) -> Dict[str, Dict[str, Any]]:
    """{name of a run: what this rank saw}; the runs go one after the other, in ``folder``.

    Args:
        rank: of this process.
        world_size: ranks.
        root: images, as ``image_folder`` makes them.
        folder: to run in.
        runs: changes of ``small_settings`` for each of them.
    """
    under_torchrun(rank, world_size)
    os.chdir(folder)
    several = {"devices": world_size, "strategy": "ddp"}
    with narrow_resnets():
        return {
            name: watched(small_settings(root, **several, name=name, **changes))
            for name, changes in runs.items()
        }


def watched(settings: Pretraining) -> Dict[str, Any]:
    """One training, and what was seen of every batch, of every optimizer step and at its end."""
    register()
    method = METHODS["carp"]
    batches, taus, losses, model = [], [], [], None
    training_step, backward = method.training_step, method.backward
    update, objective = MomentumUpdater.update, carp.carp_objective_func

    def step(self, batch, index):
        nonlocal model
        model = self
        batches.append(
            {
                "images": batch[0].tolist(),
                "epoch": self.trainer.current_epoch,
                "step": self.trainer.global_step,
                "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            }
        )
        before = len(sent.calls)
        loss = training_step(self, batch, index)
        batches[-1].update(sent=sent.calls[before:], loss=loss.item())
        return loss

    def backward_of(self, loss, *args, **kwargs):
        batches[-1]["backward"] = loss.item()
        backward(self, loss, *args, **kwargs)

    def tau_of(self, *pair):
        if not taus or taus[-1] != (model.trainer.global_step, self.cur_tau):
            taus.append((model.trainer.global_step, self.cur_tau))
        update(self, *pair)

    def loss_of(*args, **kwargs):
        before = len(sent.calls)
        loss, terms = objective(*args, **kwargs)
        partition = hashlib.sha256(args[4].numpy().tobytes()).hexdigest()
        losses.append({"partition": partition, "sent": sent.calls[before:]})
        return loss, terms

    with ExitStack() as stack:
        sent = stack.enter_context(Collectives())
        out = stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(patch.object(method, "training_step", step))
        stack.enter_context(patch.object(method, "backward", backward_of))
        stack.enter_context(patch.object(MomentumUpdater, "update", tau_of))
        stack.enter_context(patch.object(carp, "carp_objective_func", loss_of))
        summary = pretrain(settings)
    weights = {name: digest(tensor) for name, tensor in model.named_parameters()}
    rate = model.trainer.optimizers[0].param_groups[0]["lr"]
    return {
        "batches": batches,
        "taus": taus,
        "losses": losses,
        "weights": weights,
        "steps": model.trainer.global_step,
        "last lr": rate,
        "summary": summary,
        "said": out.getvalue(),
    }


def digest(tensor: torch.Tensor) -> str:
    """Of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
