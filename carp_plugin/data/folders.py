"""The folders that images lie in: there, in the layout that the data set needs, and how many classes they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

from carp_plugin.data import idx
from carp_plugin.data.listing import is_hidden, list_images, readable_endings, shown
from carp_plugin.data.photos import DEFAULT_ROOT, MANIFEST, prepare_photos
from carp_plugin.data.used import Source, training_listing, validation_listing
from carp_plugin.errors import UserError
from carp_plugin.settings.parts import CLASSES, DOWNLOADED

#: Names of folders that say which part of a data set lies in them, and not which data set.
_PARTS = ("train", "training", "images", "data")


def prepare_data_folder(prepare: Optional[str], train_path: str) -> None:
    """Writes the embedded photographs where ``data.prepare: photos`` asks for them, and downloads what it asks for.

    Their place is ``datasets/photos``, or wherever they stand already. Any other folder is the user's own: a recipe of
    the photographs serves it with ``data.train_path`` and ``data.val_path``, and a slip in a path is no photographs.

    Raises:
        UserError: a folder that cannot be written, or a data set that cannot be downloaded.
    """
    if prepare == "download":
        idx.download(train_path)
    if prepare != "photos":
        return
    root = Path(train_path).parent
    if root.resolve() == Path(DEFAULT_ROOT).resolve() or (root / MANIFEST).is_file():
        prepare_photos(root)  # several processes may do so at once


def check_data(data: Source) -> None:
    """The images of a data set are there in the layout that it needs, and so are those that are drawn.

    Args:
        data: where they are; with ``no_labels`` the training folder is any tree of images, and its folders no classes.

    Raises:
        UserError: the first thing that is missing.
    """
    if data.dataset in DOWNLOADED:
        return
    if data.format == "h5":
        exists("data.train_path", data.train_path, Path.is_file, "an HDF5 file")
        return
    if data.dataset != idx.NAME:
        _check_folders(data)
    training_listing(data)
    if data.val_path is not None and not getattr(data, "no_labels", False):
        validation_listing(data)


def _check_folders(data: Source) -> None:
    train = exists("data.train_path", data.train_path, Path.is_dir, "a folder")
    if getattr(data, "no_labels", False):
        listing = list_images(train, labelled=False)
        if not listing.samples:
            raise UserError(f"data.train_path={train} holds no image{_instead(train)}.")
        return
    _check_classes("data.train_path", train, each=True)
    if data.val_path is not None and data.holdout is None:
        val = exists("data.val_path", data.val_path, Path.is_dir, "a folder")
        _check_classes("data.val_path", val, each=False)


def _check_classes(key: str, root: Path, each: bool) -> None:
    """A labelled folder holds folders of images, one a class.

    Args:
        key: of the configuration.
        root: the folder.
        each: whether every class needs an image, for to validate a few will do.
    """
    listing = list_images(root, labelled=True)
    if not listing.classes:
        raise UserError(
            f"{key}={root} holds no class folder; expected one folder a class with images in it, "
            "or set data.no_labels=True for unlabelled images."
        )
    empty = listing.empty()
    if empty and (each or not listing.samples):
        raise UserError(
            f"{key}={root} holds no image of the class {shown(empty[0])}{_instead(root / empty[0])}; put images into "
            f"its folder ({', '.join(sorted(readable_endings()))}), or delete it."
        )


def count_classes(dataset: str, train_path: Optional[str], no_labels: bool = False) -> int:
    """Classes of a data set: those it is known for, or its class folders; at least 1, as the host counts.

    Args:
        dataset: of the host, or "custom".
        train_path: of the training images.
        no_labels: whether folders are no classes.
    """
    if dataset in CLASSES:
        return CLASSES[dataset]
    root = Path(str(train_path))
    if no_labels or not root.is_dir():
        return 1
    return max(1, len(list_images(root, labelled=True).classes))


def data_name(dataset: str, train_path: Optional[str]) -> str:
    """What people call a data set: the host's name for it, or the folder that the training images lie in.

    Args:
        dataset: of the host, or "custom".
        train_path: of the training images.
    """
    if dataset != "custom" or not train_path:
        return dataset
    path = Path(train_path).resolve()
    named = [part for part in reversed(path.parts) if part.lower() not in _PARTS]
    return Path(named[0]).stem if named and named[0] != path.anchor else dataset


def _instead(folder: Path) -> str:
    """A file that is there in place of images, for the middle of a sentence."""
    names = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))
    return f" but {shown(names[0])}" if names else ""


def exists(key: str, value: Any, test: Callable[[Path], bool], what: str) -> Path:
    """A path that passes a test.

    Args:
        key: of the configuration.
        value: of the key.
        test: ``Path.is_dir`` or ``Path.is_file``.
        what: the test in words.

    Raises:
        UserError: it does not.
    """
    path = Path(str(value))
    try:
        found = test(path)
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise UserError(
            f"{key}={str(value)[:80]} cannot be looked at ({error.strerror}); give {what} that exists."
        ) from None
    if not found:
        here = "" if path.is_absolute() else f" (from {Path.cwd()})"
        state = "is not " + what if path.exists() else "does not exist"
        raise UserError(f"{key}={value} {state}{here}; give {what} that exists as {key}=PATH.")
    return path
