"""Data loaders of a pretraining run, and of labelled images as they are, built with the host's parts."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple

import lightning.pytorch as pl
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from carp_plugin.data import idx
from carp_plugin.data.dali import check_decodable, naming_dali_failures
from carp_plugin.data.datasets import labelled_images, part_of, pretraining_images, subsets_of
from carp_plugin.data.epochs import epoch_loader, with_our_workers
from carp_plugin.data.images import (
    NamesBadImages,
    fingerprint,
    named_images,
    verdict_of,
)
from carp_plugin.data.listing import Sample
from carp_plugin.data.patches import with_patches, with_rand_augment
from carp_plugin.data.used import Source, listed, training_listing, validation_listing
from carp_plugin.errors import UserError
from carp_plugin.host import (
    FullTransformPipeline,
    NCropAugmentation,
    PretrainDALIDataModule,
    build_transform_pipeline,
    build_transform_pipeline_dali,
    prepare_classification_dataloaders,
    prepare_classification_transforms,
    serve_files,
)
from carp_plugin.host.cfg import node
from carp_plugin.settings.methods import PatchKwargs
from carp_plugin.settings.parts import DOWNLOADED, Pipeline, Size
from carp_plugin.settings.pretraining import PretrainingDali, PretrainingData
from carp_plugin.terminal import is_main_process, say

#: Data sets whose images have one size in pixels, which the host's transform for them takes for granted.
_SIDES = {"cifar10": 32, "cifar100": 32, "stl10": 96, idx.NAME: idx.SIDE}


class Labelled(Source, Protocol):
    """Where labelled images are: the ``data`` of a pretraining, or of what ``args.json`` says of one."""

    @property
    def num_workers(self) -> int: ...
    @property
    def no_labels(self) -> bool: ...
    @property
    def max_bad_fraction(self) -> float: ...
    @property
    def max_pixels(self) -> int: ...
    @property
    def eval_transform(self) -> Optional[Size]: ...


class Statistics(Protocol):
    """Mean and deviation of the channels; None is ImageNet's."""

    @property
    def mean(self) -> Optional[Sequence[float]]: ...
    @property
    def std(self) -> Optional[Sequence[float]]: ...


def _built(view: Pipeline, build: Callable[[Any], Callable]) -> Callable:
    """The host's pipeline of a view."""
    return build(node(view.model_dump(mode="json", exclude_none=True, exclude={"rand_augment"})))


def _views(pipelines: Sequence[Pipeline], built: Sequence[Callable]) -> FullTransformPipeline:
    return FullTransformPipeline(
        [NCropAugmentation(one, view.num_crops) for view, one in zip(pipelines, built)]
    )


def pretrain_loader(
    data: PretrainingData,
    views: Sequence[Pipeline],
    batch_size: int,
    world: int,
    seed: int,
    show: bool = False,
    patches: Optional[PatchKwargs] = None,
) -> DataLoader:
    """The training loader of [indexes, views, labels], with the last, smaller batch dropped as the host does.

    Its sampler is an ``EpochOrder``: order and augmentation are functions of seed, epoch and image.

    Args:
        data: where the images are.
        views: pipelines that make the views.
        batch_size: images a batch and process.
        world: processes.
        seed: of order and views.
        show: print the transforms.
        patches: sizes of the patches that come behind the views, (9, 3, p, p) of each image; None for none.

    Raises:
        UserError: fewer images than a batch, or data that cannot be read.
    """
    pipelines = [
        _built(view, lambda cfg: build_transform_pipeline(data.dataset, cfg)) for view in views
    ]
    augmented = [with_rand_augment(one, v.rand_augment) for one, v in zip(pipelines, views)]
    transform: Callable = _views(views, augmented)
    if patches is not None:
        transform = with_patches(transform, patches, pipelines[0])
    if show:
        print(f"Transforms:\n{transform}")
    dataset = read_data(lambda: pretraining_images(data, transform))
    named = NamesBadImages(dataset, data.max_bad_fraction, data.max_pixels)
    check_batch(f"data.train_path={data.train_path}", len(named), batch_size, world)
    _check_shapes(views, named)
    crop = max([view.crop_size for view in views] + ([patches.jigsaw_size] if patches else []))
    warn_of_sizes(named, crop, f"they are enlarged to views of {crop} px")
    return epoch_loader(named, batch_size, data.num_workers, seed)


