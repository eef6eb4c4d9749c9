"""PASCAL VOC 2007 classification, table 1 of the paper: a linear SVM a class on frozen features.

Trained on trainval, measured on test. For a class, images with only difficult objects of it take no part, on either
side, as in the challenge. The average precision is that of 2007: the mean of the best precision at recalls of 0, 0.1 …
1. Beside it stand the area under the curve, and that under its envelope: the rule from 2010 on, which PCL and VISSL
take. Images of equal score enter the ranking together, so that features that tell nothing apart have the precision of
chance, whatever the order of the files.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from rich.progress import track
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from carp_plugin.data.voc import ABSENT, CLASSES, DIFFICULT, PRESENT, VocImages, voc_split
from carp_plugin.errors import UserError
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Voc07

_FOLDS = 3
_LOW_SHOT_C = 0.5  # what PCL takes; so few images are no ground to choose on


class Fitted(NamedTuple):
    """The average precisions of a class, 0 to 1.

    Attributes:
        eleven: the rule of 2007; nan where the test images show no object of the class.
        area: under the curve of precision and recall; nan likewise.
        envelope: under the highest precision at a recall or a higher one; nan likewise.
        C: of the SVM; nan where no SVM could be trained.
        ended: whether liblinear converged.
    """

    eleven: float
    area: float
    envelope: float
    C: float
    ended: bool


def measure(images: Images, settings: Voc07) -> Dict[str, Result]:
    """Mean average precision of every column.

    Args:
        images: for their networks; their own are not looked at.
        settings: of the protocol.

    Raises:
        UserError: there is no PASCAL VOC 2007, or an image of it cannot be read.
    """
    if settings.root is None:
        raise UserError("voc07 needs the folder of PASCAL VOC 2007; give it as voc07.root.")
    splits = {name: voc_split(settings.root, name) for name in ("trainval", "test")}
    rows = {
        name: images.of(
            f"voc07/{name}",
            lambda split=split: images.loader_of(
                VocImages(split, images.whole or images.transform)
            ),  # type: ignore[misc]
        )
        for name, split in splits.items()
    }
    if settings.difficult == "negative":
        rows = {
            name: {column: _all_count(some) for column, some in part.items()}
            for name, part in rows.items()
        }
    return {
        column: voc07(
            rows["trainval"][column],
            rows["test"][column],
            settings.C,
            settings.shots,
            settings.draws,
            images.seed,
        )
        for column in images.columns
    }


def voc07(
    train: Features,
    test: Features,
    C: Sequence[float] = (0.01, 0.1, 1, 10, 100, 1000),
    shots: Sequence[int] = (),
    draws: int = 5,
    seed: int = 0,
) -> Result:
    """One-against-rest linear SVMs (liblinear) on unit rows, positive images weighted 2 to 1.

    Args:
        train: unit rows (N, F) and labels (N, classes) of 1, -1 and 0 (difficult).
        test: unit rows (Q, F) and labels (Q, classes).
        C: inverse strengths of the penalty. Of several, each class takes the one of the highest mean average precision
            in a 3-fold cross-validation of its training images; of equals, the strongest penalty.
        shots: numbers of images a class for the low-shot protocol: so many that show it are drawn for each class, all
            of them together are the training images, C is 0.5.
        draws: of each number.
        seed: of folds and draws.

    Returns:
        Result: ``mAP`` by the rule of 2007, ``mAP, area``, and ``mAP, n a class``, the mean over draws. Details have
        the average precisions and C of every class, and every draw. A class without an image in test is left out of the
        means.
    """
    values = [features.feats.float().numpy().astype(np.float64) for features in (train, test)]
    labels = [features.targets.numpy() for features in (train, test)]
    fitted = _all_classes(values[0], labels[0], values[1], labels[1], C, seed, "linear SVMs")
    names = CLASSES if len(fitted) == len(CLASSES) else [str(i) for i in range(len(fitted))]
    scores = {
        "mAP": _mean([one.eleven for one in fitted]),
        "mAP, area": _mean([one.area for one in fitted]),
        "mAP, envelope": _mean([one.envelope for one in fitted]),
    }
    low = {}
    for shot in dict.fromkeys(shots):
        drawn = [
            _low_shot(values, labels, shot, np.random.default_rng([seed, shot, draw]))
            for draw in range(draws)
        ]
        scores[f"mAP, {shot} a class"] = float(np.mean(drawn))
        sd = float(np.std(drawn, ddof=1)) if draws > 1 else None
        low[str(shot)] = {"draws": drawn, "sd": sd}
    details = {
        "rule": "11 points of VOC 2007; area and area of the envelope beside it",
        "C_chosen_by": f"{_FOLDS}-fold cross-validation of each class"
        if len(set(C)) > 1
        else "the user",
        "classes": {
            name: {
                "AP": _percent(one.eleven),
                "AP_area": _percent(one.area),
                "AP_envelope": _percent(one.envelope),
                "C": _number(one.C),
            }
            for name, one in zip(names, fitted)
        },
        "low_shot": {"C": _LOW_SHOT_C, "shots": low} if low else None,
        "train_images": len(values[0]),
        "test_images": len(values[1]),
    }
    return Result(scores, {}, details, tuple(_remarks(names, fitted, labels[0])))


def _all_count(features: Features) -> Features:
    """Features whose difficult images are negatives."""
    labels = features.targets
    return features._replace(targets=labels.masked_fill(labels == DIFFICULT, ABSENT))


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> Tuple[float, float, float]:
    """Average precision of a ranking: the 11 points of VOC 2007, the area under the curve, that under its envelope.

    Args:
        scores: (Q,), higher is more likely; equal ones enter together.
        labels: (Q,) of 1, -1 and 0; the latter are left out.

    Returns:
        Tuple[float, float, float]: 0 to 1; nan where no label is 1.
    """
    counted = labels != DIFFICULT
    scores, positive = scores[counted], labels[counted] == PRESENT
    total = int(positive.sum())
    if not total:
        return float("nan"), float("nan"), float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # of each group of equal scores
    found, shown = hits[last], np.flatnonzero(last) + 1
    precision = found / shown
    # recall >= i / 10, in whole numbers
    best = [precision[10 * found >= i * total].max() for i in range(11)]
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    envelope = float(np.diff(found, prepend=0) @ highest) / total
    return float(np.mean(best)), float(average_precision_score(positive, scores)), envelope


def _all_classes(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    C: Sequence[float],
    seed: int,
    title: str = "",
) -> List[Fitted]:
    columns = range(train_labels.shape[1])
    quiet = not (title and sys.stdout.isatty())
    return [
        _one_class(
            train, train_labels[:, column], test, test_labels[:, column], sorted(set(C)), seed
        )
        for column in track(columns, title, disable=quiet, transient=True)
    ]


def _one_class(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    C: Sequence[float],
    seed: int,
) -> Fitted:
    counted = train_labels != DIFFICULT
    rows, truth = train[counted], train_labels[counted] == PRESENT
    if truth.all() or not truth.any():  # nothing to separate: no image is likelier than another
        return Fitted(*average_precisions(np.zeros(len(test)), test_labels), float("nan"), True)
    strength = _chosen(rows, truth, C, seed)
    model, ended = _svm(rows, truth, strength)
    return Fitted(*average_precisions(_ranks(model, test), test_labels), strength, ended)


def _chosen(rows: np.ndarray, truth: np.ndarray, C: Sequence[float], seed: int) -> float:
    """The strength of the best mean average precision over folds; the middle one where a fold would lack a class."""
    fewest = min(int(truth.sum()), int((~truth).sum()))
    if len(C) == 1 or fewest < 2:
        return C[(len(C) - 1) // 2]
    folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=seed)
    tried = np.zeros(len(C))
    for kept, held in folds.split(rows, truth):
        marks = np.where(truth[held], PRESENT, ABSENT)
        for i, strength in enumerate(C):
            model, _ = _svm(rows[kept], truth[kept], strength)
            tried[i] += average_precisions(_ranks(model, rows[held]), marks)[0]
    return C[int(tried.argmax())]


def _svm(rows: np.ndarray, truth: np.ndarray, C: float) -> Tuple[Any, bool]:
    """A linear SVM with squared hinge loss, and whether liblinear converged."""
    model = LinearSVC(
        C=C, class_weight={1: 2, 0: 1}, tol=1e-4, max_iter=2000, dual="auto", random_state=0
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, truth.astype(np.int64))
    return model, not any(issubclass(one.category, ConvergenceWarning) for one in caught)


def _ranks(model: Any, rows: np.ndarray) -> np.ndarray:
    """Scores to 12 decimals: equal rows are equal, in whatever order their products were summed."""
    return np.round(model.decision_function(rows), 12)


def _low_shot(
    values: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    shots: int,
    dice: np.random.Generator,
) -> float:
    """Mean average precision of SVMs on a few images that show each class, in percent."""
    drawn: List[int] = []
    for column in labels[0].T:
        shown = np.flatnonzero(column == PRESENT)
        drawn += dice.choice(shown, min(shots, len(shown)), replace=False).tolist()
    some = np.unique(drawn)
    fitted = _all_classes(values[0][some], labels[0][some], values[1], labels[1], [_LOW_SHOT_C], 0)
    return _mean([one.eleven for one in fitted])


def _mean(precisions: Sequence[float]) -> float:
    known = [one for one in precisions if one == one]
    return 100 * float(np.mean(known)) if known else 0.0


def _percent(precision: float) -> Optional[float]:
    return None if precision != precision else 100 * precision


def _number(value: float) -> Optional[float]:
    return None if value != value else value


def _remarks(names: Sequence[str], fitted: Sequence[Fitted], labels: np.ndarray) -> List[str]:
    unseen = [name for name, one in zip(names, fitted) if one.eleven != one.eleven]
    untaught = [name for name, one in zip(names, fitted) if one.C != one.C]
    unended = [name for name, one in zip(names, fitted) if not one.ended]
    said = []
    if unseen:
        said.append(
            f"warning: no test image shows {_listing(unseen)}: the means are over {len(names) - len(unseen)} classes."
        )
    if untaught:
        said.append(
            f"warning: the training images do not tell {_listing(untaught)} from the rest: chance is what counts there."
        )
    if unended:
        said.append(f"liblinear did not converge in 2000 iterations for {_listing(unended)}.")
    return said


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
