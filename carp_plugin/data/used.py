"""Which images a data set has, and which of them a run uses: drawn, held out or all, of training and validation.

Listed are files in folders and Fashion-MNIST; the host's own sets draw by the same functions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Protocol, Sequence, Tuple

from carp_plugin.data import idx
from carp_plugin.data.holdout import hold_out
from carp_plugin.data.listing import Listing, Sample, labels_as_in, list_images
from carp_plugin.data.subsets import Subset, drawn, subset
from carp_plugin.errors import UserError
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


def roots_of(data: Source) -> Tuple[str, str]:
    """Where training and validation images lie."""
    if data.dataset != idx.NAME:
        return str(data.train_path), str(data.train_path if data.holdout else data.val_path)
    train = idx.fashion_mnist(data.train_path)
    held_out = data.holdout is not None or data.val_path is None
    return str(train), str(train if held_out else idx.fashion_mnist(data.val_path, "data.val_path"))


def place(data: Source) -> str:
    """Where the training images are, for people."""
    return (
        f"{idx.NAME} in {roots_of(data)[0]}" if data.dataset == idx.NAME else str(data.train_path)
    )
