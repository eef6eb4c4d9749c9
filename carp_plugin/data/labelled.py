"""Labelled images of an evaluation that trains: augmented ones to train on, and validation images as they are."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch.utils.data
from torch.utils.data import DataLoader
from torchvision import transforms

from carp_plugin.data import idx
from carp_plugin.data.dali import check_decodable, naming_dali_failures
from carp_plugin.data.datasets import labelled_images, subsets_of
from carp_plugin.data.epochs import epoch_loader, with_our_workers
from carp_plugin.data.images import NamesBadImages
from carp_plugin.data.listing import Sample
from carp_plugin.data.loaders import (
    Statistics,
    check_batch,
    dali_samples,
    evaluation_transform,
    read_data,
    warn_of_sizes,
)
from carp_plugin.data.subsets import Asked, Subset, subset_of
from carp_plugin.errors import UserError
from carp_plugin.host import (
    ClassificationDALIDataModule,
    prepare_classification_dataloaders,
    prepare_classification_transforms,
    serve_files,
)
from carp_plugin.settings.linear import LinearData, TrainTransform


class LabelledData(NamedTuple):
    """Labelled images to train on and to validate on.

    Attributes:
        train: loader of (images, labels), or the DALI data module.
        val: loader in the order of the data set.
        images: number of training images.
        val_images: number of validation images.
        drawn: of :func:`subsets_of`.
        subset: which of the training images, where some were asked for.
    """

    train: Any
    val: DataLoader
    images: int
    val_images: int
    drawn: Dict[str, Any]
    subset: Optional[Subset] = None


def labelled_data(
    data: LinearData,
    statistics: Statistics,
    batch_size: int,
    world: int,
    seed: int,
    dali_device: str = "gpu",
    asked: Optional[Asked] = None,
) -> LabelledData:
    """Training images with random crops and flips, and validation images with a central crop.

    A training image that cannot be read is replaced by the next one, with its label, up to ``data.max_bad_fraction``
    of them; a validation image never is.

    Args:
        data: where the images are.
        statistics: of the pretraining's views; where the transforms are ours, images are normalised by them here too.
        batch_size: images a batch and process.
        world: processes.
        seed: of order and crops.
        dali_device: where DALI decodes.
        asked: which of the training images; None takes those of ``data.fraction``.

    Raises:
        UserError: the data cannot be read, or there are fewer images than a batch.
    """
    evaluation = evaluation_transform(data.dataset, data.eval_transform, statistics)
    training = training_transform(data.dataset, data.train_transform, evaluation)
    train_set, val_set = read_data(
        lambda: labelled_images(data, training, evaluation, data.fraction)
    )
    drawn = subsets_of(train_set, val_set)
    subset, source = None, f"data.train_path={data.train_path}"
    if asked is not None:
        train_set, subset = _taken(train_set, data, asked)
        if subset.images < subset.total:
            key = f"file={asked.file}" if asked.file else f"fraction={asked.fraction:g}"
            source = f"labels.{key} of {source}"
    check_batch(source, len(train_set), batch_size, world)
    named = NamesBadImages(val_set, 0.0, data.max_pixels)
    named_train = NamesBadImages(train_set, data.max_bad_fraction, data.max_pixels)
    _warn_of_sizes(data, named_train, named)
    # The host's validation loader neither shuffles nor drops.
    val = prepare_classification_dataloaders(
        named, named, batch_size=batch_size, num_workers=data.num_workers
    )[1]
    with_our_workers(val)
    if data.format == "dali":
        samples = train_set.samples if subset is not None else dali_samples(data)
        train = _dali(data, batch_size, dali_device, val, samples)
    else:
        train = epoch_loader(named_train, batch_size, data.num_workers, seed)
    return LabelledData(train, val, len(train_set), len(val_set), drawn, subset)


def _taken(images: Any, data: LinearData, asked: Asked) -> Tuple[Any, Subset]:
    """The part of a data set that is asked for.

    Raises:
        UserError: the data set does not tell its labels, or its images have no names that a list could give.
    """
    if hasattr(images, "samples"):
        subset = subset_of(images.samples, str(images.root), asked)
        images.samples = [images.samples[index] for index in subset.indices]
        return images, subset
    labels = getattr(images, "targets", getattr(images, "labels", None))
    if labels is None and (asked.file is not None or asked.fraction < 1):
        raise UserError(
            f"data.format={data.format} does not tell the classes of its images before they are read, so no part of "
            "them can be drawn; use data.format=image_folder, or labels.fraction=1."
        )
    if asked.file is not None:
        raise UserError(
            f"labels.file={asked.file} names files, but {data.dataset} has none; use labels.fraction."
        )
    known = [int(label) for label in labels] if labels is not None else [-1] * len(images)
    numbered: List[Sample] = [(str(index), label) for index, label in enumerate(known)]
    subset = subset_of(numbered, "", asked)
    return torch.utils.data.Subset(images, subset.indices), subset


def _warn_of_sizes(data: LinearData, train: NamesBadImages, val: NamesBadImages) -> None:
    """Says if images are smaller than the crops that the settings name."""
    if data.train_transform is not None:
        crop = data.train_transform.crop_size
        warn_of_sizes(train, crop, f"they are enlarged to crops of {crop} px")
    size = data.eval_transform
    if size is not None and not size.resize:
        crop = size.crop_size
        warn_of_sizes(val, crop, f"the central crop of {crop} px pads them with black")


def training_transform(dataset: str, crop: Optional[TrainTransform], evaluation: Any) -> Any:
    """Random resized crop and horizontal flip (C.1).

    Args:
        dataset: of the images.
        crop: crops of ``crop_size`` pixels that cover ``scale`` (null: 0.08 to 1) of the image; None is the host's
            transform of the data set (crops of 224 pixels for folders of images).
        evaluation: the transform of validation images, which ends with the normalisation.
    """
    if crop is None and dataset == idx.NAME:
        crop = TrainTransform(crop_size=idx.SIDE)
    if crop is None:
        return prepare_classification_transforms(dataset)[0]
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(crop.crop_size, scale=crop.scale or (0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            *evaluation.transforms[-2:],  # to a tensor, and normalised
        ]
    )


def _dali(
    data: LinearData, batch_size: int, device: str, val: DataLoader, samples: List[Sample]
) -> Any:
    """The host's DALI data module for training; torch's loader for validation, which keeps the order."""
    module = ClassificationDALIDataModule(
        dataset=data.dataset,
        train_data_path=data.train_path,
        val_data_path=data.val_path,
        num_workers=max(1, data.num_workers),
        batch_size=batch_size,
        data_fraction=data.fraction,
        dali_device=device,
    )
    module.val_dataloader = lambda: val
    files = [path for path, _ in samples]
    check_decodable(files)
    serve_files(module, samples)
    return naming_dali_failures(module, str(data.train_path), files)
