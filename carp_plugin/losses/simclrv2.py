r"""The loss of SimCLR v2 (arXiv 2006.10029): NT-Xent over the views of all ranks.

With unit vectors a_i, b_i of the two views of image i and temperature T, the scalar of the authors' release is a sum of
two means over images, one with the first view as anchor and one with the second:

    L = mean_i l(a_i, b_i) + mean_i l(b_i, a_i)
    l(x_i, y_i) = -log exp(x_i y_i / T) / (sum_j exp(x_i y_j / T) + sum over j != i of exp(x_i x_j / T))

It is twice the loss of SimCLR as solo-learn has it, which is one mean over 2N anchors.

Shape suffixes: N images of this rank, M images of all ranks, D embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from carp_plugin.losses.ranks import gather_rows, own_rows


def simclrv2_loss_func(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    """The sum of both directions of NT-Xent, with the images of all ranks as negatives.

    At random initialisation it is about 2 (log(2M - 1) + 1 / (2 D T^2)).

    Args:
        z1: (N, D), embeddings of the first view; brought to unit length here.
        z2: (N, D), of the second.
        temperature: T > 0.

    Returns:
        (), in float32 or, if an input is, float64.

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    _check(z1, z2, temperature)
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    with torch.autocast(z1.device.type, enabled=False):
        a_ND, b_ND = (F.normalize(z.to(dtype), dim=-1) for z in (z1, z2))
        a_MD, b_MD = gather_rows(a_ND), gather_rows(b_ND)
        own_N = own_rows(len(a_ND), a_ND.device)
        return _direction(a_ND, b_MD, a_MD, own_N, temperature) + _direction(
            b_ND, a_MD, b_MD, own_N, temperature
        )


def _direction(
    anchor_ND: Tensor, other_MD: Tensor, same_MD: Tensor, own_N: Tensor, temperature: float
) -> Tensor:
    """Mean over the anchors of one view; an anchor is no candidate for itself."""
    same_NM = (anchor_ND @ same_MD.T).scatter(1, own_N[:, None], float("-inf"))
    logits = torch.cat([anchor_ND @ other_MD.T, same_NM], dim=1) / temperature
    return F.cross_entropy(logits, own_N)


def _check(z1: Tensor, z2: Tensor, temperature: float) -> None:
    for name, z in (("z1", z1), ("z2", z2)):
        if z.ndim != 2 or not z.numel():
            raise ValueError(
                f"{name}: expected shape (N, D) with N >= 1, received {tuple(z.shape)}"
            )
        if not z.is_floating_point():
            raise ValueError(f"{name}: expected a real floating point type, received {z.dtype}")
    if z1.shape != z2.shape:
        raise ValueError(
            f"z2: expected the shape of z1, {tuple(z1.shape)}, received {tuple(z2.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, received {temperature}")
