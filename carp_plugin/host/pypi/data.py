"""Transforms and data sets of solo-learn 1.0.2 with the current arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional, Tuple, Union

from PIL import ImageOps
from solo.utils import classification_dataloader as _classification
from solo.utils import pretrain_dataloader as _pretrain
from solo.utils.classification_dataloader import (
    prepare_dataloaders as prepare_classification_dataloaders,
)
from solo.utils.classification_dataloader import (
    prepare_transforms as prepare_classification_transforms,
)
from solo.utils.pretrain_dataloader import (
    FullTransformPipeline,
    GaussianBlur,
    NCropAugmentation,
    Solarization,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from carp_plugin.errors import UserError

_Path = Optional[Union[str, Path]]

#: Mean and standard deviation of the channels, as the current host has them.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
    "imagenet100": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}


class Equalization:
    """Equalises the histogram of an image; 1.0.2 has no such step of its own."""

    def __call__(self, image: Any) -> Any:
        return ImageOps.equalize(image)


def _maybe(step: Any, probability: float) -> list:
    return [transforms.RandomApply([step], p=probability)] if probability else []


def build_transform_pipeline(dataset: str, cfg: Any) -> Callable:
    """Augmentation of one view, from a node of ``augmentations``.

    Args:
        dataset: name of the data set, for its channel statistics.
        cfg: ``crop_size`` in pixels, ``rrc``, ``color_jitter``, ``grayscale``, ``gaussian_blur``,
            ``solarization``, ``equalization``, ``horizontal_flip``; optionally ``mean`` and ``std``.

    Returns:
        Callable: PIL image to float tensor (3, crop_size, crop_size).
    """
    custom = (cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD))
    mean, std = _STATISTICS.get(dataset, custom)
    bicubic, jitter = transforms.InterpolationMode.BICUBIC, cfg.color_jitter
    if cfg.rrc.enabled:
        scale = (cfg.rrc.crop_min_scale, cfg.rrc.crop_max_scale)
        crop = transforms.RandomResizedCrop(cfg.crop_size, scale=scale, interpolation=bicubic)
    else:
        crop = transforms.Resize(cfg.crop_size, interpolation=bicubic)
    steps = [crop]
    if jitter.prob:
        strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        steps += _maybe(transforms.ColorJitter(*strengths), jitter.prob)
    if cfg.grayscale.prob:
        steps.append(transforms.RandomGrayscale(p=cfg.grayscale.prob))
    steps += _maybe(GaussianBlur(), cfg.gaussian_blur.prob)
    steps += _maybe(Solarization(), cfg.solarization.prob)
    steps += _maybe(Equalization(), cfg.equalization.prob)
    if cfg.horizontal_flip.prob:
        steps.append(transforms.RandomHorizontalFlip(p=cfg.horizontal_flip.prob))
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(mean=mean, std=std)]
    )


def _only_folders(data_format: Optional[str]) -> None:
    if data_format not in (None, "image_folder"):
        raise UserError(
            f"data.format={data_format} is not in solo-learn 1.0.2; use image_folder or dali, "
            "or install solo-learn 1.0.6 or later."
        )


def _fraction(dataset: Dataset, fraction: float) -> Dataset:
    """Keeps a stratified part of the samples, the same one every time."""
    if fraction <= 0:
        return dataset
    if fraction >= 1:
        raise UserError(
            f"data.fraction={fraction} must be below 1; leave it at -1 to use all data."
        )
    from sklearn.model_selection import train_test_split

    if hasattr(dataset, "images"):
        dataset.images, _ = train_test_split(dataset.images, train_size=fraction, random_state=42)
    else:
        labels = [label for _, label in dataset.samples]
        dataset.samples, _ = train_test_split(
            dataset.samples, train_size=fraction, stratify=labels, random_state=42
        )
    return dataset


def prepare_datasets(
    dataset: str,
    transform: Callable,
    train_data_path: _Path = None,
    data_format: Optional[str] = "image_folder",
    no_labels: bool = False,
    download: bool = True,
    data_fraction: float = -1.0,
) -> Dataset:
    """The data set of pretraining; gives (index, views, label).

    Args:
        dataset: cifar10, cifar100, stl10, imagenet, imagenet100 or custom.
        transform: image to list of views.
        train_data_path: folder of the training data.
        data_format: ``image_folder``; 1.0.2 has no other here.
        no_labels: a flat folder of images, labels -1.
        download: only True; 1.0.2 downloads CIFAR and STL where they are missing.
        data_fraction: stratified part of the data, -1 for all.

    Raises:
        UserError: for a format or a fraction that cannot be had.
    """
    _only_folders(data_format)
    path = Path(train_data_path or "datasets")
    data = _pretrain.prepare_datasets(
        dataset, transform, data_dir=path, train_dir=".", no_labels=no_labels, download=download
    )
    return _fraction(data, data_fraction)


def prepare_classification_datasets(
    dataset: str,
    T_train: Callable,
    T_val: Callable,
    train_data_path: _Path = None,
    val_data_path: _Path = None,
    data_format: Optional[str] = "image_folder",
    download: bool = True,
    data_fraction: float = -1.0,
) -> Tuple[Dataset, Dataset]:
    """Labelled train and validation sets; gives (image, label). Arguments as :func:`prepare_datasets`."""
    _only_folders(data_format)
    train, val = Path(train_data_path or "datasets"), Path(val_data_path or "datasets")
    train_set, val_set = _classification.prepare_datasets(
        dataset,
        T_train,
        T_val,
        data_dir=".",
        train_dir=train.absolute(),
        val_dir=val.absolute(),
        download=download,
    )
    return _fraction(train_set, data_fraction), val_set


def prepare_classification_data(
    dataset: str,
    train_data_path: _Path = None,
    val_data_path: _Path = None,
    data_format: Optional[str] = "image_folder",
    batch_size: int = 64,
    num_workers: int = 4,
    download: bool = True,
    data_fraction: float = -1.0,
    auto_augment: bool = False,
) -> Tuple[DataLoader, DataLoader]:
    """Labelled train and validation loaders with the host's transforms of the data set.

    Raises:
        UserError: for ``auto_augment``, which 1.0.2 does not have.
    """
    if auto_augment:
        raise UserError("auto_augment needs solo-learn 1.0.6 or later; 1.0.2 does not have it.")
    T_train, T_val = prepare_classification_transforms(dataset)
    train_set, val_set = prepare_classification_datasets(
        dataset,
        T_train,
        T_val,
        train_data_path,
        val_data_path,
        data_format,
        download,
        data_fraction,
    )
    return prepare_classification_dataloaders(train_set, val_set, batch_size, num_workers)


__all__ = [
    "FullTransformPipeline",
    "NCropAugmentation",
    "build_transform_pipeline",
    "prepare_classification_data",
    "prepare_classification_dataloaders",
    "prepare_classification_datasets",
    "prepare_classification_transforms",
    "prepare_datasets",
]
