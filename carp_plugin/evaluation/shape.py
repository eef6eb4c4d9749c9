"""The shape of every protocol on frozen features: images and settings in, a result for each column out.

A column is a network and its features, ``"student/backbone"``. A protocol is a module of
:mod:`carp_plugin.evaluation.protocols` with a function ``measure(images, settings)``; its arithmetic is a function of
tensors that needs neither. Features of a set of images are computed once, whichever protocols read them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from carp_plugin.data.epochs import with_our_workers
from carp_plugin.evaluation.store import Features, class_names, stream

#: Of the intervals.
LEVEL = 0.95


@dataclass(frozen=True)
class Result:
    """What a protocol found for one column.

    Attributes:
        scores: measure -> percent; the first is the headline.
        per_image: measure -> (Q,) bool or float64, one value a query in their order, whose mean x 100 is the score; for
            the measures that are such means.
        details: whatever else was found, as json takes it.
        remarks: what is to be known of the numbers, a sentence each.
    """

    scores: Mapping[str, float]
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict)
    remarks: Tuple[str, ...] = ()

    def interval(self, measure: str) -> Optional[Tuple[float, float]]:
        """Of 95 % over images, in percent: Wilson's where images are right or wrong, Student's otherwise.

        Returns:
            Low and high; None of a measure that is no mean over images, and of a single image.
        """
        values = self.per_image.get(measure)
        if values is None or len(values) < 2:
            return None
        if np.isin(values, (0, 1)).all():  # Student's would have no width where all are equal
            found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(LEVEL, "wilson")
            return 100 * float(found.low), 100 * float(found.high)
        half = float(stats.sem(values)) * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
        mean = float(np.mean(values))
        return 100 * max(0.0, mean - half), 100 * min(1.0, mean + half)

    def shown(self, measure: str) -> str:
        """A score with half of its interval; a dash where there is none."""
        if measure not in self.scores:
            return "-"
        interval = self.interval(measure)
        half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.2f}"
        return f"{round(self.scores[measure], 2) + 0.0:.2f}{half}"  # without a sign before zero

    def as_dict(self) -> Dict[str, Any]:
        """Scores with their intervals, details and remarks, as json takes them."""
        scores = {
            name: {"value": value, "interval": self.interval(name)}
            for name, value in self.scores.items()
        }
        return {"scores": scores, **self.details, "remarks": list(self.remarks)}


@dataclass
class Images:
    """Labelled images as every column sees them; each set of images passes the networks once.

    Attributes:
        networks: network -> (backbone, features -> what makes them of the backbone's), on ``device``.
        loaders: of (images, labels): ``"train"`` and ``"val"``, without augmentation and in order.
        device: where features are computed.
        transform: of an image, which brings it to the networks' size.
        whole: the same of images of any size, of which it sees the middle square; None is ``transform``.
        model: the method, for what it has besides networks.
        besides: network -> further features that pass with the labelled images and are no column: what a protocol needs
            and nobody evaluates.
        dtype: that unit rows are kept in.
        seed: of every draw.
        batch_size: images at once.
        num_workers: processes that read images.
        passes: set of images -> how often it passed the networks.
        seconds: that this took.
    """

    networks: Mapping[str, Tuple[nn.Module, Mapping[str, nn.Module]]]
    loaders: Mapping[str, DataLoader]
    device: torch.device
    transform: Callable[[Any], torch.Tensor]
    whole: Optional[Callable[[Any], torch.Tensor]] = None
    model: Optional[nn.Module] = None
    besides: Mapping[str, Mapping[str, nn.Module]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    seed: int = 0
    batch_size: int = 64
    num_workers: int = 0
    passes: Dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    _known: Dict[str, Dict[str, Features]] = field(default_factory=dict, repr=False)

    @property
    def columns(self) -> List[str]:
        """``"network/features"`` of everything that is evaluated."""
        return [f"{name}/{kind}" for name, (_, heads) in self.networks.items() for kind in heads]

    @property
    def train(self) -> Dict[str, Features]:
        """Column -> unit rows of the training images."""
        return self.of("train", lambda: self.loaders["train"])

    @property
    def val(self) -> Dict[str, Features]:
        """Column -> unit rows of the validation images."""
        return self.of("val", lambda: self.loaders["val"])

    @property
    def classes(self) -> List[str]:
        """Names of the classes in the order of the labels."""
        some = self.columns[0]
        targets = [self.train[some].targets, self.val[some].targets]
        return class_names(self.loaders["train"], targets)

    def of(self, name: str, loader: Callable[[], DataLoader]) -> Dict[str, Features]:
        """Column -> unit rows of a set of images, computed when they are first asked for.

        Of the labelled images there are those of ``besides`` too.

        Args:
            name: of the set; the same name is the same set.
            loader: makes a loader of (images, targets).
        """
        if name not in self._known:
            self.passes[name] = self.passes.get(name, 0) + 1
            started = time.perf_counter()
            networks = dict(self.networks)
            if name in self.loaders:
                for network, further in self.besides.items():
                    backbone, heads = networks[network]
                    networks[network] = backbone, {**further, **heads}
            self._known[name] = stream(
                networks, loader(), self.device, f"features: {name}", dtype=self.dtype
            )
            self.seconds += time.perf_counter() - started
        return self._known[name]

    def loader_of(self, dataset: Dataset, batch_size: Optional[int] = None) -> DataLoader:
        """A loader of any data set of (image tensor, target), in its order."""
        loader: DataLoader = DataLoader(
            dataset, batch_size=batch_size or self.batch_size, num_workers=self.num_workers
        )
        with_our_workers(loader)
        return loader


def by_column(images: Images, measure: Callable[[Features, Features], Result]) -> Dict[str, Result]:
    """A function of training and validation features, for every column."""
    return {column: measure(images.train[column], images.val[column]) for column in images.columns}