def pretrain_dali(
    data: PretrainingData,
    dali: PretrainingDali,
    views: Sequence[Pipeline],
    crops: Tuple[int, int],
    batch_size: int,
    world: int,
) -> pl.LightningDataModule:
    """The host's DALI data module of the same batches; an image that DALI cannot decode ends the run.

    Args:
        data: where the images are.
        dali: where they are decoded.
        views: pipelines that make the views.
        crops: numbers of large and of small views.
        batch_size: images a batch and process.
        world: processes.

    Raises:
        UserError: DALI is not installed, or fewer images than a batch.
    """
    build = partial(build_transform_pipeline_dali, data.dataset, dali_device=dali.device)
    transform = _views(views, [_built(view, build) for view in views])
    samples = dali_samples(data)
    files = [path for path, _ in samples]
    check_batch(f"data.train_path={data.train_path}", len(files), batch_size, world)
    check_decodable(files)
    module = PretrainDALIDataModule(
        dataset=data.dataset,
        train_data_path=data.train_path,
        transforms=transform,
        num_large_crops=crops[0],
        num_small_crops=crops[1],
        num_workers=max(1, data.num_workers),
        batch_size=batch_size,
        no_labels=data.no_labels,
        data_fraction=data.fraction,
        dali_device=dali.device,
        encode_indexes_into_labels=dali.encode_indexes_into_labels,
    )
    serve_files(module, samples)
    return naming_dali_failures(module, data.train_path, files)


def labelled_loaders(
    data: Labelled, statistics: Statistics, batch_size: int
) -> Optional[Tuple[DataLoader, DataLoader]]:
    """Loaders of (images, labels) without augmentation: training images in order, and validation images.

    A training image that cannot be read is replaced by the next one, with its label, up to ``data.max_bad_fraction``
    of them; a validation image never is.

    Args:
        data: where the images are.
        statistics: that they are normalised by where ``data.eval_transform`` is given.
        batch_size: images at once.

    Returns:
        The two loaders, or None where there are no labelled validation images.

    Raises:
        UserError: data that cannot be read.
    """
    if data.no_labels or data.val_path is None:
        return None
    transform = evaluation_transform(data.dataset, data.eval_transform, statistics)
    train, val = read_data(lambda: labelled_images(data, transform, transform))
    # The host's validation loader neither shuffles nor drops; the training images are to come like that too.
    both = []
    size = data.eval_transform
    crop = size.crop_size if size and not size.resize else None  # else brought to a size first
    pixels = data.max_pixels
    for named in (
        NamesBadImages(train, data.max_bad_fraction, pixels),
        NamesBadImages(val, 0.0, pixels),
    ):
        if crop is not None:
            warn_of_sizes(named, crop, f"the central crop of {crop} px pads them with black")
        nothing = Subset(named, [0])  # the host wants a training set, whose loader is not used
        loader = prepare_classification_dataloaders(
            nothing, named, batch_size=batch_size, num_workers=data.num_workers
        )[1]
        both.append(with_our_workers(loader))
    return both[0], both[1]


def say_bad_images(loader: Any) -> None:
    """Says how many images of a loader could not be read and were replaced, if there were any.

    Args:
        loader: any; those that are not on :class:`NamesBadImages` have nothing to say.
    """
    verdict = verdict_of(loader)
    if verdict and is_main_process():
        say(f"warning: {verdict}", "yellow")


def _check_shapes(views: Sequence[Pipeline], named: NamesBadImages) -> None:
    """Views that are not cropped keep their image's shape, and only equal shapes make a batch."""
    shapes = {width / height: (width, height) for width, height in named.sizes()}
    for i, view in enumerate(views):
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


def evaluation_transform(dataset: str, size: Optional[Size], statistics: Statistics) -> Callable:
    """How images are brought to a size for evaluation.

    Args:
        dataset: of the images.
        size: ``resize`` of the shorter side (null: none) and a central ``crop_size``; None is the host's transform of
            the data set (256 then 224 pixels for folders of images); Fashion-MNIST's are taken as they are.
        statistics: that images are normalised by, where ``size`` is given.
    """
    if size is None and dataset == idx.NAME:
        size = Size(crop_size=idx.SIDE)
    if size is None:
        return prepare_classification_transforms(dataset)[1]
    steps = [transforms.Resize(size.resize)] if size.resize else []
    return transforms.Compose(
        [
            *steps,
            transforms.CenterCrop(size.crop_size),
            transforms.ToTensor(),
            transforms.Normalize(
                statistics.mean or IMAGENET_DEFAULT_MEAN, statistics.std or IMAGENET_DEFAULT_STD
            ),
        ]
    )


