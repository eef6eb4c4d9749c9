"""The folders that images lie in: there, in the layout that the data set needs, and how many classes they make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, List, Optional

from torchvision.datasets.folder import IMG_EXTENSIONS

from carp_plugin.data.images import is_class_image_name, is_image_name
from carp_plugin.data.photos import DEFAULT_ROOT, MANIFEST, prepare_photos
from carp_plugin.errors import UserError
from carp_plugin.settings.parts import CLASSES, DOWNLOADED

#: Folders that archivers and synchronisers leave beside the user's own; all others of their kind are hidden.
_NO_CLASSES = ("__MACOSX", "@eaDir")


def prepare_data_folder(prepare: Optional[str], train_path: str) -> None:
    """Writes the embedded photographs where ``data.prepare: photos`` asks for them.

    Their place is ``datasets/photos``, or wherever they stand already. Any other folder is the user's own: a recipe of
    the photographs serves it with ``data.train_path`` and ``data.val_path``, and a slip in a path is no photographs.

    Raises:
        UserError: a folder that cannot be written.
    """
    if prepare is None:
        return
    root = Path(train_path).parent
    if root.resolve() == Path(DEFAULT_ROOT).resolve() or (root / MANIFEST).is_file():
        prepare_photos(root)  # several processes may do so at once


def check_data(
    dataset: str,
    train_path: Optional[str],
    val_path: Optional[str],
    data_format: str,
    no_labels: bool,
) -> None:
    """The folders of a data set are there in the layout that it needs.

    Args:
        dataset: of the host, or "custom".
        train_path: of the training images.
        val_path: of the validation images, or None.
        data_format: "image_folder", "dali" or "h5".
        no_labels: whether the training folder is a flat one.

    Raises:
        UserError: the first thing that is missing.
    """
    if dataset in DOWNLOADED:
        return
    if data_format == "h5":
        exists("data.train_path", train_path, Path.is_file, "an HDF5 file")
        return
    train = exists("data.train_path", train_path, Path.is_dir, "a folder")
    _check_image_folder("data.train_path", train, no_labels)
    if val_path is not None and not no_labels:
        val = exists("data.val_path", val_path, Path.is_dir, "a folder")
        _check_image_folder("data.val_path", val, flat=False)
        missing = set(_folders(val)) ^ set(_folders(train))
        if missing:
            raise UserError(
                f"the class folders of data.train_path={train} and data.val_path={val} differ "
                f"({', '.join(sorted(missing)[:5])}{', …' if len(missing) > 5 else ''}); "
                "both must hold one folder a class, of the same names."
            )


def count_classes(dataset: str, train_path: Optional[str]) -> int:
    """Classes of a data set: those it is known for, or its class folders; at least 1, as the host counts."""
    if dataset in CLASSES:
        return CLASSES[dataset]
    root = Path(str(train_path))
    return max(1, len(_folders(root))) if root.is_dir() else 1


def _folders(root: Path) -> List[str]:
    try:
        return sorted(path.name for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(
            f"the folder {root} cannot be listed ({error.strerror}); check its permissions."
        ) from None


def _check_image_folder(key: str, root: Path, flat: bool) -> None:
    """A labelled folder holds folders of images, one a class; a flat one images.

    Both hosts and torchvision take every folder for a class, and the number of classes from their number.
    """
    classes = _folders(root)
    hidden = [name for name in classes if name.startswith(".") or name in _NO_CLASSES]
    if hidden:
        raise UserError(
            f"{key}={root} holds the folder {hidden[0]}, which other programs write and which would count as a class; "
            "delete it, or move it elsewhere."
        )
    if flat and classes:
        raise UserError(
            f"{key}={root} holds folders ({classes[0]}, …), but data.no_labels=True expects images directly in it; "
            "set data.no_labels=False for one folder a class."
        )
    if flat and not any(is_image_name(path.name) for path in root.iterdir()):
        raise UserError(f"{key}={root} holds no image{_instead(root)}.")
    if not flat and not classes:
        raise UserError(
            f"{key}={root} holds no class folder; expected one folder a class with images in it, "
            "or set data.no_labels=True for a flat folder of unlabelled images."
        )
    for name in [] if flat else classes:
        _folders(root / name)  # os.walk passes over in silence what may not be listed
        files = (file for _, _, files in os.walk(root / name, followlinks=True) for file in files)
        if not any(map(is_class_image_name, files)):
            raise UserError(
                f"{key}={root} holds no image of the class {name}{_instead(root / name)}; put images into its folder "
                f"({', '.join(IMG_EXTENSIONS)}), or delete it."
            )


def _instead(folder: Path) -> str:
    """A file that is there in place of images, for the middle of a sentence."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f" but {names[0]}" if names else ""


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


def count_images(root: str) -> int:
    """Files in the class folders of an ImageFolder."""
    return sum(path.is_file() for path in Path(root).glob("*/*"))
