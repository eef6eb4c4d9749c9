"""Fashion-MNIST: where it is found, and its images, which lie in IDX files and are known by addresses.

An address looks like the path of a file without an ending, ``FOLDER/train#00042``: the image of that number in the
training part of the files in FOLDER. No file of a folder is listed under such a name, since photographs have endings.
Whatever takes a path of an image takes an address too: lists, draws, hold-outs, fingerprints, galleries. 70,000 images
thus need no file of their own, and the processes that read them share one array.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Callable, Optional, Tuple

import numpy as np
import torchvision
from PIL import Image

from carp_plugin.data.listing import Listing
from carp_plugin.errors import UserError, typed

NAME = "fashion_mnist"
#: ``data.train_path``, ``data.val_path``: wherever the set is found.
AUTO = "auto"
SIDE = 28  # pixels
#: Of Debian's package dataset-fashion-mnist.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
#: Where torchvision downloads to, if no other root is named; the files are below it.
DOWNLOADS = Path("datasets")
_BELOW = (".", "fashion-mnist", "FashionMNIST/raw")
_NAMES = {"train": "train", "test": "t10k"}
_ADDRESS = re.compile(r"(.+)[/\\](train|test)#(\d+)")


def idx_folder(root: Optional[str]) -> Optional[Path]:
    """Where the four files lie.

    Args:
        root: the files' folder, or one above it as torchvision has it; ``auto`` and None look below ``datasets`` and
            where Debian's package puts them.
    """
    roots = [DOWNLOADS, DEBIAN] if root in (None, AUTO) else [Path(str(root))]
    for place in (above / below for above in roots for below in _BELOW):
        if _file(place, "train-images-idx3-ubyte").is_file():
            return place
    return None


def fashion_mnist(path: Optional[str], key: str = "data.train_path") -> Path:
    """Where the four files lie.

    Args:
        path: as ``data.train_path`` says.
        key: whose value it is.

    Raises:
        UserError: they are not there; the sentence says both ways to get them.
    """
    found = idx_folder(path)
    if found is not None:
        return found
    if path == AUTO:
        where = f"fashion_mnist is neither in {DOWNLOADS.resolve()} nor in {DEBIAN}"
    else:
        where = f"{key}={path} holds no Fashion-MNIST ({typed(key, AUTO)} looks where it is usually found)"
    raise UserError(
        f"{where}; on Debian and Ubuntu `apt-get install dataset-fashion-mnist` installs it (31 MB), elsewhere "
        "data.prepare=download lets torchvision download it."
    )


def download(root: str) -> None:
    """Lets torchvision download the set, unless it is found already.

    Args:
        root: ``data.train_path``; ``auto`` is ``datasets``.

    Raises:
        UserError: it cannot be downloaded or written.
    """
    if idx_folder(root) is not None:
        return
    place = DOWNLOADS if root == AUTO else Path(root)
    try:
        torchvision.datasets.FashionMNIST(place, download=True)
    except Exception as error:  # of urllib, tarfile, the file system: whatever is in the way
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(
            f"data.prepare=download: torchvision cannot download Fashion-MNIST to {place} ({reason}); on Debian and "
            "Ubuntu `apt-get install dataset-fashion-mnist` installs it."
        ) from error


def idx_listing(folder: Path, part: str) -> Listing:
    """The images of a part as addresses, with labels and the names of the classes.

    Args:
        folder: of the files.
        part: ``"train"`` or ``"test"``.

    Raises:
        UserError: the files cannot be read, or are not of this form.
    """
    root = str(folder)
    images, labels = _part(root, part)
    classes = tuple(torchvision.datasets.FashionMNIST.classes)
    if len(images) != len(labels) or labels.max(initial=0) >= len(classes):
        raise UserError(
            f"fashion_mnist: {len(images)} images of {folder} have {len(labels)} labels that do not fit; get it again."
        )
    samples = [
        (os.path.join(root, f"{part}#{i:05d}"), label) for i, label in enumerate(labels.tolist())
    ]
    return Listing(root, classes, samples, {})


def pixels(address: str) -> Optional[np.ndarray]:
    """(28, 28) uint8 of an address; None for any other path.

    Raises:
        UserError: the files cannot be read, or have no image of this number.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return None
    images, number = _part(found[1], found[2])[0], int(found[3])
    if number >= len(images):
        raise UserError(f"fashion_mnist: {address} is not there; there are {len(images)} images.")
    return images[number]


def image_at(address: str) -> Optional[Image.Image]:
    """The image of an address as 8-bit RGB, grey copied to all channels; None for any other path."""
    found = pixels(address)
    return None if found is None else Image.fromarray(found).convert("RGB")


def checksum(address: str) -> Optional[int]:
    """Of the pixels of an address; None for any other path."""
    found = pixels(address)
    return None if found is None else zlib.crc32(found.tobytes())


def _file(folder: Path, name: str) -> Path:
    """As it was unpacked, or packed."""
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


@lru_cache(maxsize=4)
def _part(folder: str, part: str) -> Tuple[np.ndarray, np.ndarray]:
    """(N, 28, 28) images and (N,) labels of a part."""
    name, home = _NAMES[part], Path(folder)
    return (
        _idx(_file(home, f"{name}-images-idx3-ubyte"), 3),
        _idx(_file(home, f"{name}-labels-idx1-ubyte"), 1),
    )


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """Of unsigned bytes."""
    opener: Callable = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"fashion_mnist: {path} cannot be read ({error}); get it again.") from error
    head = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:head], ">u4").astype(int)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) - head != shape.prod():
        raise UserError(f"fashion_mnist: {path} is no IDX file of {dimensions} dimensions.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
