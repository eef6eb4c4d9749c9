"""Training steps as a run takes them: the host's methods in Lightning's Trainer, on batches that lie in memory.

A step lasts from the start of its batch to the start of the next: forward, loss, backward, optimizer, schedule,
logging, the momentum update and fetching the next batch. The Trainer's hooks cut it into phases. Every call of `fit`
makes a new optimizer, so its first step is not counted.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, cast

import torch
import torch.nn as nn
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.formulations import Case
from benchmarks.measuring import PeakMemory, in_turns, medians, synchronize
from carp_plugin import register
from carp_plugin.commands.cli import silence_third_parties
from carp_plugin.losses.carp import carp_objective_func
from carp_plugin.partition import random_partition
from carp_plugin.settings.pretraining import Pretraining, read_pretraining
from carp_plugin.training.devices import Machine
from carp_plugin.training.pretraining import build_model

#: In the order of a step.
PHASES = ("forward and loss", "backward", "optimizer", "momentum update")


def step_settings(
    method: str,
    kwargs: Dict[str, Any],
    backbone: str,
    size: int,
    batch: int,
    dataset: str,
    optimizer: Optional[Dict[str, Any]] = None,
    accelerator: str = "cpu",
) -> Pretraining:
    """The settings of a method with LARS, without a look at any data.

    Args:
        method: of the host, or "carp".
        kwargs: its ``method_kwargs``.
        backbone: of the host.
        size: pixels of a view.
        batch: images of a step.
        dataset: one whose classes the host knows; the CIFAR sets have another stem in a ResNet.
        optimizer: keywords of LARS.
        accelerator: "cpu" or "gpu".
    """
    return read_pretraining(
        {
            "name": f"step-{method}",
            "method": method,
            "method_kwargs": kwargs,
            "backbone": {"name": backbone},
            "momentum": {"base_tau": 0.99, "final_tau": 1.0},
            "data": {"dataset": dataset, "train_path": "unused", "num_workers": 0},
            "augmentations": [plain_views(size)],
            "optimizer": {
                "name": "lars",
                "batch_size": batch,
                "lr": 0.1,
                "classifier_lr": 0.1,
                "weight_decay": 1e-6,
                "kwargs": optimizer or {},
            },
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0},
            "max_epochs": 1,
            "accelerator": accelerator,
            "devices": [0],
            "sync_batchnorm": False,
            "precision": "32-true",
        }
    )


def plain_views(size: int) -> Dict[str, Any]:
    """A whole pipeline of two views with every step switched off: the batches here are made without one."""
    off = {"prob": 0.0}
    return {
        "rrc": {"enabled": False, "crop_min_scale": 1.0, "crop_max_scale": 1.0},
        "color_jitter": {**off, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        "grayscale": off,
        "gaussian_blur": off,
        "solarization": off,
        "equalization": off,
        "horizontal_flip": off,
        "crop_size": size,
        "num_crops": 2,
    }


def method_of(settings: Pretraining, seed: int = 0) -> LightningModule:
    """The method as a pretraining run builds it, on one device."""
    register()
    seed_everything(seed, verbose=False)
    return build_model(settings, Machine(settings.accelerator, (0,)))


def batches(batch: int, size: int, steps: int) -> DataLoader:
    """``steps`` times the same random batch as the host's loaders give it: indexes, two views, labels."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, 3, size, size, generator=generator) for _ in range(2)]
    one = torch.arange(batch), views, torch.zeros(batch, dtype=torch.long)
    repeated: Any = [one] * steps
    return DataLoader(repeated, batch_size=None)


class Phases(Callback):
    """Seconds of every step but the first, whole and by phase; a device is waited for at every mark."""

    def __init__(self) -> None:
        self.steps: List[Dict[str, float]] = []
        self._marks: List[float] = []

    def _mark(self, trainer: Any) -> None:
        synchronize(trainer.strategy.root_device)
        self._marks.append(time.perf_counter())

    def _end(self) -> None:
        if len(self._marks) == len(PHASES) + 1:
            pairs = zip(PHASES, self._marks, self._marks[1:])
            seconds = {phase: after - before for phase, before, after in pairs}
            self.steps.append({**seconds, "step": self._marks[-1] - self._marks[0]})

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._mark(trainer)
        self._end()
        self._marks = self._marks[-1:]

    def on_before_backward(self, trainer: Any, *_: Any) -> None:
        self._mark(trainer)

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        self._mark(trainer)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        # Callbacks come before the method itself, which updates its momentum copies in this hook.
        self._mark(trainer)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self._mark(trainer)
        self._end()


