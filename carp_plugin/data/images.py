"""Reading images from files: every kind becomes 8-bit RGB, and a file that cannot be read is named, never guessed at.

Training goes on without a few bad files (``data.max_bad_fraction``); evaluation on validation images never does.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image, ImageFile
from torch.utils.data import Dataset

from carp_plugin.data.idx import checksum, image_at, pixels
from carp_plugin.data.listing import is_image_name
from carp_plugin.errors import UserError

#: One file in a hundred: a few torn downloads are survivable, more is a broken data set. Fewer than a hundred files
#: thus survive none: there one image more or less matters.
MAX_BAD_FRACTION = 0.01

_NAMED = 5  # files in a sentence
_SAMPLED = 64  # files whose headers tell the sizes of a data set
_SIZED = 1000  # files whose sizes tell one data set from another of the same names

# Pillow advises to convert such images to RGBA; the transparency is dropped knowingly (see to_rgb).
warnings.filterwarnings("ignore", message="Palette images with Transparency")


#: Pillow's own limit against files of a few bytes that fill the memory; `data.max_pixels` is another one.
MAX_PIXELS = 178_956_970
# The limit is looked at here, image by image; Pillow would warn of half of it in every worker and epoch.
Image.MAX_IMAGE_PIXELS = None

#: What a file system, or a process with too many files open, says of a file that is sound: worth another try.
_TRANSIENT = {
    getattr(errno, name)
    for name in "ESTALE EIO EMFILE ENFILE EAGAIN EINTR ETIMEDOUT ECONNRESET EHOSTDOWN ENOMEM EREMOTEIO".split()
    if hasattr(errno, name)
}
_PAUSES = (0.1, 0.5, 2.0)  # seconds between tries


class FileSystemError(UserError):
    """A file that could not be read for a reason that lies not in it."""


class ImageError(UserError):
    """An image that cannot be read, or more of them than ``data.max_bad_fraction`` allows."""


class _Unreadable(Exception):
    """Why a file is no image; becomes an ImageError, or a replacement, in :class:`NamesBadImages`."""


def read_image(path: Union[str, Path]) -> Image.Image:
    """The image in a file as 8-bit RGB; see :func:`to_rgb`.

    Of several frames it is the first. The orientation that EXIF notes is left alone, as the hosts leave it. Damage
    that leaves a well-formed file, such as altered pixels of a bitmap, cannot be told from an image.

    Args:
        path: of the file; its content says what format it has, not its name.

    Returns:
        Image.Image: of mode RGB.

    Raises:
        ImageError: the file is no image, damaged, cut off, or of values that do not fit 8 bits.
    """
    try:
        return _read(path)
    except _Unreadable as why:
        raise ImageError(f"the image {path} cannot be read ({why}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any kind as 8-bit RGB.

    Eight bits a channel (greyscale, palette, CMYK, alpha, one bit) are Pillow's ``convert("RGB")``, as in both hosts,
    so that numbers can be compared: transparency is dropped, not laid over a background. ``convert`` would cut off
    at 255 what has more bits, and an image of 16 bits would be white: their high byte is taken instead, as Pillow
    does for 16-bit colour. Floats are pixels from 0 to 1, or from 0 to 255.

    Raises:
        ValueError: 32-bit integers above 255, or floats outside these ranges: how bright is white cannot be told.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 255:  # nan too
            raise ValueError(
                f"its values go from {low:g} to {high:g}, and which is white cannot be told; save it with 8 or 16 bits"
            )
        scale = 255 if image.mode == "F" and high <= 1 else 1
        return Image.fromarray((values * scale).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


class NamesBadImages(Dataset):
    """A data set that names the files that cannot be read, and does without a few of them.

    In the place of a bad image comes the next one that can be read, with its own index and label: a function of the
    index, so that workers, ranks and a resumed run agree, and every epoch keeps its length. Each bad file is named
    once on standard error; :meth:`bad_images` lists them, whichever worker met them.

    For images to train on, and for the bank of a k-NN, where one image in a hundred that counts twice changes little.
    For validation images ``max_bad_fraction`` is to be 0: a replaced one would falsify the accuracy.

    Args:
        dataset: of ours or of the host. The files of folders (``samples``) and of the host's flat folder (``images``,
            ``root``) are read by :func:`read_image` from here on; what is no image by its name is left out of the
            latter, as :mod:`carp_plugin.data.listing` does.
        max_bad_fraction: of the files of the data set that may be bad.
        max_pixels: an image of more is bad.

    Raises:
        ImageError: from ``[]``, if there are more, with the path of a file and the reason.
    """

    def __init__(
        self, dataset: Any, max_bad_fraction: float = 0.0, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.dataset, self.max_bad_fraction = dataset, max_bad_fraction
        self._read = partial(_read, max_pixels=max_pixels)
        if hasattr(dataset, "samples"):
            dataset.loader = self._read
        self._flat = hasattr(dataset, "images") and hasattr(dataset, "root")
        if self._flat:  # sorted: the order of a listing differs between machines
            dataset.images = sorted(filter(is_image_name, dataset.images))
        self._bad: Optional[torch.Tensor] = None
        if max_bad_fraction > 0:
            # One byte an image, which workers share with this process.
            self._bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._load(index)
        except _CANNOT_BE_READ as why:
            self._note(index, why)
        for other in range(index + 1, index + len(self)):
            other %= len(self)
            try:
                return self._load(other)
            except _CANNOT_BE_READ as why:
                self._note(other, why)
        raise ImageError("no image of the data set can be read.")

    def _load(self, index: int) -> Any:
        if not self._flat:
            return self.dataset[index]
        # The host's flat folder opens its files itself.
        return index, self.dataset.transform(self._read(self.path(index))), -1

    def _note(self, index: int, why: Exception) -> None:
        """Marks an image as bad, and says so if it is new.

        Raises:
            ImageError: it is one too many.
        """
        reason = _reason(why)
        if self._bad is None:
            raise ImageError(
                f"the image {self.path(index)} cannot be read ({reason}); mend it or take it out of the folder."
            ) from None
        known = bool(self._bad[index])
        self._bad[index] = 1
        images, count = len(self), int(self._bad.sum())
        allowed = int(self.max_bad_fraction * images + 1e-9)
        if count > allowed:
            others = f"; with it {count} are bad: {self._names()}" if count > 1 else ""
            raise ImageError(
                f"the image {self.path(index)} cannot be read ({reason}){others}; of {images} images "
                f"data.max_bad_fraction={self.max_bad_fraction:g} allows {allowed} to be bad: mend them, take them out "
                f"of the folder, or allow more with data.max_bad_fraction={_allowing(count, images)}."
            ) from None
        if not known:
            print(
                f"warning: the image {self.path(index)} cannot be read ({reason}); another one is taken.",
                file=sys.stderr,
                flush=True,
            )

    def bad_images(self) -> List[str]:
        """Paths of the images that could not be read so far, by any worker of this process."""
        if self._bad is None:
            return []
        return [self.path(index) for index in self._bad.nonzero().flatten().tolist()]

    def _names(self) -> str:
        bad = self.bad_images()
        return ", ".join(bad[:_NAMED]) + (", …" if len(bad) > _NAMED else "")

    def verdict(self) -> Optional[str]:
        """How many images were replaced, in a sentence; None where all could be read."""
        count = len(self.bad_images())
        if not count:
            return None
        were = "was replaced by another one" if count == 1 else "were replaced by others"
        return f"{count} of {len(self):,} images could not be read and {were}: {self._names()}."

    def path(self, index: int) -> str:
        """Of the image's file, or its number where there is no file of its own."""
        if hasattr(self.dataset, "samples"):
            return str(self.dataset.samples[index][0])
        if self._flat:
            return str(Path(self.dataset.root) / self.dataset.images[index])
        return f"number {index}"

    def files(self) -> List[str]:
        """Paths of all images, in their order; none where images have no files of their own."""
        if not self._flat and not hasattr(self.dataset, "samples"):
            return []
        return [self.path(index) for index in range(len(self))]

    @property
    def root(self) -> str:
        """Folder of the images, as the user gave it."""
        return str(getattr(self.dataset, "root", "the data set"))

    def sizes(self) -> List[Tuple[int, int]]:
        """Width and height in pixels of at most 64 images spread over the data set, by their headers alone."""
        if not self._flat and not hasattr(self.dataset, "samples"):
            return []
        return sizes_of([self.path(index) for index in range(len(self))])


