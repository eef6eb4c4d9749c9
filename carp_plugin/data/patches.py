"""What PIRL and InfoMin see besides views: nine patches of an image in random order, and RandAugment."""

from __future__ import annotations

from typing import Any, Callable, List, Sequence

import torch
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torchvision import transforms

from carp_plugin.settings.methods import PatchKwargs
from carp_plugin.settings.parts import RandAugment

GRID = 3  # cells a side


class Jigsaw:
    """Nine patches of an image, (9, 3, p, p), in random order: one random crop in each cell of a 3 x 3 grid.

    Draws from torch's generator alone, besides what ``finish`` draws from.

    Args:
        sizes: of the image's crop, of a patch, and the part of the image's area that the crop has.
        finish: a patch to a tensor, for each patch on its own.
    """

    def __init__(self, sizes: PatchKwargs, finish: Callable[[Any], Tensor]) -> None:
        scale = (sizes.jigsaw_min_scale, 1.0)
        self.crop = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    sizes.jigsaw_size, scale, interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
            ]
        )
        self.cell, self.patch, self.finish = sizes.jigsaw_size // GRID, sizes.patch_size, finish

    def __call__(self, image: Any) -> Tensor:
        cropped = self.crop(image)
        free = self.cell - self.patch + 1
        places = torch.randint(free, (GRID * GRID, 2)).tolist()
        patches = []
        for number, (down, right) in enumerate(places):
            top, left = (self.cell * at for at in divmod(number, GRID))
            x, y = left + right, top + down
            patches.append(self.finish(cropped.crop((x, y, x + self.patch, y + self.patch))))
        return torch.stack(patches)[torch.randperm(len(patches))]


class WithPatches:
    """The views of an image, and behind them its patches.

    Args:
        views: image to list of views.
        jigsaw: image to patches.
    """

    def __init__(self, views: Callable[[Any], Sequence[Tensor]], jigsaw: Jigsaw) -> None:
        self.views, self.jigsaw = views, jigsaw

    def __call__(self, image: Any) -> List[Tensor]:
        return [*self.views(image), self.jigsaw(image)]

    def __repr__(self) -> str:
        sizes = f"9 patches of {self.jigsaw.patch} px"
        return f"{self.views}\n{sizes}: {self.jigsaw.crop}, then {self.jigsaw.finish}"


def with_patches(views: Callable, sizes: PatchKwargs, pipeline: Any) -> WithPatches:
    """Views with the patches of a method.

    Args:
        views: image to list of views.
        sizes: of the patches, and whether each is distorted on its own.
        pipeline: the host's, of the first view: a crop, what distorts it, and last to a tensor and normalised.
    """
    steps = pipeline.transforms[1:] if sizes.distorts_patches else pipeline.transforms[-2:]
    return WithPatches(views, Jigsaw(sizes, transforms.Compose(steps)))


def with_rand_augment(pipeline: Any, settings: RandAugment) -> Any:
    """A pipeline of the host's with RandAugment, and grey scale behind it: before the image becomes a tensor.

    Args:
        pipeline: a ``Compose`` that ends with ``ToTensor`` and ``Normalize``.
        settings: as timm's; with num_ops 0 the pipeline stays as it is.
    """
    if not settings.num_ops:
        return pipeline
    magnitude = f"m{settings.magnitude}-n{settings.num_ops}-mstd{settings.magnitude_std:g}"
    mean = tuple(round(255 * channel) for channel in IMAGENET_DEFAULT_MEAN)
    augment = rand_augment_transform(f"rand-{magnitude}", {"img_mean": mean})
    *steps, to_tensor, normalise = pipeline.transforms
    grey = [step for step in steps if isinstance(step, transforms.RandomGrayscale)]
    kept = [step for step in steps if step not in grey]
    return transforms.Compose([*kept, augment, *grey, to_tensor, normalise])
