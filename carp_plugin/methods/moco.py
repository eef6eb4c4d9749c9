"""What methods on MoCo's plan share: a head of two layers, one view for each network, and the queue of keys."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import torch
import torch.nn as nn
from torch import Tensor

from carp_plugin.losses.ranks import gather_rows


def mlp(features: int, hidden: int, output: int) -> nn.Sequential:
    """Linear, ReLU, linear: without batch norm, as MoCo v2's."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, output))


@contextmanager
def one_view_each(model: Any, key_view: Tensor) -> Iterator[None]:
    """While entered, the host's step takes one view, and the momentum networks another one.

    It would pass every view through both networks: half of that is not looked at.

    Args:
        model: its ``momentum_forward`` takes ``key_view`` in place of what it is given, where that is not None.
        key_view: (N, 3, H, W).
    """
    if not model.no_channel_last:
        key_view = key_view.contiguous(memory_format=torch.channels_last)
    crops = model.num_crops, model.num_large_crops
    model.num_crops = model.num_large_crops = 1
    model.key_view = key_view
    try:
        yield
    finally:
        model.num_crops, model.num_large_crops = crops
        model.key_view = None


@torch.no_grad()
def enqueue(queue_RxD: Tensor, pointer: Tensor, keys_NxD: Tensor) -> None:
    """The keys of all ranks take the place of the oldest; of more than R, the last ones stay.

    Args:
        queue_RxD: (R, ..., D), changed in place.
        pointer: (1,) int64, where the oldest is; changed in place.
        keys_NxD: (N, ..., D), of this rank.
    """
    size = len(queue_RxD)
    keys = gather_rows(keys_NxD.detach())[-size:]
    places = torch.arange(len(keys), device=keys.device).add_(pointer).remainder_(size)
    queue_RxD[places] = keys.to(queue_RxD)
    pointer.add_(len(keys)).remainder_(size)
