"""What methods that look at patches share: the patches of a batch, and the head that makes one embedding of nine."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from carp_plugin.errors import UserError

PATCHES = 9


class PatchHead(nn.Module):
    """Each patch's features through one head, the nine outputs side by side, and a linear layer.

    Args:
        each: features (N, F) to (N, D).
        dim: D.
    """

    def __init__(self, each: nn.Module, dim: int) -> None:
        super().__init__()
        self.each, self.all = each, nn.Linear(PATCHES * dim, dim)

    def forward(self, feats: Tensor) -> Tensor:
        """Features (N * 9, F), those of an image one after the other, to (N, D)."""
        return self.all(self.each(feats).view(len(feats) // PATCHES, -1))


def patches_of(batch: Sequence[Any], method: str) -> Tuple[List[Any], Tensor]:
    """A batch as the host's step takes it, and the patches that came with it, (N, 9, 3, p, p).

    Args:
        batch: [img_indexes, [X], Y], the last X being the patches.
        method: its name.

    Raises:
        UserError: there are none.
    """
    indexes, views, targets = batch
    if not isinstance(views, (list, tuple)) or views[-1].ndim != 5:
        raise UserError(
            f"{method} looks at patches of the images, which only carp_plugin's own main_pretrain.py makes; train it "
            "with that."
        )
    return [indexes, list(views[:-1]), targets], views[-1]


def features_of_patches(backbone: nn.Module, patches: Tensor, channels_last: bool) -> Tensor:
    """The features of all patches of a batch in one pass: (N * 9, F)."""
    flat = patches.flatten(0, 1)
    if channels_last:
        flat = flat.contiguous(memory_format=torch.channels_last)
    return backbone(flat)


@torch.no_grad()
def check_takes_patches(backbone: nn.Module, size: int, name: str) -> None:
    """A backbone takes images of a patch's size, too; some transformers have one size.

    Args:
        backbone: in training mode, and is again afterwards.
        size: of a patch, in pixels.
        name: of the backbone.

    Raises:
        ValueError: it does not.
    """
    parameter = next(backbone.parameters())
    try:
        backbone.eval()(parameter.new_zeros(1, 3, size, size))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} takes no patches of {size} pixels") from error
    finally:
        backbone.train()
