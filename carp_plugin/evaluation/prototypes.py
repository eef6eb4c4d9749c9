"""The prototypes that a method learned, and which of them each image is assigned to."""

from __future__ import annotations

from typing import Any, Dict, Optional

import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray

_VALUES = 2**22  # logits held at once: 16 MB


def has_prototypes(model: Optional[nn.Module]) -> bool:
    """Whether a method compares its projector's embeddings with prototypes: CARP, SwAV, DeepCluster v2."""
    return isinstance(getattr(model, "prototypes", None), nn.Module)


@torch.no_grad()
def prototypes_of(model: nn.Module, network: str, dim: int) -> Dict[str, torch.Tensor]:
    """The prototypes that a network's embeddings are compared with.

    Args:
        model: the method.
        network: ``"student"`` or ``"teacher"``; a teacher without prototypes of its own has the student's.
        dim: D, size of an embedding.

    Returns:
        Name -> (K, D) float32 on the CPU; ``"prototypes"``, or several, as in DeepCluster v2.
    """
    module: Any = model.prototypes
    if network == "teacher":
        module = getattr(model, "momentum_prototypes", module)
    several = list(module) if isinstance(module, nn.ModuleList) else [module]
    rows = [_rows(one, dim) for one in several]
    if len(rows) == 1:
        return {"prototypes": rows[0]}
    return {f"prototypes {number}": one for number, one in enumerate(rows, 1)}


def _rows(module: nn.Module, dim: int) -> torch.Tensor:
    """As the loss takes them; those of a linear layer are what it does to the unit vectors, weight norm included."""
    if isinstance(module, nn.Linear):
        weight = module.weight
        rows = module(torch.eye(dim, dtype=weight.dtype, device=weight.device)).T
    else:
        rows = module()
    return rows.detach().float().cpu()


@torch.no_grad()
def assign(
    z: torch.Tensor,
    prototypes: torch.Tensor,
    blocks: torch.Tensor,
    device: Optional[torch.device] = None,
) -> NDArray[np.int64]:
    """The prototype of highest logit of each block, for every image.

    The length of an embedding is a positive factor of its logits, which changes no arg max: unit rows do.

    Args:
        z: (N, D) embeddings.
        prototypes: (K, D).
        blocks: (P, B) numbers of prototypes; one row of all K is the whole set.
        device: where logits are computed.

    Returns:
        (N, P), places within each block from 0 to B - 1; of equal logits the first.
    """
    chosen = prototypes[blocks.flatten()].to(device)
    few = min(len(z), max(1, _VALUES // len(chosen)))
    places = np.empty((len(z), len(blocks)), dtype=np.int64)
    # one buffer for all: freed and taken again among small arrays, it would leave holes in the memory
    logits = torch.empty(few, len(chosen), device=device)
    for at in range(0, len(z), few):
        some = z[at : at + few].float().to(device)
        torch.mm(some, chosen.T, out=logits[: len(some)])
        table = logits[: len(some)].unflatten(1, tuple(blocks.shape))
        if table.device.type == "cpu":  # numpy's is vectorised, torch's is not
            places[at : at + few] = table.numpy().argmax(axis=2)
        else:
            places[at : at + few] = table.argmax(dim=2).cpu().numpy()
    return places
