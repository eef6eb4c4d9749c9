"""Copies of images as people make them: cut, blurred, compressed, written over; each a function of image and seed."""

from __future__ import annotations

import copy
import io
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from carp_plugin.data.images import NamesBadImages
from carp_plugin.errors import UserError

Draws = np.random.Generator


def crop(image: Image.Image, share: float, draws: Draws) -> Image.Image:
    """A part of the image of its own shape, with ``share`` of its area, from a random place."""
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    left, top = (
        int(draws.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height))
    )
    return image.crop((left, top, left + width, top + height))


def blur(image: Image.Image, share: float, draws: Draws) -> Image.Image:
    """Gaussian blur; its deviation is ``share`` of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def jpeg(image: Image.Image, quality: float, draws: Draws) -> Image.Image:
    """Compressed with a quality of 1 to 95, and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return Image.open(file).convert("RGB")


def overlay(image: Image.Image, share: float, draws: Draws) -> Image.Image:
    """A patch of one random colour over ``share`` of the area, at a random place."""
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    left, top = (
        int(draws.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height))
    )
    covered = image.copy()
    colour = tuple(int(value) for value in draws.integers(0, 256, 3))
    covered.paste(colour, (left, top, left + width, top + height))
    return covered


def none(image: Image.Image, strength: float, draws: Draws) -> Image.Image:
    """The image as it is: what a copy scores that is none."""
    return image


#: Name -> function, and its strengths from mild to strong.
TRANSFORMATIONS: Dict[str, Tuple[Callable[..., Image.Image], Tuple[float, ...]]] = {
    "crop": (crop, (0.8, 0.5, 0.2)),
    "blur": (blur, (0.01, 0.02, 0.04)),
    "jpeg": (jpeg, (50, 20, 5)),
    "overlay": (overlay, (0.1, 0.25, 0.5)),
    "none": (none, (0.0,)),
}


class Copy(NamedTuple):
    """Which copy of which image.

    Attributes:
        image: its place in the data set.
        transformation: name of it.
        strength: of the transformation.
    """

    image: int
    transformation: str
    strength: float


def planned(images: Sequence[int], transformations: Sequence[str]) -> List[Copy]:
    """Every strength of every transformation of every image; those of one image stand together.

    Args:
        images: places in the data set.
        transformations: names of :data:`TRANSFORMATIONS`.
    """
    return [
        Copy(image, name, strength)
        for image in images
        for name in transformations
        for strength in TRANSFORMATIONS[name][1]
    ]


class Copies(Dataset):
    """Copies of the images of a data set: items are (image, place of its original).

    Args:
        images: the data set as it is evaluated.
        copies: which.
        transform: of a copy.
        seed: of every draw; a copy depends on it and on what is copied, not on the order.

    Raises:
        UserError: a data set that keeps its images to itself.
    """

    def __init__(
        self, images: NamesBadImages, copies: Sequence[Copy], transform: Callable, seed: int
    ) -> None:
        if not hasattr(images.dataset, "transform"):
            raise UserError("copies need a data set of images; give folders, or one of the host's.")
        self.images = copy.copy(images)
        self.images.dataset = copy.copy(images.dataset)
        self.images.dataset.transform = _itself
        self.copies, self.transform, self.seed = list(copies), transform, seed

    def __len__(self) -> int:
        return len(self.copies)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        made = self.copies[index]
        image = self.images[made.image][0].convert("RGB")
        function, strengths = TRANSFORMATIONS[made.transformation]
        kind = list(TRANSFORMATIONS).index(made.transformation)
        place = strengths.index(made.strength)
        draws = np.random.default_rng([self.seed, made.image, kind, place])
        return self.transform(function(image, made.strength, draws)), made.image


def _itself(image: Any) -> Any:
    return image
