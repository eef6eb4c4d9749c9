"""Measures of rankings by cosine similarity, in which equal similarities stand in no order.

Where images are equally similar, a measure is its expectation over all orders of them: a network that tells no images
apart scores what chance does, and not what the order of the files makes of it. Cosines are equal here when they are to
``1 / STEPS``, which is what float32 can tell apart.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import comb, digamma

from carp_plugin.evaluation.search import unit_rows

#: Steps between cosines of 0 and 1.
STEPS = 1_000_000

_VALUES = 2**22  # similarities held at once: 16 MB, unless the banks are so large that
_QUERIES = 32  # have more; so often are large banks gone through
_HELD = 2**27  # values of banks that are kept in float32: 512 MB


class Ties(NamedTuple):
    """The groups of equal similarity that hold positives, the most similar first.

    Attributes:
        before: (G,) float64, how many rows are more similar than the group.
        size: (G,) float64, rows of the group.
        hits: (G,) float64, positives among them, at least one.
    """

    before: NDArray[np.float64]
    size: NDArray[np.float64]
    hits: NDArray[np.float64]


def similarities(
    banks: Sequence[torch.Tensor], queries: torch.Tensor, device: Optional[torch.device] = None
) -> Iterator[Tuple[int, NDArray[np.int32]]]:
    """Cosines of all queries with all rows of some banks, some queries at a time.

    Args:
        banks: (N, F) in all, any floating type; rows need not be normalised. What is large is brought to float32 piece
            by piece.
        queries: (Q, F).
        device: where products are computed.

    Yields:
        The number of the first query, and (q, N) int32: cosines in ``1 / STEPS``.

    Raises:
        UserError: features that are not finite.
    """
    total = sum(map(len, banks))
    held = sum(bank.numel() for bank in banks) <= _HELD
    pieces = [piece for bank in banks for piece in bank.split(max(1, _HELD // bank.shape[1]))]
    if held:
        pieces = [unit_rows(piece).to(device) for piece in pieces]
    few = max(_QUERIES, _VALUES // total)
    for at in range(0, len(queries), few):
        block = unit_rows(queries[at : at + few]).to(device)
        found, start = np.empty((len(block), total), dtype=np.int32), 0
        for piece in pieces:
            rows = piece if held else unit_rows(piece).to(device)
            steps = (block @ rows.T).mul_(STEPS).round_().int()
            found[:, start : start + len(rows)] = steps.cpu().numpy()
            start += len(rows)
        yield at, found


def ties(values: NDArray[np.int32], positive: NDArray[np.bool_]) -> Ties:
    """The ranking of a query.

    Args:
        values: (N,) similarities.
        positive: (N,), at least one.
    """
    kinds, hits = np.unique(values[positive], return_counts=True)
    everything = np.sort(values)
    low = np.searchsorted(everything, kinds, "left")
    high = np.searchsorted(everything, kinds, "right")
    groups = (len(values) - high, high - low, hits)
    return Ties(*(group[::-1].astype(np.float64) for group in groups))


def average_precision(ranking: Ties, trapezoids: bool = False) -> float:
    """Expected average precision, 0 to 1.

    The j-th of n equal rows is a positive with probability r / n; then 1 + (j - 1)(r - 1) / (n - 1) of the r positives
    are expected up to it (McSherry and Najork, 2008, section 3). Without equal rows it is the mean, over positives, of
    the precision at the place of each, as scikit-learn has it.

    Args:
        ranking: of a query.
        trapezoids: the area below the lines between precisions, as the Oxford and Paris protocols have it: the mean of
            the precisions before and at a positive, of which the one before the first row is 1.
    """
    before, size, hits = ranking
    share = (hits - 1) / np.maximum(size - 1, 1)
    earlier = np.cumsum(hits) - hits
    at = (earlier + 1 - share * (before + 1)) * _harmonic(before, size) + share * size
    if trapezoids:
        first = before == 0  # of its rows, the first one has nothing before it
        sums = _harmonic(np.where(first, 0, before - 1), size)
        earlier_at = (earlier - share * before) * sums + share * size
        at = (at + np.where(first, hits, earlier_at)) / 2
    return float((hits / size * at).sum() / hits.sum())


def hit_at(ranking: Ties, k: int) -> float:
    """Expected share of orders with a positive among the first k rows: recall@k of one query, 0 to 1."""
    before, size, hits = (int(group[0]) for group in ranking)
    drawn = min(k - before, size)
    if drawn <= 0:
        return 0.0
    missed = 1.0
    for i in range(drawn):
        missed *= max(0, size - hits - i) / (size - i)
    return 1.0 - missed


def precision_at(ranking: Ties, k: int) -> float:
    """Expected precision among the first min(k, p) rows, p the place of the last positive (Radenović et al., 2018)."""
    before, size, hits = ranking
    total = hits.sum()
    found = (hits * np.clip((k - before) / size, 0, 1)).sum()
    b, n, r = int(before[-1]), int(size[-1]), int(hits[-1])
    ended = precision = 0.0
    for m in range(r, min(n, k - b - 1) + 1):  # the last positive is the m-th of its group
        probability = comb(m - 1, r - 1) / comb(n, r)
        ended += probability
        precision += probability * total / (b + m)
    return float(precision + (found - total * ended) / k)


def _harmonic(before: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (before + 1) + ... + 1 / (before + size); the difference of two large values is not taken."""
    exact = digamma(before + size + 1) - digamma(before + 1)
    far = np.log1p(size / (before + 0.5))  # midpoints: relative error below 1 / (24 before^2)
    return np.where(size == 1, 1 / (before + 1), np.where(before > 1e5, far, exact))
