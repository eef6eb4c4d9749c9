"""Nearest neighbours by cosine similarity in bounded memory: exact on CPU and card, or from an approximate index.

The bank is brought to float32 chunk by chunk and the best k so far are merged, so that memory is the bank's own
(float16, or a mapped file) and one chunk. On a card the bank lies there in its own precision where it fits, and
otherwise crosses the bus in it; products, the k best and their merging stay there.
"""

from __future__ import annotations

import sys
from typing import Any, Iterable, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from rich.progress import track

from carp_plugin.errors import UserError

INDEXES = ("exact", "ivf", "hnsw")

_CHUNK_VALUES = 2**23  # float32 values of a chunk of the bank: 32 MB
_CARD_VALUES = 2**26  # the same on a card, and similarities at once: 256 MB
_QUERIES = 2048  # queries searched for at once
_RECALL_SAMPLE = 256  # queries on which an approximate index is measured


class Neighbours(NamedTuple):
    """The rows of a bank that are most similar to each query.

    Attributes:
        similarities: (Q, k) float32, cosines in falling order; -inf where an approximate index found fewer than k.
        indices: (Q, k) int64, rows of the bank.
    """

    similarities: np.ndarray
    indices: np.ndarray


class Found(NamedTuple):
    """What :func:`search` answers.

    Attributes:
        neighbours: of every query.
        kind: of the index that was asked.
        recall: share of the true neighbours that an approximate index found, on a sample; None where it is exact.
    """

    neighbours: Neighbours
    kind: str
    recall: Optional[float]


def search(
    bank: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    *,
    index: str = "exact",
    device: Optional[torch.device] = None,
    title: str = "",
) -> Found:
    """The k nearest rows of a bank, exactly or from an approximate index whose recall is measured.

    Args:
        bank: (N, F), any floating type; rows need not be normalised.
        queries: (Q, F).
        k: between 1 and N.
        index: ``"exact"``, ``"ivf"`` (inverted lists) or ``"hnsw"`` (a graph); the latter two on the CPU.
        device: where to search exactly; None and the CPU use faiss, a card uses torch.
        title: shown before the progress bar; no bar where it is empty, or without a terminal.

    Raises:
        ValueError: k, the index or the shapes are out of range.
        UserError: features that are not finite.
    """
    if index not in INDEXES:
        raise ValueError(f"index must be one of {', '.join(INDEXES)}, got {index!r}")
    for name, rows in (("bank", bank), ("queries", queries)):
        if rows.dim() != 2 or len(rows) == 0:
            raise ValueError(
                f"{name}: expected features (N, F) with N > 0, got {tuple(rows.shape)}"
            )
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank and queries differ in size: {bank.shape[1]} and {queries.shape[1]}")
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must lie between 1 and the {len(bank)} rows of the bank, got {k}")
    if index == "exact":
        return Found(nearest(bank, queries, k, device=device, title=title), index, None)
    found = _approximate(bank, queries, k, index)
    sample = torch.linspace(0, len(queries) - 1, min(_RECALL_SAMPLE, len(queries))).long().unique()
    true = nearest(bank, queries[sample], k, device=device, title=title)
    return Found(found, index, _recall(found.indices[sample.numpy()], true.indices))


def nearest(
    bank: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    *,
    device: Optional[torch.device] = None,
    chunk: Optional[int] = None,
    title: str = "",
) -> Neighbours:
    """The k rows of highest cosine similarity, exactly (to float32).

    Args:
        bank: (N, F), any floating type.
        queries: (Q, F).
        k: at most N.
        device: a card searches with torch's products, anything else with faiss.
        chunk: rows of the bank in float32 at once; None takes 32 MB of them.
        title: as for :func:`weighted_knn`.
    """
    if device is not None and device.type == "cuda":
        return _nearest_on(device, bank, queries, k, chunk, title)
    similarities = np.empty((len(queries), 0), dtype=np.float32)
    best = Neighbours(similarities, np.empty((len(queries), 0), dtype=np.int64))
    for start, rows in _chunks(bank, chunk or max(1, _CHUNK_VALUES // bank.shape[1]), title):
        parts = []
        for at in range(0, len(queries), _QUERIES):
            block = unit_rows(queries[at : at + _QUERIES])
            some = _faiss_top(rows, block, min(k, len(rows)))
            done = Neighbours(*(array[at : at + _QUERIES] for array in best))
            parts.append(_merged(done, Neighbours(some.similarities, some.indices + start), k))
        best = Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts)))
    return best


def _faiss_top(rows: torch.Tensor, queries: torch.Tensor, k: int) -> Neighbours:
    import faiss  # a card can do without

    # The kernel of faiss.IndexFlatIP without the index, which would be a copy of the rows.
    return Neighbours(*faiss.knn(queries.numpy(), rows.numpy(), k, faiss.METRIC_INNER_PRODUCT))


