"""Data sets of images that are listed, in the form that the host's have: files in folders, or Fashion-MNIST.

The host's own data sets list a folder by rules of their own, other ones for class folders than for flat ones.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple

from torch.utils.data import Dataset

from carp_plugin.data.images import read_image
from carp_plugin.data.listing import Listing, Sample
from carp_plugin.data.subsets import Subset
from carp_plugin.data.used import (
    Source,
    listed,
    training_listing,
    training_subset,
    validation_listing,
    validation_subset,
)
from carp_plugin.host import prepare_classification_datasets, prepare_datasets


class ImageFiles(Dataset):
    """Images of a listing; attributes as torchvision's ImageFolder.

    Args:
        listing: of a folder, or of Fashion-MNIST.
        transform: of an image.
        indexed: items are (index, views, label), as in pretraining, and (image, label) otherwise.
        fraction: stratified part of the images, the same one every time; -1 is all.

    Raises:
        ValueError: a part that leaves a class without images.
    """

    def __init__(
        self, listing: Listing, transform: Callable, indexed: bool = False, fraction: float = -1
    ) -> None:
        self.root, self.transform, self.indexed = listing.root, transform, indexed
        self.classes = list(listing.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.samples, self.subset = part_of(listing, fraction), listing.subset
        self.loader: Callable[[str], Any] = read_image

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        path, label = self.samples[index]
        image = self.transform(self.loader(path))
        return (index, image, label) if self.indexed else (image, label)


class Chosen(Dataset):
    """Some images of a data set of the host's; an item that begins with an index has one among them.

    Args:
        images: the data set.
        subset: which.
    """

    def __init__(self, images: Any, subset: Subset) -> None:
        self.images, self.subset = images, subset
        labels = labels_of(images)
        self.targets = [labels[index] for index in subset.indices]

    def __len__(self) -> int:
        return len(self.subset.indices)

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        item = self.images[self.subset.indices[index]]
        return (index, *item[1:]) if len(item) == 3 else item


def labels_of(images: Any) -> List[int]:
    """The labels of a data set of torchvision's."""
    labels = getattr(images, "targets", None)
    return [int(label) for label in (images.labels if labels is None else labels)]


def part_of(listing: Listing, fraction: float) -> List[Sample]:
    """A part of the images, as the host chooses it: stratified by class, always the same one.

    Raises:
        ValueError: of scikit-learn; a class has too few images.
    """
    if fraction <= 0:
        return listing.samples
    from sklearn.model_selection import train_test_split

    labels = [label for _, label in listing.samples] if listing.classes else None
    part, _ = train_test_split(
        listing.samples, train_size=fraction, stratify=labels, random_state=42
    )
    return part if listing.classes else sorted(part)


def pretraining_images(data: Any, transform: Callable) -> Any:
    """The images of a pretraining: items are (index, views, label).

    Args:
        data: of the pretraining.
        transform: image to list of views.
    """
    if listed(data):
        return ImageFiles(training_listing(data), transform, True, data.fraction)
    images = prepare_datasets(
        data.dataset,
        transform,
        train_data_path=data.train_path,
        data_format=data.format,
        no_labels=data.no_labels,
        data_fraction=data.fraction,
    )
    return _of_hosts(images, data, training_subset)


def labelled_images(
    data: Source, train: Callable, val: Callable, fraction: float = -1
) -> Tuple[Any, Any]:
    """Labelled training and validation images: items are (image, label).

    Args:
        data: where they are.
        train: transform of the training images.
        val: transform of the validation images.
        fraction: stratified part of the training images, -1 for all.
    """
    if listed(data):
        images = ImageFiles(training_listing(data, labelled=True), train, fraction=fraction)
        return images, ImageFiles(validation_listing(data), val)

    def of_host(first: Callable, second: Callable) -> Tuple[Any, Any]:
        return prepare_classification_datasets(
            data.dataset,
            first,
            second,
            train_data_path=data.train_path,
            val_data_path=data.val_path,
            data_format="image_folder" if data.format == "dali" else data.format,
            data_fraction=fraction,
        )

    fitted, validated = of_host(train, val)
    if data.holdout is not None:
        validated = of_host(val, val)[0]
    return (
        _of_hosts(fitted, data, training_subset),
        _of_hosts(validated, data, validation_subset),
    )


def _of_hosts(images: Any, data: Source, which: Callable[..., Optional[Subset]]) -> Any:
    """The images that are asked for, of a data set of the host's that has no listing."""
    if data.train_images is None and data.val_images is None and data.holdout is None:
        return images
    samples = [(f"{index:06d}", label) for index, label in enumerate(labels_of(images))]
    some = which(samples, "", data)
    return images if some is None else Chosen(images, some)


def counts(data: Source) -> Tuple[int, int]:
    """Labelled training and validation images of a data set."""
    if listed(data):
        return len(training_listing(data, labelled=True).samples), len(
            validation_listing(data).samples
        )
    train, val = labelled_images(data, _untouched, _untouched)
    return len(train), len(val)


def subsets_of(train: Any, val: Any) -> Dict[str, Any]:
    """Which images are trained on and validated on, where some of them were asked for; as json takes it.

    Args:
        train: data set, as :func:`pretraining_images` or :func:`labelled_images` give it; None is none.
        val: likewise.
    """
    found = (("train", getattr(train, "subset", None)), ("val", getattr(val, "subset", None)))
    return {part: some.as_dict() for part, some in found if some is not None}


def _untouched(image: Any) -> Any:
    return image
