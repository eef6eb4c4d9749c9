"""Labelled images of a linear evaluation: augmented ones to train on, and validation images as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader
from torchvision import transforms

from carp_plugin.data.dali import naming_dali_failures
from carp_plugin.data.epochs import epoch_loader, leave_signals
from carp_plugin.data.images import NamesBadImages
from carp_plugin.data.loaders import (
    check_batch,
    evaluation_transform,
    read_data,
    train_images,
    warn_of_sizes,
)
from carp_plugin.host import (
    ClassificationDALIDataModule,
    omegaconf_select,
    prepare_classification_dataloaders,
    prepare_classification_datasets,
    prepare_classification_transforms,
)


class LabelledData(NamedTuple):
    """Labelled images of a linear evaluation.

    Attributes:
        train: loader of (images, labels), or the DALI data module.
        val: loader in the order of the data set.
        images: number of training images.
        val_images: number of validation images.
    """

    train: Any
    val: DataLoader
    images: int
    val_images: int


def labelled_data(cfg: DictConfig, pretraining: DictConfig) -> LabelledData:
    """Training images with random crops and flips, and validation images with a central crop.

    A training image that cannot be read is replaced by the next one, with its label, up to ``data.max_bad_fraction``
    of them; a validation image never is.

    Args:
        cfg: parsed configuration.
        pretraining: configuration of the checkpoint's run; where it has channel statistics of its own, and the
            transforms are ours, images are normalised by them here too.

    Raises:
        UserError: the data cannot be read, or there are fewer images than a batch.
    """
    views = omegaconf_select(pretraining, "augmentations") or [{}]
    statistics = OmegaConf.create({"data": cfg.data, "augmentations": [views[0]]})
    evaluation = evaluation_transform(statistics)
    data_format = "image_folder" if cfg.data.format == "dali" else cfg.data.format
    train_set, val_set = read_data(
        lambda: prepare_classification_datasets(
            cfg.data.dataset,
            training_transform(cfg, evaluation),
            evaluation,
            train_data_path=cfg.data.train_path,
            val_data_path=cfg.data.val_path,
            data_format=data_format,
            data_fraction=cfg.data.fraction,
        )
    )
    check_batch(cfg, len(train_set))
    size, workers = cfg.optimizer.batch_size, cfg.data.num_workers
    named, named_train = NamesBadImages(val_set), train_images(cfg, train_set)
    _warn_of_sizes(cfg, named_train, named)
    # The host's validation loader neither shuffles nor drops.
    val = prepare_classification_dataloaders(named, named, batch_size=size, num_workers=workers)[1]
    val.worker_init_fn = leave_signals
    if cfg.data.format == "dali":
        return LabelledData(_dali(cfg, val), val, len(train_set), len(val_set))
    train = epoch_loader(named_train, size, workers, cfg.seed)
    return LabelledData(train, val, len(train_set), len(val_set))


def _warn_of_sizes(cfg: DictConfig, train: NamesBadImages, val: NamesBadImages) -> None:
    """Says if images are smaller than the crops that the configuration names."""
    crop = omegaconf_select(cfg, "data.train_transform.crop_size")
    if crop is not None:
        warn_of_sizes(train, crop, f"they are enlarged to crops of {crop} px")
    crop = omegaconf_select(cfg, "data.eval_transform.crop_size")
    if crop is not None and not omegaconf_select(cfg, "data.eval_transform.resize"):
        warn_of_sizes(val, crop, f"the central crop of {crop} px pads them with black")


def training_transform(cfg: DictConfig, evaluation: Any) -> Any:
    """Random resized crop and horizontal flip (C.1).

    The host's transform of the data set (crops of 224 pixels for folders of images), or, where
    ``data.train_transform`` says so, crops of ``crop_size`` pixels that cover ``scale`` (left out: 0.08 to 1) of the
    image.

    Args:
        cfg: parsed configuration.
        evaluation: the transform of validation images, which ends with the normalisation.
    """
    own = omegaconf_select(cfg, "data.train_transform")
    if own is None:
        return prepare_classification_transforms(cfg.data.dataset)[0]
    scale = tuple(own.get("scale") or (0.08, 1.0))
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(own.crop_size, scale=scale),
            transforms.RandomHorizontalFlip(),
            *evaluation.transforms[-2:],  # to a tensor, and normalised
        ]
    )


def _dali(cfg: DictConfig, val: DataLoader) -> Any:
    """The host's DALI data module for training; torch's loader for validation, which keeps the order."""
    module = ClassificationDALIDataModule(
        dataset=cfg.data.dataset,
        train_data_path=cfg.data.train_path,
        val_data_path=cfg.data.val_path,
        num_workers=max(1, cfg.data.num_workers),
        batch_size=cfg.optimizer.batch_size,
        data_fraction=cfg.data.fraction,
        dali_device=omegaconf_select(cfg, "dali.device", "gpu"),
    )
    module.val_dataloader = lambda: val
    return naming_dali_failures(module, Path(cfg.data.train_path))
