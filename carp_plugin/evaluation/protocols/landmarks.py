"""Instance retrieval by the revisited Oxford and Paris protocol (Radenović et al., 2018, section 3)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from carp_plugin.data.images import read_image
from carp_plugin.errors import UserError
from carp_plugin.evaluation.landmarks import KINDS, GroundTruth, Query, read_ground_truth
from carp_plugin.evaluation.ranking import average_precision, precision_at, similarities, ties
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.protocols import Landmarks

#: Path of an image, and a box in pixels or None for the whole of it.
View = Tuple[str, Optional[Tuple[float, float, float, float]]]

#: Setup -> what its positives are; all that is neither positive nor "negative" is taken out of the ranking.
SETUPS: Dict[str, Tuple[str, ...]] = {
    "medium": ("easy", "hard"),
    "hard": ("hard",),
    "easy": ("easy",),
}
RANKS = (1, 5, 10)

_LAST = (transforms.ToTensor, transforms.Normalize)  # what is kept of a transform when sizes are


def measure(images: Images, settings: Landmarks) -> Dict[str, Result]:
    """mAP and mP@k of every column in the three setups.

    Args:
        images: for their networks and transform; the labelled ones are not read.
        settings: of the protocol.

    Raises:
        UserError: a file or a folder that is missing or wrong, or features that are not finite.
    """
    if settings.ground_truth is None or settings.images is None:
        raise UserError(
            "landmarks needs a ground-truth file such as gnd_roxford5k.pkl and the folder of its images; give "
            "landmarks.ground_truth and landmarks.images."
        )
    truth = read_ground_truth(settings.ground_truth)
    folder = Path(settings.images)
    check_images(truth, folder)
    paths = [_path(folder, name) for name in truth.database]
    database = _features(images, "landmarks", [(path, None) for path in paths], settings.size)
    views = [(_path(folder, query.name), query.box) for query in truth.queries]
    queries = _features(images, "landmarks, queries", views, settings.size)
    digest = hashlib.sha256(Path(settings.ground_truth).read_bytes()).hexdigest()
    found = {}
    for column in images.columns:
        result = landmarks(
            database[column].feats, queries[column].feats, truth.queries, images.device
        )
        found[column] = Result(
            result.scores,
            result.per_image,
            {"ground_truth_sha256": digest, "database": len(paths), **result.details},
            result.remarks,
        )
    return found


def landmarks(
    database: torch.Tensor,
    features: torch.Tensor,
    queries: Sequence[Query],
    device: Optional[torch.device] = None,
) -> Result:
    """Ranks a database for every query, and takes what is junk in a setup out of the ranking.

    Easy: easy images are positives, hard ones are junk; medium: easy and hard ones are positives; hard: hard ones are
    positives, easy ones are junk. What the file calls junk is junk in all of them. AP is the area of trapezoids; P@k
    is that of the first min(k, p), p the place of the last positive. Queries without a positive do not count.

    Args:
        database: features (N, F).
        features: of the queries, (Q, F).
        queries: Q of them.
        device: where similarities are computed.

    Returns:
        Result: ``mAP (medium)`` first, then ``mP@1`` and so on of each setup.

    Raises:
        UserError: features that are not finite, or a setup in which no query has a positive.
    """
    values = np.concatenate([block for _, block in similarities([database], features, device)])
    scores: Dict[str, float] = {}
    per_image: Dict[str, np.ndarray] = {}
    counted: Dict[str, int] = {}
    for setup, kinds in SETUPS.items():
        rows = [
            measures
            for row, query in zip(values, queries)
            if (measures := _measures(row, query, kinds)) is not None
        ]
        counted[setup] = len(rows)
        names = (f"mAP ({setup})", *(f"mP@{k} ({setup})" for k in RANKS))
        for name, column in zip(names, zip(*rows)):
            per_image[name] = np.array(column)
            scores[name] = 100 * float(np.mean(column))
    if not scores:
        raise UserError("no query of the ground truth has a positive image; give another file.")
    missing = [setup for setup, count in counted.items() if not count]
    said = (f"no query has a positive in the setup {', '.join(missing)}.",) if missing else ()
    return Result(scores, per_image, {"queries": counted}, said)


def _features(
    images: Images, name: str, views: Sequence[View], size: Optional[int]
) -> Dict[str, Features]:
    """Of parts of images: brought to the networks' size, or one at a time, each whole and in its own shape."""
    if size is None:
        return images.of(name, lambda: images.loader_of(Pictures(views, images.transform)))
    steps = getattr(images.transform, "transforms", ())
    last = transforms.Compose([step for step in steps if isinstance(step, _LAST)])
    try:
        return images.of(name, lambda: images.loader_of(Pictures(views, last, size), batch_size=1))
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the backbone does not take images of any shape ({reason}); leave landmarks.size out."
        ) from error


def _measures(values: np.ndarray, query: Query, kinds: Tuple[str, ...]) -> Optional[List[float]]:
    """AP and P@k of a query; None where nothing is positive."""
    positive, kept = np.zeros(len(values), dtype=bool), np.ones(len(values), dtype=bool)
    for kind in KINDS:
        (positive if kind in kinds else kept)[query.images[kind]] = kind in kinds
    positive &= kept
    if not positive.any():
        return None
    ranking = ties(values[kept], positive[kept])
    return [average_precision(ranking, trapezoids=True), *(precision_at(ranking, k) for k in RANKS)]


class Pictures(Dataset):
    """Images of files, or parts of them: items are (image, 0).

    Args:
        views: of files.
        transform: of an image.
        size: longest side in pixels that a larger image is brought to, and a part of it by the same factor.
    """

    def __init__(
        self, views: Sequence[View], transform: Callable, size: Optional[int] = None
    ) -> None:
        self.views, self.transform, self.size = list(views), transform, size

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        path, box = self.views[index]
        image = read_image(path)
        factor = 1.0 if self.size is None else min(1.0, self.size / max(image.size))
        if box is not None:
            left, top, right, bottom = map(round, box)
            width, height = image.size
            inside = max(0, left), max(0, top), min(width, right), min(height, bottom)
            if inside[0] >= inside[2] or inside[1] >= inside[3]:
                raise UserError(
                    f"the bbx of the query {path} lies outside of its {width} x {height} pixels; these are not the "
                    "images of this ground truth."
                )
            image = image.crop(inside)
        if factor < 1:
            width, height = (max(1, round(factor * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return self.transform(image), 0


def check_images(truth: GroundTruth, folder: Path) -> None:
    """Every image is there; found out before the first is read.

    Raises:
        UserError: the folder, or some of its images, are missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"landmarks.images={folder} is no folder; give the one with the images of the ground truth."
        )
    names = [*truth.database, *(query.name for query in truth.queries)]
    missing = [name for name in dict.fromkeys(names) if not os.path.isfile(_path(folder, name))]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(set(names))} images of the ground truth, {missing[0]}.jpg "
            "among them; give the folder in which they lie as NAME.jpg."
        )


def _path(folder: Path, name: str) -> str:
    return str(folder / f"{name}.jpg")
