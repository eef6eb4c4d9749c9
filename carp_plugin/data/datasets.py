"""Data sets of images that are listed, in the form that the host's have: files in folders, or Fashion-MNIST.

The host's own data sets list a folder by rules of their own, other ones for class folders than for flat ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple

from torch.utils.data import Dataset

from carp_plugin.data import idx
from carp_plugin.data.holdout import hold_out
from carp_plugin.data.images import read_image
from carp_plugin.data.listing import Listing, Sample, labels_as_in, list_images
from carp_plugin.data.subsets import Subset, drawn, subset
from carp_plugin.errors import UserError
from carp_plugin.host import prepare_classification_datasets, prepare_datasets
from carp_plugin.settings.parts import DOWNLOADED, Holdout


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
    @property
    def train_images(self) -> Optional[int]: ...
    @property
    def val_images(self) -> Optional[int]: ...
    @property
    def subset_seed(self) -> int: ...
    @property
    def holdout(self) -> Optional[Holdout]: ...


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


def listed(data: Source) -> bool:
    """Whether the images of a data set have a listing: files in folders, or Fashion-MNIST."""
    return data.dataset not in DOWNLOADED and data.format != "h5"


def all_training(data: Source, labelled: bool = True) -> Listing:
    """Every training image of a data set that is listed, used or not.

    Args:
        data: where it is.
        labelled: whether its folders are classes.

    Raises:
        UserError: it is not there.
    """
    if data.dataset == idx.NAME:
        found = idx.idx_listing(idx.fashion_mnist(data.train_path), "train")
        return (
            found
            if labelled
            else replace(found, classes=(), samples=[(p, -1) for p, _ in found.samples])
        )
    return list_images(str(data.train_path), labelled)


def all_validation(data: Source) -> Listing:
    """Every validation image of a data set that is listed, used or not, with the labels of its own folders."""
    if data.dataset == idx.NAME:
        return idx.idx_listing(idx.fashion_mnist(data.val_path, "data.val_path"), "test")
    return list_images(str(data.val_path), labelled=True)


def training_listing(data: Source, labelled: Optional[bool] = None) -> Listing:
    """The training images that are used, of a data set that is listed.

    Args:
        data: where it is, and which of its images are asked for.
        labelled: whether its folders are classes; None: unless ``no_labels`` says that they are none.
    """
    if labelled is None:
        labelled = not getattr(data, "no_labels", False)
    listing = all_training(data, labelled)
    return _some(listing, training_subset(listing.samples, listing.root, data))


def validation_listing(data: Source) -> Listing:
    """The labelled validation images that are used, of a data set that is listed, with the training images' labels.

    Raises:
        UserError: a class that is none of the training images.
    """
    known = all_training(data)
    if data.holdout is not None:
        return _some(known, validation_subset(known.samples, known.root, data))
    listing = _validation(data, known.classes)
    return _some(listing, validation_subset(listing.samples, listing.root, data))


def _some(listing: Listing, some: Optional[Subset]) -> Listing:
    if some is None:
        return listing
    samples = [listing.samples[index] for index in some.indices]
    return replace(listing, samples=samples, subset=some)


def training_subset(samples: Sequence[Sample], root: str, data: Source) -> Optional[Subset]:
    """Which of all training images are trained on: those drawn, less those held out; None is all of them."""
    return _drawn(samples, root, data, held=False)


def validation_subset(samples: Sequence[Sample], root: str, data: Source) -> Optional[Subset]:
    """Which images are validated on; None is all of them.

    Args:
        samples: all validation images, or all training images where some of them are held out.
        root: their folder.
        data: which are asked for.
    """
    if data.holdout is not None:
        return _drawn(samples, root, data, held=True)
    if data.val_images is None:
        return None
    indices = drawn(samples, root, data.val_images, data.subset_seed, "data.val_images")
    return subset(_said(data.val_images, data), indices, samples, root)


def _drawn(samples: Sequence[Sample], root: str, data: Source, held: bool) -> Optional[Subset]:
    """A part of the training images."""
    indices, said = list(range(len(samples))), []
    if data.train_images is not None:
        indices = drawn(samples, root, data.train_images, data.subset_seed, "data.train_images")
        said.append(_said(data.train_images, data))
    if data.holdout is not None:
        mine = [samples[index] for index in indices]
        indices = [indices[place] for place in hold_out(mine, root, data.holdout)[held]]
        part = f"{100 * data.holdout.fraction:g} % of every class (seed {data.holdout.seed})"
        said.append(f"{part} held out" if held else f"without {part}")
    if held and data.val_images is not None:
        mine = [samples[index] for index in indices]
        some = drawn(mine, root, data.val_images, data.subset_seed, "data.val_images")
        indices = [indices[place] for place in some]
        said.append(_said(data.val_images, data))
    return subset(", ".join(said), indices, samples, root) if said else None


def _said(images: int, data: Source) -> str:
    return f"{images:,} drawn by seed {data.subset_seed}"


def _validation(data: Source, known: Sequence[str]) -> Listing:
    train, val, listing = data.train_path, data.val_path, all_validation(data)
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


def place(data: Source) -> str:
    """Where the images are, for people; of some of them which."""
    where = str(data.train_path)
    if data.dataset == idx.NAME:
        where = f"fashion_mnist in {idx.fashion_mnist(data.train_path)}"
    return where


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
