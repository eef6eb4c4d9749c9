"""Data sets of image files, as :mod:`carp_plugin.data.listing` finds them, in the form that the host's have.

The host's own data sets list a folder by rules of their own, other ones for class folders than for flat ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional, Protocol, Tuple

from torch.utils.data import Dataset

from carp_plugin.data.images import read_image
from carp_plugin.data.listing import Listing, Sample, labels_as_in, list_images
from carp_plugin.errors import UserError
from carp_plugin.host import prepare_classification_datasets, prepare_datasets
from carp_plugin.settings.parts import DOWNLOADED


class Source(Protocol):
    """Where images are: the ``data`` of any run."""

    @property
    def dataset(self) -> str: ...
    @property
    def train_path(self) -> Optional[str]: ...
    @property
    def val_path(self) -> Optional[str]: ...
    @property
    def format(self) -> str: ...


class ImageFiles(Dataset):
    """Images of a folder; attributes as torchvision's ImageFolder.

    Args:
        listing: of the folder.
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
        self.samples = part_of(listing, fraction)
        self.loader: Callable[[str], Any] = read_image

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        path, label = self.samples[index]
        image = self.transform(self.loader(path))
        return (index, image, label) if self.indexed else (image, label)


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


def in_folders(data: Source) -> bool:
    """Whether the images of a data set are files in folders."""
    return data.dataset not in DOWNLOADED and data.format != "h5"


def training_listing(data: Source) -> Listing:
    """The training images of a data set in folders; without labels where ``no_labels`` says so."""
    return list_images(str(data.train_path), not getattr(data, "no_labels", False))


def validation_listing(data: Source) -> Listing:
    """The labelled validation images of a data set in folders, with the labels of the training folders' names.

    Raises:
        UserError: a class that is none of the training images.
    """
    train, val = Path(str(data.train_path)), Path(str(data.val_path))
    known = list_images(train, labelled=True).classes
    listing = list_images(val, labelled=True)
    unknown = sorted(set(listing.classes) - set(known))
    if unknown:
        missing = sorted(set(known) - set(listing.classes))
        differ = ", ".join([*unknown, *missing][:5]) + (", …" if len(unknown + missing) > 5 else "")
        raise UserError(
            f"the class folders of data.train_path={train} and data.val_path={val} differ ({differ}): {unknown[0]} is "
            "no class of the training images; both must hold one folder a class, of the same names."
        )
    return labels_as_in(listing, known)


def pretraining_images(data: Any, transform: Callable) -> Any:
    """The images of a pretraining: items are (index, views, label).

    Args:
        data: of the pretraining.
        transform: image to list of views.
    """
    if in_folders(data):
        return ImageFiles(training_listing(data), transform, True, data.fraction)
    return prepare_datasets(
        data.dataset,
        transform,
        train_data_path=data.train_path,
        data_format=data.format,
        no_labels=data.no_labels,
        data_fraction=data.fraction,
    )


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
    if in_folders(data):
        listing = list_images(str(data.train_path), labelled=True)
        images = ImageFiles(listing, train, fraction=fraction)
        return images, ImageFiles(validation_listing(data), val)
    return prepare_classification_datasets(
        data.dataset,
        train,
        val,
        train_data_path=data.train_path,
        val_data_path=data.val_path,
        data_format="image_folder" if data.format == "dali" else data.format,
        data_fraction=fraction,
    )
