"""What CARP's loss is where training has collapsed, and which collapse its terms give away.

A collapsed network gives every image the same assignment p, so the information H(mean p) - mean H(p) is near 0. The
loss alone cannot tell: a constant assignment can cost far less than the log B that training starts at. Functions of
numbers only.

Symbols: B prototypes in a block (`partition_size`), K prototypes in all; entropies in nats.
"""

import math
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

#: Information, in nats, below which images are assigned alike. Assignments whose logits differ between images by a
#: standard deviation of s carry about s^2 / 2: here s = 0.14, several times less than in an untrained network (0.04 to
#: 0.06 nats with the heads of the recipes), so a run that has merely not begun is not taken for a collapsed one.
NO_INFORMATION = 0.01

#: How near a collapse's own value a term is, in units of log B: uniform and one-hot are 1 apart in either term.
NEAR = 0.1

#: A collapse on its way has come this part of the way to the entropy gap of the cheapest constant output ...
HALF = 0.5

#: ... and its information is less than this part of what would tell all images apart.
QUARTER = 0.25

#: Blocks that `collapse_values` supposes where K is not told: those of appendix B.1.
_BLOCKS = 128


class Terms(NamedTuple):
    """The terms of CARP's loss and their weighted sum, in nats."""

    consistency: float
    entropy_gap: float
    loss: float


class CollapseValues(NamedTuple):
    """What the terms are for outputs that are the same for every image."""

    uniform: Terms  # every prototype alike
    one_hot: Terms  # one prototype of each block takes all images
    constant: Terms  # the cheapest of all


def collapse_values(
    partition_size: int,
    consistency_weight: float = 1.0,
    entropy_weight: float = 1.0,
    num_prototypes: Optional[int] = None,
) -> CollapseValues:
    r"""The terms of eq. (3) for the three outputs that do not depend on the image.

    Student and teacher give every image the same p, so in each block the consistency is -log <p, p> and the entropy gap
    log B - H(p). With weights c and e:

    - uniform: consistency log B, gap 0.
    - one-hot: consistency 0, gap log B.
    - constant: the minimum over p of f(p) = -c log <p, p> + e (log B - H(p)). Where a block is always the same
      (one block, or the constant partition) p is free. Stationary points solve e log p_i - 2 c p_i / <p, p> = const;
      the left side rises and then falls in p_i, so p has two values. Two entries at the higher value are no minimum:
      along their difference the second derivative is 2 e / p_high - 4 c / <p, p>, negative beyond the turning point.
      Hence p is the softmax of (t, 0, ..., 0), one entry above the others, and t >= 0 is found to machine precision.
      Where blocks are drawn at random, an output is K logits of which any B may meet. M of them are t, the others 0,
      and a block holds m of the M with the hypergeometric probability; f is averaged over it and minimised over t and
      M. More than two values of the logits would gain about 1 % more.

    At B = 512 and K = 65,536 with weights of 1 the three losses are 6.24, 6.24 and 4.40; in one block of 512 the last
    is 3.63.

    Args:
        partition_size: B.
        consistency_weight: c, at least 0.
        entropy_weight: e, at least 0.
        num_prototypes: K, a multiple of B, of a partition that is drawn anew at every step; B for a block that stays
            the same. None supposes 128 blocks (B.1), and more hardly change it.

    Returns:
        CollapseValues, in nats.

    Raises:
        ValueError: B < 1, K not a multiple of B, or a negative weight.
    """
    B, K = partition_size, _BLOCKS * partition_size if num_prototypes is None else num_prototypes
    if B < 1 or K < B or K % B:
        raise ValueError(f"expected B >= 1 that divides K, received B = {B}, K = {K}")
    if min(consistency_weight, entropy_weight) < 0:
        raise ValueError(
            f"expected weights >= 0, received {consistency_weight} and {entropy_weight}"
        )
    weights = (consistency_weight, entropy_weight)
    uniform = _terms(math.log(B), 0.0, weights)
    one_hot = _terms(0.0, math.log(B), weights)
    constant = min(uniform, one_hot, key=lambda terms: terms.loss)
    if B > 1 and min(weights) > 0:  # without one of the terms, one of the two is at 0 already
        constant = min(constant, _cheapest(B, K, weights), key=lambda terms: terms.loss)
    return CollapseValues(uniform, one_hot, constant)


def _terms(consistency: float, entropy_gap: float, weights: Tuple[float, float]) -> Terms:
    return Terms(consistency, entropy_gap, weights[0] * consistency + weights[1] * entropy_gap)