def _nearest_on(
    device: torch.device,
    bank: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    chunk: Optional[int] = None,
    title: str = "",
) -> Neighbours:
    """:func:`nearest` on one device, which is waited for once, at the end."""
    bank, queries = _resident(bank, device), _resident(queries, device)
    size = min(len(bank), chunk or max(1, _CARD_VALUES // bank.shape[1]))
    few = max(1, min(_CARD_VALUES // size, _CARD_VALUES // bank.shape[1]))
    finite = torch.ones((), dtype=torch.bool, device=device)
    best = [
        (torch.empty(n, 0, device=device), torch.empty(n, 0, dtype=torch.int64, device=device))
        for n in map(len, queries.split(few))
    ]
    for start in _starts(len(bank), size, title):
        rows, good = _unit(bank[start : start + size].to(device))
        finite &= good
        for at, block in enumerate(queries.split(few)):
            unit, good = _unit(block.to(device))
            finite &= good
            some, columns = (unit @ rows.T).topk(min(k, len(rows)))
            # Equals in the order of the bank, as `_merged` has them.
            columns, order = columns.sort(dim=1)
            similarities = torch.cat([best[at][0], some.gather(1, order)], dim=1)
            indices = torch.cat([best[at][1], columns + start], dim=1)
            similarities, order = similarities.sort(dim=1, descending=True, stable=True)
            best[at] = similarities[:, :k], indices.gather(1, order[:, :k])
    if not bool(finite):
        raise UserError(NOT_FINITE)
    return Neighbours(*(torch.cat(parts).cpu().numpy() for parts in zip(*best)))


def _resident(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The rows on the device, in their own precision, where they take less than half of its free memory."""
    fits = rows.numel() * rows.element_size() < _free_bytes(device) / 2
    return rows.to(device) if fits else rows


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def _merged(best: Neighbours, new: Neighbours, k: int) -> Neighbours:
    """The k best of two sets of neighbours; those of ``new`` lie behind those of ``best`` in the bank."""
    equal = (new.similarities[:, 1:] == new.similarities[:, :-1]).any(axis=1)
    if equal.any():
        order = np.lexsort((new.indices[equal], -new.similarities[equal]), axis=-1)
        new.indices[equal] = np.take_along_axis(new.indices[equal], order, axis=1)
    similarities = np.concatenate([best.similarities, new.similarities], axis=1)
    indices = np.concatenate([best.indices, new.indices], axis=1)
    # Both are sorted, so that a stable sort only merges them and leaves equals in the order of the bank.
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return Neighbours(
        np.take_along_axis(similarities, order, axis=1), np.take_along_axis(indices, order, axis=1)
    )


def _approximate(bank: torch.Tensor, queries: torch.Tensor, k: int, kind: str) -> Neighbours:
    """Neighbours from an index in half precision: inverted lists (nlist = sqrt N, of which 1/16 are probed) or HNSW."""
    import faiss

    N, dim = bank.shape
    half = faiss.ScalarQuantizer.QT_fp16
    if kind == "ivf":
        lists = max(1, min(int(N**0.5), N // 39))  # faiss wants 39 rows a list to place them
        index: Any = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, lists, half, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = max(8, lists // 16)
        index.cp.min_points_per_centroid = 1  # a bank of fewer rows is searched all the same
        picked = torch.linspace(0, N - 1, min(N, 64 * lists)).long().unique()
        index.train(unit_rows(bank[picked]).numpy())
    else:
        index = faiss.IndexHNSWSQ(dim, half, 32, faiss.METRIC_INNER_PRODUCT)  # type: ignore[arg-type]
        index.hnsw.efSearch = max(128, 2 * k)
        index.train(unit_rows(bank[:1]).numpy())
    for _, rows in _chunks(bank, max(1, _CHUNK_VALUES // dim), "building the index"):
        index.add(rows.numpy())
    parts = [index.search(unit_rows(block).numpy(), k) for block in queries.split(_QUERIES)]
    similarities, indices = (np.concatenate(arrays) for arrays in zip(*parts))
    similarities[indices < 0] = -np.inf
    return Neighbours(similarities, indices)


def _recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours (Q, k) that were found, the mean over the queries."""
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, true)]))


def _chunks(bank: torch.Tensor, size: int, title: str) -> Iterator[Tuple[int, torch.Tensor]]:
    """The bank as unit rows in float32, a chunk at a time, each with the number of its first row."""
    for start in _starts(len(bank), size, title):
        yield start, unit_rows(bank[start : start + size])


def _starts(rows: int, size: int, title: str) -> Iterable[int]:
    """The first row of each chunk, with a bar where there are several, a title and a terminal."""
    starts = range(0, rows, size)
    shown = title and sys.stdout.isatty() and len(starts) > 1
    return track(starts, description=title, disable=not shown, transient=True)


#: What :func:`unit_rows` refuses.
NOT_FINITE = "the features hold values that are not finite, which cannot be compared: the network has diverged."


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, F) in float32 on the CPU, brought to unit length; a copy, and the only one.

    Raises:
        UserError: rows that are not finite.
    """
    unit, finite = _unit(rows.cpu())
    if not bool(finite):
        raise UserError(NOT_FINITE)
    return unit


def _unit(rows: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """A copy in float32 with rows of unit length, where it is, and whether all of it was finite: ()."""
    unit = rows.to(dtype=torch.float32, copy=True)
    lengths = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    unit.div_(lengths.clamp_min(1e-12))  # as F.normalize, in place
    return unit, torch.isfinite(lengths).all()
