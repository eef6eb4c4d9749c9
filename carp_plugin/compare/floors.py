"""What an accuracy has to be above before it says anything: k-NN on the raw pixels, without any network.

The networks before their first step are another floor, which every run measures by itself.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Tuple

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from carp_plugin.compare.plan import Plan
from carp_plugin.data.datasets import counts, labelled_images
from carp_plugin.data.epochs import with_our_workers
from carp_plugin.data.images import NamesBadImages
from carp_plugin.data.loaders import evaluation_transform
from carp_plugin.evaluation.protocols.knn import weighted_knn
from carp_plugin.evaluation.store import Features
from carp_plugin.settings.pretraining import PretrainingData
from carp_plugin.settings.protocols import Neighbours
from carp_plugin.settings.trained import TrainedView
from carp_plugin.training.callbacks.history import write_json

SIDE = 32  # pixels: larger images are averaged down to it
MOST = 60_000  # training images; of more, a floor would take longer than it is worth
_BATCH = 256
#: How rows are called in tables -> their key.
ROWS = {"raw pixels": "pixels", "raw pixels, centred": "centred_pixels"}


def floors_of(plan: Plan) -> Dict[str, Any]:
    """The floors of a comparison, computed once and kept in ``floors.json`` beside its results.

    Args:
        plan: of the comparison.

    Returns:
        Dict[str, Any]: ``pixels`` and ``centred_pixels``, each k -> [top-1, top-5] in percent; ``of``, what they were
        computed of. Empty where no k-NN is asked for, or there are more than 60,000 training images.
    """
    data, knn = plan.first.data, plan.settings.knn
    if knn is None or counts(data)[0] > MOST:
        return {}
    of = json.loads(
        json.dumps(
            {
                "data": data.model_dump(mode="json", exclude={"num_workers", "prepare"}),
                "knn": knn.model_dump(mode="json", exclude={"features"}),
            }
        )
    )
    path = plan.root / "floors.json"
    if path.is_file():
        known: Dict[str, Any] = json.loads(path.read_text())
        if known["of"] == of:
            return known
    found = {**pixel_floors(data, knn), "of": of}
    plan.root.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def pixel_floors(data: PretrainingData, knn: Neighbours) -> Dict[str, Any]:
    """Weighted k-NN (C.3) of images as rows of their pixels, 0 to 1, as they are and less the training images' mean.

    Args:
        data: labelled images; they are brought to a size as for evaluation, and are not normalised.
        knn: neighbours and temperature.
    """
    whole: Any = evaluation_transform(data.dataset, data.eval_transform, TrainedView())
    steps = [step for step in whole.transforms if not isinstance(step, transforms.Normalize)]
    transform = transforms.Compose(steps)
    train, val = labelled_images(data, transform, transform)
    bank = _rows(NamesBadImages(train, data.max_bad_fraction, data.max_pixels), data.num_workers)
    queries = _rows(NamesBadImages(val, 0.0, data.max_pixels), data.num_workers)
    mean = bank.feats.mean(dim=0)
    found = {"pixels": weighted_knn(bank, queries, knn.k, knn.temperature).accuracy}
    bank.feats.sub_(mean)
    queries.feats.sub_(mean)
    found["centred_pixels"] = weighted_knn(bank, queries, knn.k, knn.temperature).accuracy
    return found


def _rows(images: NamesBadImages, num_workers: int) -> Features:
    """(N, F) float32 pixels of all images, in their order."""
    loader = with_our_workers(DataLoader(images, batch_size=_BATCH, num_workers=num_workers))
    feats: List[torch.Tensor] = []
    targets: List[torch.Tensor] = []
    for batch, labels in loader:
        if batch.shape[-1] > SIDE:
            batch = F.interpolate(batch, size=(SIDE, SIDE), mode="area")
        feats.append(batch.flatten(1))
        targets.append(labels)
    return Features(torch.cat(feats), torch.cat(targets))


def lines_of_floors(
    results: Mapping[str, Any], metrics: List[str], headline_k: int
) -> List[Tuple[str, List[str]]]:
    """Rows of the table of a comparison: a name, and a cell for each metric.

    Args:
        results: what ``results.json`` holds; those of an earlier version have no floors.
        metrics: of the columns; k-NN alone has these floors.
        headline_k: neighbours of the k-NN.
    """
    floors, lines = results.get("floors") or {}, []
    for name, key in ROWS.items():
        at_k = floors.get(key, {}).get(str(headline_k))
        if at_k is not None:
            cells = [f"{at_k[0]:.2f}" if one.startswith("knn/") else "" for one in metrics]
            lines.append((name, cells))
    return lines
