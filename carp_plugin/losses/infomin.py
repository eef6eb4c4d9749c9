r"""The loss of InfoMin Aug. (Tian et al., NeurIPS 2020): MoCo v2 with a second query, made of patches.

    L = (1 - beta) InfoNCE(q, k, queue)  +  beta InfoNCE(q_jig, k, queue)

q is the query of one view, k the momentum network's key of another, q_jig the query of nine patches of the same image.
Both queries meet the same key and the same queue.

Shape suffixes: N images of this rank, D embedding size, K rows of the queue.
"""

from torch import Tensor

from carp_plugin.losses.info_nce import info_nce_func


def infomin_loss_func(
    query: Tensor,
    jigsaw: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float = 0.15,
    beta: float = 0.5,
) -> Tensor:
    """The weighted mean of both queries' InfoNCE; with beta 0 it is MoCo v2's.

    Args:
        query: (N, D), unit rows.
        jigsaw: (N, D), unit rows, of the patches.
        key: (N, D), unit rows; receives no gradient.
        queue: (K, D), unit rows; receives no gradient.
        temperature: T > 0.
        beta: weight of the patches, from 0 to 1.

    Returns:
        ().

    Raises:
        ValueError: a shape, a type or a number that does not fit.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a number from 0 to 1, received {beta}")
    image = info_nce_func(query, key, queue, temperature)
    return (1 - beta) * image + beta * info_nce_func(jigsaw, key, queue, temperature)
