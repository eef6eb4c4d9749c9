"""Multinomial logistic regression on frozen features: the convex form of a linear evaluation, by scikit-learn.

The penalty is chosen on a fifth of the training images, held out of every class; the validation images choose nothing.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from carp_plugin.data.images import named_images
from carp_plugin.data.subsets import Subset, subset_of
from carp_plugin.errors import UserError
from carp_plugin.evaluation.shape import Images, Result, by_column
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Logistic

_HELD_OUT = 0.2


def measure(images: Images, settings: Logistic) -> Dict[str, Result]:
    """Accuracy of every column, on every part of the labels that is asked for.

    Args:
        images: labelled.
        settings: of the protocol.

    Raises:
        UserError: the list of images is not there or does not fit, or parts are asked for of images without names.
    """
    parts = _parts(images, settings)

    def of_column(train: Features, val: Features) -> Result:
        found = {
            words: logistic(
                _some(train, subset), val, settings.C, settings.max_iterations, seed=images.seed
            )
            for words, subset in parts.items()
        }
        return _together(found, parts)

    return by_column(images, of_column)


class _Asked(NamedTuple):
    fraction: float
    file: Optional[str]
    seed: int


def _parts(images: Images, settings: Logistic) -> Dict[str, Optional[Subset]]:
    """Words for a measure -> the part of the training images; all of them are None, without words."""
    wanted = [_Asked(fraction, None, images.seed) for fraction in dict.fromkeys(settings.fractions)]
    if settings.file is not None:
        wanted.append(_Asked(1.0, settings.file, images.seed))
    parts: Dict[str, Optional[Subset]] = {}
    for asked in wanted:
        if asked.file is None and asked.fraction == 1:
            parts[""] = None
            continue
        named = named_images(images.loaders["train"])
        samples = getattr(named.dataset, "samples", None) if named else None
        if named is None or not samples:
            raise UserError(
                "logistic regression on a part of the labels needs images in class folders, whose names say which; "
                "leave out logistic.fractions and logistic.file."
            )
        words = f"{100 * asked.fraction:g} % of labels" if asked.file is None else "listed labels"
        parts[words] = subset_of(samples, named.root, asked)
    return parts


def _some(features: Features, subset: Optional[Subset]) -> Features:
    if subset is None:
        return features
    rows = torch.tensor(subset.indices)
    return Features(features.feats[rows], features.targets[rows])


def _together(found: Mapping[str, Result], parts: Mapping[str, Optional[Subset]]) -> Result:
    """The results of all parts as one; the first one's first score is the headline."""
    scores: Dict[str, float] = {}
    per_image: Dict[str, np.ndarray] = {}
    details: Dict[str, Any] = {}
    remarks: List[str] = []
    for words, result in found.items():
        for name, score in result.scores.items():
            measured = f"{name}, {words}" if words else name
            scores[measured] = score
            if name in result.per_image:
                per_image[measured] = result.per_image[name]
        subset = parts[words]
        own = {**result.details, **({} if subset is None else {"subset": subset.as_dict()})}
        details.update({words: own} if words else own)
        remarks += [_of_part(words, remark) for remark in result.remarks]
    return Result(scores, per_image, details, tuple(remarks))


def _of_part(words: str, remark: str) -> str:
    if not words:
        return remark
    warning = "warning: " if remark.startswith("warning: ") else ""
    return f"{warning}{words}: {remark[len(warning) :]}"


def logistic(
    train: Features,
    val: Features,
    C: Sequence[float] = (0.01, 0.1, 1, 10, 100, 1000),
    max_iterations: int = 1000,
    seed: int = 0,
) -> Result:
    """Logistic regression on features of zero mean and unit variance, minimised by L-BFGS.

    Args:
        train: unit rows (N, F) and labels (N,) that it is fitted on.
        val: unit rows (Q, F) and labels (Q,) that it is measured on; a class that ``train`` lacks is never right.
        C: inverse strengths of the penalty. Of several, the one that is right most often on a fifth of the training
            images, held out of every class, is fitted on all; of equals, the strongest penalty. Where a class has one
            image, none can be held out, and the middle one is taken.
        max_iterations: of L-BFGS.
        seed: of what is held out.

    Returns:
        Result: ``top1``, and ``top5`` where there are more than five classes; which ``C``, and how each did.
    """
    rows, labels = _arrays(train)
    strengths = sorted(set(map(float, C)))
    kinds = np.unique(labels)
    remarks: List[str] = []
    if len(kinds) < 2:
        hits = val.targets.numpy() == kinds[0]
        said = "warning: the training images are of one class, which every image is taken for."
        return Result(_scores(hits), {"top1": hits}, {"C": None}, (said,))
    chosen, tried = _chosen(rows, labels, strengths, max_iterations, seed)
    if len(strengths) > 1 and not tried:
        remarks.append(
            f"C = {chosen:g} was not chosen on held-out images: too few of a class to hold one out."
        )
    model, converged = _fitted(rows, labels, chosen, max_iterations)
    if not converged:
        remarks.append(
            f"warning: L-BFGS had not converged after {max_iterations} iterations at C = {chosen:g}."
        )
    values, targets = _arrays(val)
    probabilities = model.predict_proba(values)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = model.classes_[order] == targets[:, None]
    per_image = {"top1": hits[:, 0]}
    if len(kinds) > 5:
        per_image["top5"] = hits[:, :5].any(axis=1)
    scores = {name: 100 * float(right.mean()) for name, right in per_image.items()}
    details = {"C": chosen, "held_out": tried}
    return Result(scores, per_image, details, tuple(remarks))


def _scores(hits: np.ndarray) -> Dict[str, float]:
    return {"top1": 100 * float(hits.mean())}


def _arrays(features: Features) -> Tuple[np.ndarray, np.ndarray]:
    return features.feats.float().numpy().astype(np.float64), features.targets.numpy()


def _chosen(
    rows: np.ndarray, labels: np.ndarray, strengths: Sequence[float], iterations: int, seed: int
) -> Tuple[float, Dict[str, float]]:
    """The strength to take, and the accuracy of each on held-out images in percent; none where none can be held out."""
    counts = np.unique(labels, return_counts=True)[1]
    middle = strengths[(len(strengths) - 1) // 2]
    if len(strengths) == 1 or counts.min() < 2 or _HELD_OUT * len(labels) < len(counts):
        return middle, {}
    few, held, few_labels, held_labels = train_test_split(
        rows, labels, test_size=_HELD_OUT, stratify=labels, random_state=seed
    )
    tried = {}
    for strength in strengths:
        model, _ = _fitted(few, few_labels, strength, iterations)
        tried[f"{strength:g}"] = 100 * float(model.score(held, held_labels))
    return max(strengths, key=lambda strength: tried[f"{strength:g}"]), tried


def _fitted(
    rows: np.ndarray, labels: np.ndarray, strength: float, iterations: int
) -> Tuple[Any, bool]:
    """A fitted model, and whether it converged."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, labels)
    return model, not any(issubclass(one.category, ConvergenceWarning) for one in caught)
