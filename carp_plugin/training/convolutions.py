"""Convolutions whose output is one pixel, as the matrix products that they are.

A ResNet-18 brings a 32-pixel tile down to 1 x 1 in its last stage. A padded 3 x 3 kernel then meets one pixel with
its centre and eight zeros of padding with the rest, and a CPU's convolution multiplies all nine. Leaving the zeros out
gives the same output and the same gradients (those of the unused taps are 0) in a fraction of the time.
"""

from __future__ import annotations

from typing import Optional, Tuple, cast

import torch
import torch.nn as nn
import torch.nn.functional as F


class OnePixelConv2d(nn.Conv2d):
    """``nn.Conv2d`` that computes an output map of 1 x 1 by a matrix product over the taps that meet the image."""

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]
    ) -> torch.Tensor:
        if input.dim() != 4 or not _gives_one_pixel(self, input.shape[2], input.shape[3]):
            return super()._conv_forward(input, weight, bias)
        (top, left), (rows, columns) = _padding(self), self.kernel_size
        height = min(input.shape[2], rows - top)
        width = min(input.shape[3], columns - left)
        taps = weight[:, :, top : top + height, left : left + width]
        product = F.linear(input[:, :, :height, :width].flatten(1), taps.flatten(1), bias)
        return product[:, :, None, None]


def _gives_one_pixel(conv: nn.Conv2d, height: int, width: int) -> bool:
    """Whether the output map of an input of this size is 1 x 1."""
    sizes = zip((height, width), _padding(conv), conv.kernel_size, conv.stride)
    return all((size + 2 * pad - kernel) // stride == 0 for size, pad, kernel, stride in sizes)


def _padding(conv: nn.Conv2d) -> Tuple[int, int]:
    """Rows above and columns at the left; only "same" and "valid" are words."""
    return cast(Tuple[int, int], conv.padding)


def use_one_pixel_convolutions(model: nn.Module) -> int:
    """Makes the plain convolutions of a model leave the padding out where their output is one pixel.

    Parameters, buffers and their names stay as they are, so that checkpoints are exchangeable.

    Args:
        model: changed in place.

    Returns:
        int: number of convolutions concerned; those with groups, dilation, other padding than zeros, or a kernel
        that is padded by its own size, stay as they were.
    """
    concerned = 0
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and all(p < k for p, k in zip(_padding(module), module.kernel_size))
        ):
            module.__class__ = OnePixelConv2d
            concerned += 1
    return concerned
