"""Fashion-MNIST as a Linux distribution installs it: four gzipped IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Optional, Tuple

import numpy as np
import torchvision
from PIL import Image
from torch.utils.data import Dataset

from carp_plugin.errors import UserError

#: Of Debian's package dataset-fashion-mnist.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_NAMES = {"train": "train", "test": "t10k"}


class IdxImages(Dataset):
    """Images and labels of two gzipped IDX files, as Fashion-MNIST comes.

    Args:
        folder: of the files.
        part: ``"train"`` or ``"test"``.

    Raises:
        UserError: they cannot be read, or are not of this form.
    """

    classes = torchvision.datasets.FashionMNIST.classes

    def __init__(self, folder: Path, part: str) -> None:
        self.images = _idx(folder / f"{_NAMES[part]}-images-idx3-ubyte.gz", 3)
        self.labels = _idx(folder / f"{_NAMES[part]}-labels-idx1-ubyte.gz", 1)
        if len(self.images) != len(self.labels):
            raise UserError(
                f"fashion_mnist: {len(self.images)} images of {folder} have {len(self.labels)} labels; get it again."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """Of unsigned bytes."""
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise UserError(f"fashion_mnist: {path} cannot be read ({error}); get it again.") from error
    head = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:head], ">u4").astype(int)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) - head != shape.prod():
        raise UserError(f"fashion_mnist: {path} is no IDX file of {dimensions} dimensions.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def idx_folder(root: Optional[str]) -> Optional[Path]:
    """Where the four files lie."""
    places = [Path(root), Path(root) / "fashion-mnist"] if root else []
    for place in (*places, DEBIAN):
        if (place / "train-images-idx3-ubyte.gz").is_file():
            return place
    return None