def whole_transform(dataset: str, size: Optional[Size], statistics: Statistics) -> Callable:
    """How images of any size are brought to a network's size: as :func:`evaluation_transform`, of the middle square.

    The evaluation of small images only crops them, or takes them as they are: of a large photograph that is a corner.

    Args:
        dataset: that the network was trained on.
        size: as for :func:`evaluation_transform`; without a ``resize`` the shorter side becomes ``crop_size``.
        statistics: the same.
    """
    if size is not None:
        return evaluation_transform(
            dataset, size.model_copy(update={"resize": size.resize or size.crop_size}), statistics
        )
    steps = evaluation_transform(dataset, size, statistics)
    side = _SIDES.get(dataset)
    if side is None:
        return steps
    return transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side), steps])


def check_batch(source: str, images: int, batch_size: int, world: int) -> None:
    """At least one whole batch of two images on every device.

    Args:
        source: the key and value that the images are from.
        images: how many.
        batch_size: images a batch and process.
        world: processes.

    Raises:
        UserError: too few images.
    """
    fits = images // world
    if fits < batch_size:
        raise UserError(
            f"{source} holds {images} image{'s' * (images != 1)}, fewer than one batch "
            f"of {batch_size} on {world} device{'s' * (world != 1)}; "
            + (f"use optimizer.batch_size={fits} or less." if fits > 1 else "add images.")
        )
    if batch_size < 2:
        raise UserError(
            "optimizer.batch_size must be at least 2: batch norm has nothing to average over one image."
        )


def dali_samples(data: Any) -> List[Sample]:
    """The (path, label) that DALI's reader serves: those that ``data.format=image_folder`` would.

    Args:
        data: of a pretraining or a linear evaluation.
    """
    return read_data(lambda: part_of(training_listing(data), data.fraction))


def dali_files(data: Any) -> List[str]:
    """The files that DALI's reader serves, in the order of their paths."""
    return sorted(path for path, _ in dali_samples(data))


def fingerprint_of(
    data: Any, train: Any, of: Callable[[Sequence[str], str], str] = fingerprint
) -> Optional[str]:
    """Tells the training images from others in the same place; None for data sets that are known by their names.

    Args:
        data: where the images are.
        train: training loader, or a DALI data module.
    """
    named = named_images(train)
    files: List[str] = named.files() if named else []
    if data.format == "dali" and listed(data):
        files = dali_files(data)
    if not files and data.train_path and Path(data.train_path).is_file():
        files = [str(data.train_path)]
    root = named.root if data.dataset == idx.NAME and named else str(data.train_path)
    if not files or not files[0].startswith(root):  # `a//b`, which some listings write as `a/b`
        root = str(Path(root))
    return of(files, root.rstrip("/")) if files else None


def drawn_of(data: Source, train: Any, val: Any) -> Dict[str, Any]:
    """:func:`carp_plugin.data.datasets.subsets_of` of loaders.

    Args:
        data: where the images are.
        train: training loader, or a DALI data module.
        val: of the validation images, or None.
    """
    named, validated = named_images(train), named_images(val)
    images = named.dataset if named else training_listing(data) if listed(data) else None
    return subsets_of(images, validated and validated.dataset)


def first_bytes(paths: Sequence[str], root: str) -> str:
    """What tells images of the same names and sizes apart: a hash of the first 64 KiB of some 16 files.

    Args:
        paths: of the files.
        root: their folder, which does not matter.
    """
    digest = hashlib.sha256()
    for path in paths[:: -(-len(paths) // 16)]:
        try:
            stored = idx.pixels(path)
            if stored is not None:
                digest.update(stored.tobytes())
                continue
            with open(path, "rb") as file:
                digest.update(file.read(1 << 16))
        except OSError:  # it is named when it is read as an image
            continue
    return digest.hexdigest()[:16]


def fingerprint_of_validation(data: Any) -> Optional[str]:
    """Tells the files of the validation images from others, wherever they lie; None where there are none to look at."""
    root = data.val_path
    if not root or data.dataset in DOWNLOADED:
        return None
    if data.dataset == idx.NAME or data.holdout or data.val_images:
        listing = validation_listing(data)
        return fingerprint([path for path, _ in listing.samples], listing.root)
    root = str(root).rstrip("/")
    if Path(root).is_file():
        return fingerprint([root], root)
    inside = [os.path.join(home, name) for home, _, names in os.walk(root) for name in names]
    return fingerprint(sorted(inside), root) if inside else None


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