def _cheapest(B: int, K: int, weights: Tuple[float, float]) -> Terms:
    """The cheapest output whose K logits have two values."""
    # A minimum has t = (2 c / e) * (p_high - p_low) / <p, p>, and beyond 2 log B, where one entry is all of p, the last
    # factor is at most 2.
    ratio = 2 * weights[0] / weights[1]
    longest = max(2 * math.log(B), 2 * ratio) + 1
    high_M = _candidates(1, max(1, min(K // 2, 16 * (K // B))))
    t_T = torch.linspace(0, longest, 1025, dtype=torch.float64)
    while True:  # the grid closes in on the best; it halves its step, the candidates their number
        consistency_MT, gap_MT = _expected(high_M, t_T, B, K)
        loss_MT = weights[0] * consistency_MT + weights[1] * gap_MT
        at_M, at_T = divmod(int(loss_MT.argmin()), len(t_T))
        low, high = (high_M[max(at_M - 1, 0)], high_M[min(at_M + 1, len(high_M) - 1)])
        step = float(t_T[1] - t_T[0])
        if step < 1e-9 and len(high_M) <= 3:
            return _terms(float(consistency_MT[at_M, at_T]), float(gap_MT[at_M, at_T]), weights)
        high_M = _candidates(int(low), int(high))
        best = float(t_T[at_T])
        t_T = torch.linspace(max(best - step, 0), best + step, 65, dtype=torch.float64)


def _candidates(low: int, high: int) -> Tensor:
    """Whole numbers from low to high, at most about 200, evenly spread on a logarithmic scale."""
    spread = torch.logspace(math.log10(low), math.log10(high), 200, dtype=torch.float64)
    return spread.round().clamp(low, high).unique()


def _expected(high_M: Tensor, t_T: Tensor, B: int, K: int) -> Tuple[Tensor, Tensor]:
    """Consistency and gap (M, T), averaged over blocks of B of K logits, `high` of which are t and the others 0."""
    m_S = torch.arange(min(B, int(high_M.max()), 96) + 1, dtype=torch.float64)
    log_chance_MS = (
        _log_choose(high_M[:, None], m_S)
        + _log_choose(K - high_M[:, None], B - m_S)
        - _log_choose(high_M.new_tensor(K), high_M.new_tensor(B))
    )
    m_S1 = m_S[:, None]
    log_m, log_rest = m_S1.log(), (B - m_S1).log()
    norm_ST = torch.logaddexp(log_m + t_T, log_rest)
    overlap_ST = torch.logaddexp(log_m + 2 * t_T, log_rest) - 2 * norm_ST
    entropy_ST = norm_ST - t_T * (log_m + t_T - norm_ST).exp()
    chance_MS = log_chance_MS.exp()
    return chance_MS @ -overlap_ST, chance_MS @ (math.log(B) - entropy_ST)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """The log of n over k, -inf where there is no such choice."""
    possible = (k >= 0) & (k <= n)
    k = torch.where(possible, k, torch.zeros_like(k))
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where(possible, ways, torch.full_like(ways, -math.inf))


def diagnose(
    consistency: float,
    entropy_gap: float,
    information: float,
    *,
    partition_size: int,
    images: int,
    values: CollapseValues,
) -> Optional[str]:
    """The collapse that the terms show: ``"uniform"``, ``"one-hot"``, ``"constant"``, or None.

    There are two signs. The first is no information at all (`NO_INFORMATION`). A collapse on its way, or one that
    batch norm keeps from becoming complete, has some left. It is known by what its assignments are sharp for: log B -
    mean H(p) is exactly entropy gap + information, a part that all images share and a part that tells them apart. So
    the second sign is a gap more than half that of the cheapest constant output (`HALF`), with less than a quarter of
    the information that tells all images apart, log of the smaller of B and their number (`QUARTER`). A healthy run
    sharpens the other way round: information first, with a small gap, or a gap of log B - log images where a block
    has more prototypes than there are images, but then with all the information. The loss is not looked at: a healthy
    run can pass through any value of it.

    Which collapse it is, the terms say by their distance from the values of uniform and one-hot outputs (`NEAR`).

    Args:
        consistency: mean of -log <s, t>, nats.
        entropy_gap: mean of log B - H(mean_probs), nats.
        information: mean of H(mean p) - mean H(p), nats.
        partition_size: B; a block of one prototype has no assignment to speak of.
        images: different images that the information was measured on.
        values: of `collapse_values`, for this B and the weights.
    """
    if partition_size == 1:
        return None
    log_B = math.log(partition_size)
    far = entropy_gap > max(NEAR * log_B, HALF * values.constant.entropy_gap)
    alike = information < QUARTER * math.log(min(partition_size, images))
    if not (information < NO_INFORMATION or (far and alike)):
        return None
    if consistency > (1 - NEAR) * log_B and entropy_gap < NEAR * log_B:
        return "uniform"
    if consistency < NEAR * log_B and entropy_gap > (1 - NEAR) * log_B:
        return "one-hot"
    return "constant"
