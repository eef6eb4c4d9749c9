"""Copy detection on copies that are made of the user's own images: is the original the most similar of all?

As in Copydays (Douze et al., 2009) and the image similarity challenge (Douze et al., 2021), whose measure is the
micro average precision: one ranking of all pairs of a copy and an image, so that one threshold has to serve all copies.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from carp_plugin.data.images import named_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation.copies import TRANSFORMATIONS, Copies, Copy, planned
from carp_plugin.evaluation.ranking import STEPS, Ties, average_precision, hit_at, similarities
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.settings.protocols import CopyDetection

#: Two images whose cosine is this are one image to a network.
_SAME = STEPS


def measure(images: Images, settings: CopyDetection) -> Dict[str, Result]:
    """Copies of some validation images, searched for among all of them and the training images.

    Args:
        images: labelled; the labels are not read.
        settings: of the protocol.

    Raises:
        UserError: features that are not finite, one image to search, or a data set whose images cannot be had.
    """
    named = named_images(images.loaders["val"])
    if named is None:
        raise UserError("copies need validation images that can be read one by one.")
    draws = np.random.default_rng(images.seed)
    chosen = np.sort(draws.permutation(len(named))[: settings.images])
    copies = planned(chosen.tolist(), tuple(dict.fromkeys(settings.transformations)))
    made = images.of(
        "copies",
        lambda: images.loader_of(Copies(named, copies, images.transform, images.seed)),
    )
    found = {}
    for column in images.columns:
        banks = [images.val[column].feats]
        if settings.distractors == "train":
            banks.append(images.train[column].feats)
        found[column] = copy_detection(banks, made[column].feats, copies, images.device)
    return found


class _Pairs(NamedTuple):
    """All pairs of a copy and an image.

    Attributes:
        before: (C,) images that are more similar to a copy than its original.
        equal: (C,) images that are as similar as it, itself among them.
        similarity: (C,) of the originals.
        counts: (2 STEPS + 1,) pairs of each similarity from -1 to 1, for every transformation.
    """

    before: NDArray[np.float64]
    equal: NDArray[np.float64]
    similarity: NDArray[np.int64]
    counts: Dict[str, NDArray[np.int64]]


def copy_detection(
    banks: Sequence[torch.Tensor],
    features: torch.Tensor,
    copies: Sequence[Copy],
    device: Optional[torch.device] = None,
) -> Result:
    """Ranks all images for every copy by cosine similarity; its original is the one positive.

    Args:
        banks: features of all images, (N, F) together.
        features: (C, F) features of the copies.
        copies: C of them; ``image`` is a row of the first bank.
        device: where similarities are computed.

    Returns:
        Result: ``recall@1``, ``mAP`` (of one positive each, the mean reciprocal rank) and ``µAP`` over all copies, then
        of every transformation. The values of an image are means over its copies, so that intervals are over images.
        Details: recall@1 of every strength, and by chance.

    Raises:
        UserError: features that are not finite, or one image to search.
    """
    searched = sum(map(len, banks))
    if searched < 2:
        raise UserError("copies are searched for among two images or more, and there is one.")
    pairs = _pairs(banks, features, copies, device)
    one = np.ones(1)
    rankings = [Ties(one * b, one * e, one) for b, e in zip(pairs.before, pairs.equal)]
    first = np.array([hit_at(ranking, 1) for ranking in rankings])
    precision = np.array([average_precision(ranking) for ranking in rankings])
    kinds = np.array([made.transformation for made in copies])
    originals = np.array([made.image for made in copies])
    scores: Dict[str, float] = {}
    per_image: Dict[str, np.ndarray] = {}
    strengths: Dict[str, Any] = {}
    for name in ("", *pairs.counts):
        chosen = kinds == name if name else np.ones(len(kinds), dtype=bool)
        said = f" ({name})" if name else ""
        for measured, values in (("recall@1", first), ("mAP", precision)):
            per_image[measured + said] = _by_image(originals[chosen], values[chosen])
            scores[measured + said] = 100 * float(values[chosen].mean())
        counts = pairs.counts[name] if name else np.sum(list(pairs.counts.values()), axis=0)
        scores["µAP" + said] = 100 * _micro(counts, pairs.similarity[chosen])
        if name:
            strengths[name] = {
                f"{strength:g}": 100
                * float(first[chosen & (_strengths(copies) == strength)].mean())
                for strength in TRANSFORMATIONS[name][1]
            }
    details = {
        "copies": len(copies),
        "originals": len(np.unique(originals)),
        "searched": searched,
        "recall@1 by strength": strengths,
        "chance": {"recall@1": 100 / searched},
    }
    return Result(scores, per_image, details, _remarks(banks, originals, device))


def _pairs(
    banks: Sequence[torch.Tensor],
    features: torch.Tensor,
    copies: Sequence[Copy],
    device: Optional[torch.device],
) -> _Pairs:
    """Counts all pairs, some copies at a time."""
    originals = np.array([made.image for made in copies])
    kinds = np.array([made.transformation for made in copies])
    before, equal = np.empty(len(copies)), np.empty(len(copies))
    similarity = np.empty(len(copies), dtype=np.int64)
    counts = {
        name: np.zeros(2 * STEPS + 1, dtype=np.int64) for name in dict.fromkeys(kinds.tolist())
    }
    for at, block in similarities(banks, features, device):
        here = slice(at, at + len(block))
        own = block[np.arange(len(block)), originals[here]]
        before[here] = (block > own[:, None]).sum(axis=1)
        equal[here] = (block == own[:, None]).sum(axis=1)
        similarity[here] = own
        for name, table in counts.items():
            some = np.clip(block[kinds[here] == name], -STEPS, STEPS) + STEPS
            values, numbers = np.unique(some, return_counts=True)
            table[values] += numbers
    return _Pairs(before, equal, similarity, counts)


def _micro(counts: NDArray[np.int64], positives: NDArray[np.int64]) -> float:
    """Average precision of one ranking of all pairs, 0 to 1.

    Args:
        counts: (2 STEPS + 1,) pairs of each similarity.
        positives: similarities of those that are a copy and its original.
    """
    values, hits = np.unique(np.clip(positives, -STEPS, STEPS) + STEPS, return_counts=True)
    above = counts.sum() - np.cumsum(counts)
    groups = (above[values], counts[values], hits)
    return average_precision(Ties(*(group[::-1].astype(np.float64) for group in groups)))


def _by_image(originals: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the copies of each image, in the order of the images."""
    places = np.unique(originals, return_inverse=True)[1]
    return np.bincount(places, values) / np.bincount(places)


def _strengths(copies: Sequence[Copy]) -> NDArray[np.float64]:
    return np.array([made.strength for made in copies])


def _remarks(
    banks: Sequence[torch.Tensor], originals: NDArray[np.int64], device: Optional[torch.device]
) -> tuple[str, ...]:
    """Of originals that a network takes for other images, which even a perfect copy cannot tell apart."""
    known = np.unique(originals)
    twins: List[int] = []
    for _, block in similarities(banks, banks[0][torch.from_numpy(known)], device):
        twins += ((block >= _SAME).sum(axis=1) > 1).tolist()
    if not any(twins):
        return ()
    return (
        f"{sum(twins)} of {len(known)} originals have the features of another image (the same picture twice, or a "
        "network that does not tell them apart); which of equals comes first is taken as chance.",
    )