def sizes_of(paths: Sequence[str]) -> List[Tuple[int, int]]:
    """Width and height in pixels of at most 64 images spread over these, by their headers alone."""
    step = max(1, -(-len(paths) // _SAMPLED))
    return [size for path in paths[::step] if (size := _size(path))]


def named_images(loader: Any) -> Optional[NamesBadImages]:
    """The images of a loader, whatever is wrapped around them; None for loaders of others."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and not isinstance(dataset, NamesBadImages):
        dataset = getattr(dataset, "dataset", None)
    return dataset


def verdict_of(loader: Any) -> Optional[str]:
    """:meth:`NamesBadImages.verdict` of a loader's images; None for loaders of others."""
    named = named_images(loader)
    return None if named is None else named.verdict()


def fingerprint(paths: Sequence[str], root: str) -> str:
    """What tells two sets of files apart: a hash of all names and of the sizes of some 1,000 files spread over them.

    What has no file of its own is told by its pixels.

    Args:
        paths: of the files, in the order of the data set.
        root: their folder, whose own name does not count.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path[len(root) :].encode("utf-8", "surrogateescape") + b"\0")
    for path in paths[:: max(1, len(paths) // _SIZED)]:
        try:
            known = checksum(path)
            size = os.stat(path).st_size if known is None else known
        except (
            OSError
        ):  # a link to nowhere is a bad image like any other, and is named when it is read
            size = -1
        digest.update(str(size).encode() + b"\0")
    return digest.hexdigest()[:16]


def _read(path: Union[str, Path], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image; a passing fault of the file system is waited for.

    Raises:
        FileSystemError: it did not pass.
        _Unreadable: the file is no image that can be read.
    """
    for pause in _PAUSES:
        try:
            return _read_once(path, max_pixels)
        except OSError:
            time.sleep(pause)
    try:
        return _read_once(path, max_pixels)
    except OSError as error:
        raise FileSystemError(
            f"the image {path} could not be read in {len(_PAUSES) + 1} tries ({error.strerror}): that is the file "
            "system's fault, or too many open files, not the image's; mend it, then the same command goes on."
        ) from error


def _read_once(path: Union[str, Path], max_pixels: int) -> Image.Image:
    stored = image_at(str(path))
    if stored is not None:
        return stored
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            raise _Unreadable("it is not a file")
        # some packages set it, and half an image is read in silence
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with open(path, "rb") as file:
            image = Image.open(file)
            pixels = image.size[0] * image.size[1]
            if pixels > max_pixels:
                raise _Unreadable(
                    f"its {pixels:,} pixels are more than data.max_pixels={max_pixels}; if it is no trap, "
                    f"data.max_pixels={pixels} takes it"
                )
            image.load()
            if image.format in ("JPEG", "MPO") and not _jpeg_ends(file):
                raise _Unreadable("it is cut off: the JPEG has no end")
            return to_rgb(image)
    except _Unreadable:
        raise
    except FileNotFoundError:
        raise _Unreadable("no such file") from None
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        if isinstance(error, OSError) and error.errno in _TRANSIENT:
            raise
        raise _Unreadable(_reason(error)) from None


def _jpeg_ends(file: io.BufferedReader) -> bool:
    """Whether a JPEG's image data come to their end. Pillow does not miss it in a file that was filled with zeros."""
    file.seek(-2, os.SEEK_END)
    if file.read() == b"\xff\xd9":
        return True
    file.seek(0)
    data = file.read()
    at = 2  # past the start marker; segments before the image data have a length, and a thumbnail an end of its own
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
        filling = data[at + 1] == 0xFF
        at += 1 if filling else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(b"\xff\xd9", at) >= 0


def _reason(error: Exception) -> str:
    """What is wrong with a file, without the objects that Pillow puts into its messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split()).split(" <")[0].split(" '")[0].rstrip(".:")
    return said or type(error).__name__


def _size(path: str) -> Optional[Tuple[int, int]]:
    """Of an image, from its header; None where it cannot be read, which is found out when it is needed."""
    stored = pixels(path)
    if stored is not None:
        return stored.shape[1], stored.shape[0]
    if not os.path.isfile(path):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.size
    except Exception:  # as in _read
        return None


def _allowing(count: int, images: int) -> str:
    """A fraction of the images, rounded up, that allows ``count`` of them."""
    return f"{-(-count * 10_000 // images) / 10_000:g}"


#: What a data set raises for an image it cannot read; the last ones come from data sets that read by themselves.
_CANNOT_BE_READ = (_Unreadable, OSError, SyntaxError)