def fit(
    model: LightningModule, loader: DataLoader, accelerator: str = "cpu"
) -> List[Dict[str, float]]:
    """Trains one epoch of ``loader``.

    Returns:
        List[Dict[str, float]]: seconds by phase and of the whole ``step``, for every step but the first.
    """
    silence_third_parties()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    phases = Phases()
    trainer = Trainer(
        max_epochs=1,
        accelerator=accelerator,
        devices=1,
        callbacks=[phases],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on loaders and loggers that nobody here can follow
        trainer.fit(model, loader)
    return phases.steps[1:]


class Given(nn.Module):
    """Stands where a backbone is and answers with the same features (N, F), whatever the images."""

    feats: Tensor

    def __init__(self, feats: Tensor) -> None:
        super().__init__()
        self.register_buffer("feats", feats, persistent=False)
        # Something to learn: optimizers refuse an empty backbone, and the head's input shall want its gradient.
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """The features of as many images."""
        return self.feats[: len(images)] * self.scale


def without_backbone(model: LightningModule, batch: int) -> LightningModule:
    """The method with random features in place of its backbones, changed in place: what is left is head and loss."""
    width = cast(int, model.features_dim)
    for seed, name in enumerate(("backbone", "momentum_backbone")):
        if hasattr(model, name):
            feats = torch.rand(batch, width, generator=torch.Generator().manual_seed(seed))
            setattr(model, name, Given(feats))
    if hasattr(model, "momentum_backbone"):
        cast(nn.Module, model.momentum_backbone).requires_grad_(False)
    return model


def _tensors_of(model: nn.Module) -> Iterator[Tuple[Tensor, bool]]:
    """Every parameter and buffer, and whether it learns."""
    for parameter in model.parameters():
        yield parameter, parameter.requires_grad
    for buffer in model.buffers():
        yield buffer, False


def model_bytes(model: nn.Module) -> int:
    """Parameters, momentum copies and buffers, a gradient and a momentum of the optimizer for all that learns."""
    return sum(
        tensor.numel() * tensor.element_size() * (3 if learns else 1)
        for tensor, learns in _tensors_of(model)
    )


def carp_parts(
    model: LightningModule, batch: int, device: torch.device, turns: int
) -> Dict[str, float]:
    """Median seconds of what a step of CARP does besides its backbones, each part alone, forward and backward.

    Args:
        model: a CARP.
        batch: N, images of the step.
        device: where it is measured.
        turns: repetitions that are counted.
    """
    own: Any = model.to(device)
    feats = [torch.rand(batch, own.features_dim, device=device) for _ in range(2)]
    dim = own.prototypes.weight.shape[1]
    z, w = ([torch.randn(batch, dim, device=device) for _ in range(2)] for _ in range(2))
    for view in (*feats, *z):
        view.requires_grad_()
    C = own.prototypes().detach().requires_grad_()
    teacher_C = own.momentum_prototypes().detach()

    def permutation() -> Tensor:
        return random_partition(0, 0, own.num_prototypes, device)

    order = permutation()

    def loss() -> None:
        value, _ = carp_objective_func(z, w, C, teacher_C, order, own.partition_size)
        torch.autograd.grad(value, [*z, C])

    def projector() -> None:
        embeddings = [own.projector(view) for view in feats]
        wanted = [*feats, *own.projector.parameters()]
        torch.autograd.grad(embeddings, wanted, [torch.ones_like(one) for one in embeddings])
        with torch.no_grad():
            for view in feats:
                own.momentum_projector(view)

    def normalisation() -> None:
        torch.autograd.grad(own.prototypes(), own.prototypes.weight, C.detach())
        with torch.no_grad():
            own.momentum_prototypes()

    own.train()
    calls = {
        "loss": loss,
        "projectors": projector,
        "normalisation of prototypes": normalisation,
        "partition": permutation,
    }
    in_turns(calls, 1, device)
    return medians(in_turns(calls, turns, device))


def head_step_memory(case: Case, device_name: str, steps: int = 3) -> Dict[str, float]:
    """Peak memory of training steps of CARP's head and prototypes on features of a ResNet-50, recipe of B.1.

    Returns:
        Dict[str, float]: ``bytes_over_model``, ``model_bytes`` and the median ``seconds`` of a step.
    """
    accelerator = "gpu" if torch.device(device_name).type == "cuda" else "cpu"
    kwargs = {
        "proj_hidden_dim": 2048,
        "proj_output_dim": case.dim,
        "num_prototypes": case.prototypes,
        "partition_size": case.block,
    }
    lars = {"clip_lr": False, "eta": 0.001, "exclude_bias_n_norm": True}
    model = method_of(
        step_settings("carp", kwargs, "resnet50", 32, case.images, "imagenet", lars, accelerator)
    )
    model = without_backbone(model, case.images).to(device_name)
    held = sum(tensor.numel() * tensor.element_size() for tensor, _ in _tensors_of(model))
    with PeakMemory(torch.device(device_name)) as peak:
        taken = fit(model, batches(case.images, 4, steps), accelerator)
    total = model_bytes(model)
    seconds: Sequence[float] = sorted(step["step"] for step in taken)
    return {
        "bytes_over_model": peak.bytes + held - total,
        "model_bytes": total,
        "seconds": seconds[len(seconds) // 2],
    }
