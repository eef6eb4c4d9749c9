"""Data loaders of a pretraining run, built from a cfg with the host's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import lightning.pytorch as pl
from omegaconf import DictConfig
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from carp_plugin.data.dali import naming_dali_failures
from carp_plugin.data.epochs import epoch_loader, leave_signals
from carp_plugin.data.images import (
    MAX_BAD_FRACTION,
    NamesBadImages,
    fingerprint,
    named_images,
    verdict_of,
)
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
    prepare_datasets,
)
from carp_plugin.terminal import is_main_process, say


def _views(cfg: DictConfig, build: Callable[[Any], Callable]) -> FullTransformPipeline:
    return FullTransformPipeline(
        [
            NCropAugmentation(build(augmentation), augmentation.num_crops)
            for augmentation in cfg.augmentations
        ]
    )


def pretrain_loader(cfg: DictConfig) -> DataLoader:
    """The training loader of [indexes, views, labels], with the last, smaller batch dropped as the host does.

    Its sampler is an ``EpochOrder``: order and augmentation are functions of seed, epoch and image.

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
    named = train_images(cfg, dataset)
    check_batch(cfg, len(named))
    _check_shapes(cfg, named)
    crop = max(view.crop_size for view in cfg.augmentations)
    warn_of_sizes(named, crop, f"they are enlarged to views of {crop} px")
    return epoch_loader(named, cfg.optimizer.batch_size, cfg.data.num_workers, cfg.seed)


def pretrain_dali(cfg: DictConfig) -> pl.LightningDataModule:
    """The host's DALI data module of the same batches; an image that DALI cannot decode ends the run.

    Raises:
        UserError: DALI is not installed, or fewer images than a batch.
    """
    dali = omegaconf_select(cfg, "dali.device", "gpu")
    transform = _views(
        cfg, lambda a: build_transform_pipeline_dali(cfg.data.dataset, a, dali_device=dali)
    )
    check_batch(cfg, count_files(cfg))
    module = PretrainDALIDataModule(
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
    return naming_dali_failures(module, Path(cfg.data.train_path))


def labelled_loaders(cfg: DictConfig) -> Optional[Tuple[DataLoader, DataLoader]]:
    """Loaders of (images, labels) without augmentation: training images in order, and validation images.

    A training image that cannot be read is replaced by the next one, with its label, up to ``data.max_bad_fraction``
    of them; a validation image never is.

    Returns:
        The two loaders, or None where the configuration has no labelled validation data.

    Raises:
        UserError: data that cannot be read.
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
    crop = omegaconf_select(cfg, "data.eval_transform.crop_size")
    if omegaconf_select(cfg, "data.eval_transform.resize"):
        crop = None  # brought to a size first
    for named in (train_images(cfg, train), NamesBadImages(val)):
        if crop is not None:
            warn_of_sizes(named, crop, f"the central crop of {crop} px pads them with black")
        nothing = Subset(named, [0])  # the host wants a training set, whose loader is not used
        loader = prepare_classification_dataloaders(
            nothing,
            named,
            batch_size=cfg.optimizer.batch_size,
            num_workers=cfg.data.num_workers,
        )[1]
        loader.worker_init_fn = leave_signals
        both.append(loader)
    return both[0], both[1]


def train_images(cfg: DictConfig, dataset: Any) -> NamesBadImages:
    """Images to train on, of which ``data.max_bad_fraction`` may be bad; see :class:`NamesBadImages`."""
    fraction = omegaconf_select(cfg, "data.max_bad_fraction", MAX_BAD_FRACTION)
    return NamesBadImages(dataset, fraction)


def say_bad_images(loader: Any) -> None:
    """Says how many images of a loader could not be read and were replaced, if there were any.

    Args:
        loader: any; those that are not on :class:`NamesBadImages` have nothing to say.
    """
    verdict = verdict_of(loader)
    if verdict and is_main_process():
        say(f"warning: {verdict}", "yellow")


def _check_shapes(cfg: DictConfig, named: NamesBadImages) -> None:
    """Views that are not cropped keep their image's shape, and only equal shapes make a batch."""
    shapes = {width / height: (width, height) for width, height in named.sizes()}
    for i, view in enumerate(cfg.augmentations):
        if len(shapes) > 1 and not view.rrc.enabled:
            first, other, *_ = sorted(shapes.values(), reverse=True)
            raise UserError(
                f"augmentations[{i}].rrc.enabled=False only resizes images, and those of {named.root} have several "
                f"shapes ({first[0]} x {first[1]} and {other[0]} x {other[1]} pixels, …), which make no batch; "
                "set it to True, or crop the images to one shape."
            )


def warn_of_sizes(named: NamesBadImages, crop: int, then: str) -> None:
    """Says if images are smaller than a crop, as far as a sample of them shows.

    Args:
        named: the images.
        crop: its side in pixels.
        then: what happens to them, as the end of a sentence.
    """
    if not is_main_process():
        return
    sizes = named.sizes()
    small = sum(min(size) < crop for size in sizes)
    if small:
        say(
            f"warning: {small} of {len(sizes)} sampled images of {named.root} are smaller than {crop} px: {then}.",
            "yellow",
        )


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
    return len(_files(cfg))


def _files(cfg: DictConfig) -> List[str]:
    pattern = "*" if omegaconf_select(cfg, "data.no_labels", False) else "*/*"
    return sorted(str(path) for path in Path(cfg.data.train_path).glob(pattern) if path.is_file())


def fingerprint_of(cfg: DictConfig, train: Any) -> Optional[str]:
    """Tells the training images from others in the same place; None for data sets that are known by their names.

    Args:
        cfg: parsed configuration.
        train: training loader, or a DALI data module.
    """
    named = named_images(train)
    files = _files(cfg) if cfg.data.format == "dali" else named.files() if named else []
    if not files and cfg.data.train_path and Path(cfg.data.train_path).is_file():
        files = [str(cfg.data.train_path)]
    return fingerprint(files, str(cfg.data.train_path)) if files else None


def read_data(build: Callable[[], Any]) -> Any:
    """Builds a data set; what its files lack is the user's to mend."""
    try:
        return build()
    except ValueError as error:  # of scikit-learn, which splits
        raise UserError(
            f"data.fraction leaves too few images: {' '.join(str(error).split()).rstrip('.')}."
        ) from error
    except (OSError, RuntimeError) as error:  # missing, unreadable or not to be downloaded
        reason = " ".join(str(error).split())
        raise UserError(f"the data cannot be read: {reason[:300].rstrip('.')}.") from error
