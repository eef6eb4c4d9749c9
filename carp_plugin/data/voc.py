"""PASCAL VOC 2007 as images with several labels each, in the layout that torchvision's VOCDetection unpacks."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from carp_plugin.data.images import read_image
from carp_plugin.errors import UserError

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
).split()

#: Labels of an image and a class: an object of it, none, or only objects that are marked as difficult.
PRESENT, ABSENT, DIFFICULT = 1, -1, 0


@dataclass(frozen=True)
class VocSplit:
    """The images of a split.

    Attributes:
        name: ``"trainval"`` or ``"test"``.
        paths: of the images, in the order of the split's list.
        labels: (N, 20) int8 of ``PRESENT``, ``ABSENT``, ``DIFFICULT``.
    """

    name: str
    paths: List[Path] = field(repr=False)
    labels: np.ndarray = field(repr=False)


class VocImages(Dataset):
    """Items are (image, labels (20,) int8).

    Args:
        split: of the data set.
        transform: of an image.
    """

    def __init__(self, split: VocSplit, transform: Callable[[Any], torch.Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.paths)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, torch.Tensor]:
        image = self.transform(read_image(self.split.paths[index]))
        return image, torch.from_numpy(self.split.labels[index])


def voc_folder(root: str) -> Path:
    """The folder that holds ``ImageSets``: ``root``, ``root/VOC2007`` or ``root/VOCdevkit/VOC2007``.

    Raises:
        UserError: none of them does.
    """
    for inside in ("", "VOC2007", "VOCdevkit/VOC2007"):
        folder = Path(root) / inside
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise UserError(
        f"{root} holds no PASCAL VOC 2007: expected VOCdevkit/VOC2007 with ImageSets/Main, Annotations and JPEGImages, "
        'as torchvision.datasets.VOCDetection(ROOT, year="2007", image_set="test", download=True) unpacks it; give '
        "that ROOT."
    )


def voc_split(root: str, name: str) -> VocSplit:
    """A split and its labels, from ``ImageSets/Main/CLASS_SPLIT.txt``; of a class without it, from ``Annotations``.

    Args:
        root: see :func:`voc_folder`.
        name: ``"trainval"`` or ``"test"``.

    Raises:
        UserError: a file that is missing, or that is not of its form.
    """
    folder = voc_folder(root)
    names = [line.split()[0] for line in _lines(folder / "ImageSets" / "Main" / f"{name}.txt")]
    paths = [folder / "JPEGImages" / f"{one}.jpg" for one in names]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise UserError(
            f"{missing} is missing, which {folder}/ImageSets/Main/{name}.txt names; unpack the archive of {name} too."
        )
    if not names:
        raise UserError(f"{folder}/ImageSets/Main/{name}.txt names no image; unpack it again.")
    labels = np.full((len(names), len(CLASSES)), ABSENT, dtype=np.int8)
    annotated: Optional[np.ndarray] = None
    for column, kind in enumerate(CLASSES):
        file = folder / "ImageSets" / "Main" / f"{kind}_{name}.txt"
        if file.is_file():
            labels[:, column] = _listed(file, names)
        else:
            annotated = _annotated(folder, names) if annotated is None else annotated
            labels[:, column] = annotated[:, column]
    return VocSplit(name, paths, labels)


def _lines(file: Path) -> List[str]:
    try:
        return [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"{file} cannot be read ({reason}); unpack PASCAL VOC 2007 again."
        ) from None


def _listed(file: Path, names: List[str]) -> List[int]:
    """The labels of a class in the order of the names."""
    given = {}
    for line in _lines(file):
        words = line.split()
        if len(words) != 2 or words[1] not in ("1", "-1", "0"):
            raise UserError(
                f"{file} must hold a name and 1, -1 or 0 on each line, got {line[:60]!r}; unpack it again."
            )
        given[words[0]] = int(words[1])
    lacking = next((name for name in names if name not in given), None)
    if lacking is not None:
        raise UserError(f"{file} says nothing of the image {lacking}; unpack it again.")
    return [given[name] for name in names]


def _annotated(folder: Path, names: List[str]) -> np.ndarray:
    """(N, 20) int8 from the objects of each image."""
    labels = np.full((len(names), len(CLASSES)), ABSENT, dtype=np.int8)
    for row, name in enumerate(names):
        file = folder / "Annotations" / f"{name}.xml"
        try:
            objects = ElementTree.parse(file).getroot().iter("object")
            found = [(one.findtext("name"), one.findtext("difficult", "0")) for one in objects]
        except (OSError, ElementTree.ParseError) as error:
            reason = getattr(error, "strerror", None) or "it is no XML"
            raise UserError(
                f"{file} cannot be read ({reason}); unpack PASCAL VOC 2007 again."
            ) from None
        for kind, difficult in found:
            if kind not in CLASSES:
                raise UserError(
                    f"{file} names an object {kind!r}, which is none of the 20 classes."
                )
            column = CLASSES.index(kind)
            mark = DIFFICULT if difficult.strip() == "1" else PRESENT
            if labels[row, column] != PRESENT:
                labels[row, column] = mark
    return labels
