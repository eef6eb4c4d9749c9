"""What ``args.json`` beside a checkpoint says of its run: the parsed configuration, ours or of solo-learn's script."""

from __future__ import annotations

from typing import Optional, Tuple

from pydantic import ConfigDict

from carp_plugin.settings.kinds import (
    Count,
    Free,
    Index,
    Number,
    PathText,
    Positive,
    Seed,
    Signed,
    Switch,
    Text,
)
from carp_plugin.settings.model import Settings, key
from carp_plugin.settings.parts import Dataset, Format, Holdout, Size


class _Lenient(Settings):
    model_config = ConfigDict(extra="ignore")


class TrainedBackbone(_Lenient):
    """The backbone."""

    name: Text = key(..., "of the host")
    kwargs: Free = key({}, "what its constructor took")


class TrainedData(_Lenient):
    """The images."""

    dataset: Dataset = key(..., "data set")
    train_path: Optional[PathText] = key(None, "training images")
    val_path: Optional[PathText] = key(None, "validation images")
    format: Format = key("image_folder", "how they are read")
    num_workers: Index = key(4, "processes that read images")
    no_labels: Switch = key(False, "any tree of images")
    train_images: Optional[Count] = key(None, "training images that were drawn")
    val_images: Optional[Count] = key(None, "validation images that were drawn")
    subset_seed: Seed = key(0, "of these draws")
    holdout: Optional[Holdout] = key(None, "training images that are validated on")
    prepare: Optional[Text] = key(None, "embedded images")
    max_bad_fraction: Number = key(0.01, "of the images may be bad", ge=0, le=0.5)
    max_pixels: Count = key(178_956_970, "an image of more is bad")
    eval_transform: Optional[Size] = key(None, "how images are brought to a size")


class TrainedView(_Lenient):
    """Channel statistics of a pipeline of views."""

    mean: Optional[Tuple[Signed, Signed, Signed]] = key(None, "of the channels")
    std: Optional[Tuple[Positive, Positive, Positive]] = key(None, "of the channels")


class TrainedOptimizer(_Lenient):
    """Of the optimizer."""

    batch_size: Count = key(64, "images")


class TrainedPerformance(_Lenient):
    """Memory format."""

    disable_channel_last: Switch = key(False, "torch's own memory format")


class Trained(_Lenient):
    """A run that has been trained, as far as evaluating it needs to know."""

    name: str = key("", "of the run")
    method: Text = key(..., "of the host, or ours")
    backbone: TrainedBackbone = key(..., "the backbone")
    data: TrainedData = key(..., "the images")
    augmentations: Tuple[TrainedView, ...] = key((), "the views")
    optimizer: TrainedOptimizer = key(TrainedOptimizer(), "the optimizer")
    performance: TrainedPerformance = key(TrainedPerformance(), "memory format")
    accelerator: Text = key("auto", "what it was trained on")

    @property
    def view(self) -> TrainedView:
        """Statistics that images are normalised by."""
        return self.augmentations[0] if self.augmentations else TrainedView()
