"""Data loaders of a pretraining run, built from a cfg with the host's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional, Tuple

import lightning.pytorch as pl
from omegaconf import DictConfig
from PIL import Image, UnidentifiedImageError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from carp_plugin.errors import UserError
from carp_plugin.host import (
    FullTransformPipeline,
    NCropAugmentation,
    PretrainDALIDataModule,
    build_transform_pipeline,
    build_transform_pipeline_dali,
    omegaconf_select,
    prepare_classification_dataloaders,
    prepare_classification_datasets,
    prepare_classification_transforms,
    prepare_dataloader,
    prepare_datasets,
)


class ImageError(UserError):
    """An image that cannot be read."""


class NamesBadImages(Dataset):
    """A data set that says which file it was when an image cannot be read.

    Args:
        dataset: has ``samples`` (ImageFolder) or ``images`` and ``root`` (the host's flat folder), or neither.

    Raises:
        ImageError: from ``[]``, with the path of the file and the reason.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (
            OSError,
            SyntaxError,
            UnidentifiedImageError,
            Image.DecompressionBombError,
        ) as error:
            reason = str(error).split(" <")[0].split(" '")[0]
            raise ImageError(
                f"the image {self._path(index)} cannot be read ({reason}); mend it or take it out of the folder."
            ) from None

    def _path(self, index: int) -> str:
        dataset: Any = self.dataset
        if hasattr(dataset, "samples"):
            return str(dataset.samples[index][0])
        if hasattr(dataset, "images"):
            return str(Path(dataset.root) / dataset.images[index])
        return f"number {index}"


def _views(cfg: DictConfig, build: Callable[[Any], Callable]) -> FullTransformPipeline:
    return FullTransformPipeline(
        [
            NCropAugmentation(build(augmentation), augmentation.num_crops)
            for augmentation in cfg.augmentations
        ]
    )


def pretrain_loader(cfg: DictConfig) -> DataLoader:
    """The training loader of [indexes, views, labels], with the last, smaller batch dropped as the host does.

    Raises:
        UserError: fewer images than a batch, or data that cannot be read.
    """
    transform = _views(
        cfg, lambda augmentation: build_transform_pipeline(cfg.data.dataset, augmentation)
    )
    if cfg.debug_augmentations:
        print(f"Transforms:\n{transform}")
    dataset = read_data(
        lambda: prepare_datasets(
            cfg.data.dataset,
            transform,
            train_data_path=cfg.data.train_path,
            data_format=cfg.data.format,
            no_labels=cfg.data.no_labels,
            data_fraction=cfg.data.fraction,
        )
    )
    check_batch(cfg, len(dataset))
    return prepare_dataloader(
        NamesBadImages(dataset),
        batch_size=cfg.optimizer.batch_size,
        num_workers=cfg.data.num_workers,
    )


def pretrain_dali(cfg: DictConfig) -> pl.LightningDataModule:
    """The host's DALI data module of the same batches.

    Raises:
        UserError: DALI is not installed, or fewer images than a batch.
    """
    dali = omegaconf_select(cfg, "dali.device", "gpu")
    transform = _views(
        cfg, lambda a: build_transform_pipeline_dali(cfg.data.dataset, a, dali_device=dali)
    )
    check_batch(cfg, count_files(cfg))
    return PretrainDALIDataModule(
        dataset=cfg.data.dataset,
        train_data_path=cfg.data.train_path,
        transforms=transform,
        num_large_crops=cfg.data.num_large_crops,
        num_small_crops=cfg.data.num_small_crops,
        num_workers=max(1, cfg.data.num_workers),
        batch_size=cfg.optimizer.batch_size,
        no_labels=cfg.data.no_labels,
        data_fraction=cfg.data.fraction,
        dali_device=dali,
        encode_indexes_into_labels=cfg.dali.encode_indexes_into_labels,
    )


def labelled_loaders(cfg: DictConfig) -> Optional[Tuple[DataLoader, DataLoader]]:
    """Loaders of (images, labels) without augmentation: training images in order, and validation images.

    Returns:
        The two loaders, or None where the configuration has no labelled validation data.
    """
    if cfg.data.no_labels or cfg.data.val_path is None:
        return None
    transform = evaluation_transform(cfg)
    data_format = "image_folder" if cfg.data.format == "dali" else cfg.data.format
    train, val = read_data(
        lambda: prepare_classification_datasets(
            cfg.data.dataset,
            transform,
            transform,
            train_data_path=cfg.data.train_path,
            val_data_path=cfg.data.val_path,
            data_format=data_format,
        )
    )
    # The host's validation loader neither shuffles nor drops; the training images are to come like that too.
    both = []
    for dataset in (train, val):
        named = NamesBadImages(dataset)
        nothing = Subset(named, [0])  # the host wants a training set, whose loader is not used
        both.append(
            prepare_classification_dataloaders(
                nothing,
                named,
                batch_size=cfg.optimizer.batch_size,
                num_workers=cfg.data.num_workers,
            )[1]
        )
    return both[0], both[1]


def evaluation_transform(cfg: DictConfig) -> Callable:
    """How images are brought to a size for evaluation.

    The host's transform of the data set (256 then 224 pixels for folders of images), or, where
    ``data.eval_transform`` says so, ``resize`` of the shorter side (left out: none) and a central ``crop_size``.
    """
    own = omegaconf_select(cfg, "data.eval_transform")
    if own is None:
        return prepare_classification_transforms(cfg.data.dataset)[1]
    statistics = cfg.augmentations[0]
    mean = omegaconf_select(statistics, "mean", IMAGENET_DEFAULT_MEAN)
    std = omegaconf_select(statistics, "std", IMAGENET_DEFAULT_STD)
    steps = [transforms.Resize(own.resize)] if own.get("resize") else []
    return transforms.Compose(
        [
            *steps,
            transforms.CenterCrop(own.crop_size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def check_batch(cfg: DictConfig, images: int) -> None:
    """At least one whole batch on every device.

    Raises:
        UserError: too few images.
    """
    world = len(cfg.devices) * cfg.num_nodes
    if images // world < cfg.optimizer.batch_size:
        fits = images // world
        raise UserError(
            f"data.train_path={cfg.data.train_path} holds {images} image{'s' * (images != 1)}, fewer than one batch "
            f"of {cfg.optimizer.batch_size} on {world} device{'s' * (world != 1)}; "
            + (f"use optimizer.batch_size={fits} or less." if fits > 1 else "add images.")
        )
    if cfg.optimizer.batch_size < 2:
        raise UserError(
            "optimizer.batch_size must be at least 2: batch norm has nothing to average over one image."
        )


def count_files(cfg: DictConfig) -> int:
    """Number of files that DALI's reader will serve."""
    pattern = "*" if cfg.data.no_labels else "*/*"
    return sum(path.is_file() for path in Path(cfg.data.train_path).glob(pattern))


def read_data(build: Callable[[], Any]) -> Any:
    """Builds a data set; what its files lack is the user's to mend."""
    try:
        return build()
    except (OSError, RuntimeError) as error:  # missing, unreadable or not to be downloaded
        reason = " ".join(str(error).split())
        raise UserError(f"the data cannot be read: {reason[:300].rstrip('.')}.") from error
