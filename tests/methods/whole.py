"""Trainings of the methods that go over all images at an epoch's start, and what is seen of them."""

import os
from pathlib import Path
from typing import Any, Dict

import torch

from carp_plugin.commands.pretrain import pretrain
from tests.helpers import small_settings
from tests.narrow import narrow_resnets
from tests.rank_runs import digest, under_torchrun

#: Methods, and what a test of whole runs leaves out.
QUICK: Dict[str, Any] = {"evaluation": {"enabled": False}, "data__val_path": None}


def state_of(summary: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """The tensors of a run's last checkpoint."""
    return torch.load(summary["checkpoint"], weights_only=True)["state_dict"]


def trained_on_ranks(
    rank: int, world_size: int, root: Path, folder: Path, runs: Dict[str, Dict[str, Any]]
) -> Dict[str, Dict[str, str]]:
    """{method: digests of all its tensors on this rank after training}.

    Args:
        rank: of this process.
        world_size: ranks.
        root: images, as ``image_folder`` makes them.
        folder: to run in.
        runs: changes of ``small_settings`` for each method.
    """
    from carp_plugin.training import pretraining

    under_torchrun(rank, world_size)
    os.chdir(folder)
    models = []
    build = pretraining.PretrainingRun.go

    def go(run: Any) -> Any:
        models.append(run.model)
        return build(run)

    pretraining.PretrainingRun.go = go  # type: ignore[method-assign]
    with narrow_resnets():
        for method, changes in runs.items():
            several = {"devices": world_size, "strategy": "ddp", **QUICK}
            pretrain(small_settings(root, method, **several, **changes))
    return {
        method: {name: digest(tensor.float()) for name, tensor in model.state_dict().items()}
        for method, model in zip(runs, models)
    }
