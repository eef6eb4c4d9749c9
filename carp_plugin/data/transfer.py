"""Labelled data sets of transfer: torchvision's by name, found where the user has them, or any folder.

Images are read as :mod:`carp_plugin.data.images` reads them where a data set names its files, and become 8-bit RGB in
any case. A set without a published split has a seeded, stratified one, which its record names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torchvision
from torch.utils.data import ConcatDataset, Dataset

from carp_plugin.data.datasets import ImageFiles
from carp_plugin.data.idx import idx_folder, idx_listing
from carp_plugin.data.images import NamesBadImages, read_image, to_rgb
from carp_plugin.data.listing import labels_as_in, list_images
from carp_plugin.errors import UserError

PER_CLASS = "mean per class"


class Known(NamedTuple):
    """A data set of torchvision's.

    Attributes:
        name: of its class.
        folder: below the root, where the class looks.
        train: arguments of each part that is trained on.
        test: arguments of the part that is measured.
        drawn: of a set without a published split, images a class (a whole number) or the share of a class (below 1)
            that are drawn to train on.
        most: of the others of a class that are measured; None is all.
        measure: the literature's.
        download: whether torchvision can.
    """

    name: str
    folder: str
    train: Tuple[Mapping[str, Any], ...]
    test: Mapping[str, Any]
    drawn: Optional[float] = None
    most: Optional[int] = None
    measure: str = "top1"
    download: bool = True


def _parts(name: str, folder: str, *splits: str, **more: Any) -> Known:
    """Of a set with a ``split``: the last is measured, those before it are trained on."""
    *train, test = ({"split": split} for split in splits)
    return Known(name, folder, tuple(train), test, **more)


def _digits(name: str, folder: str) -> Known:
    return Known(name, folder, ({"train": True},), {"train": False})


#: Name of a data set -> where it is, and its parts: train and validation together where both are published.
KNOWN: Dict[str, Known] = {
    "caltech101": Known("Caltech101", "caltech101", ({},), {}, 30, measure=PER_CLASS),
    "caltech256": Known("Caltech256", "caltech256", ({},), {}, 30, measure=PER_CLASS),
    "cifar10": _digits("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _digits("CIFAR100", "cifar-100-python"),
    "country211": _parts("Country211", "country211", "train", "valid", "test"),
    "dtd": _parts("DTD", "dtd", "train", "val", "test"),
    "eurosat": Known("EuroSAT", "eurosat", ({},), {}, 0.8),
    "fashion_mnist": _digits("FashionMNIST", "FashionMNIST"),
    "fer2013": _parts("FER2013", "fer2013", "train", "test", download=False),
    "fgvc_aircraft": _parts(
        "FGVCAircraft", "fgvc-aircraft-2013b", "trainval", "test", measure=PER_CLASS
    ),
    "flowers102": _parts("Flowers102", "flowers-102", "train", "val", "test", measure=PER_CLASS),
    "food101": _parts("Food101", "food-101", "train", "test"),
    "gtsrb": _parts("GTSRB", "gtsrb", "train", "test"),
    "imagenet": _parts("ImageNet", "", "train", "val", download=False),
    "imagenette": _parts("Imagenette", "imagenette2", "train", "val"),
    "kmnist": _digits("KMNIST", "KMNIST"),
    "mnist": _digits("MNIST", "MNIST"),
    "oxford_iiit_pet": _parts(
        "OxfordIIITPet", "oxford-iiit-pet", "trainval", "test", measure=PER_CLASS
    ),
    "pcam": _parts("PCAM", "pcam", "train", "val", "test"),
    "rendered_sst2": _parts("RenderedSST2", "rendered-sst2", "train", "val", "test"),
    "stanford_cars": _parts("StanfordCars", "stanford_cars", "train", "test", download=False),
    "stl10": _parts("STL10", "stl10_binary", "train", "test"),
    "sun397": Known("SUN397", "SUN397", ({},), {}, 50, 50),
    "svhn": _parts("SVHN", "", "train", "test"),
    "usps": _digits("USPS", ""),
}


class Opened(NamedTuple):
    """A data set.

    Attributes:
        train: images and labels to train on.
        test: images and labels to measure.
        split: what they are, in words.
        root: where it was found.
        measure: the literature's, ``"top1"`` or ``"mean per class"``.
    """

    train: Dataset
    test: Dataset
    split: str
    root: str
    measure: str


def open_dataset(
    given: str, root: Optional[str], transform: Callable, seed: int = 0, download: bool = False
) -> Opened:
    """Opens a data set.

    Args:
        given: a name of ``KNOWN``, or NAME=PATH of a folder with ``train`` and ``val`` or ``test``.
        root: where torchvision's are.
        transform: of an RGB image.
        seed: of a split that is drawn.
        download: whether torchvision may download what is missing.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    name, _, path = given.partition("=")
    if path:
        return _folders(path, transform)
    known = KNOWN[name]
    if name == "fashion_mnist" and not (root and (Path(root) / known.folder).is_dir()):
        found = idx_folder(root) or idx_folder(None)
        if found is not None and not download:
            parts = [
                NamesBadImages(ImageFiles(idx_listing(found, part), transform))
                for part in ("train", "test")
            ]
            return Opened(parts[0], parts[1], "published train, test", str(found), known.measure)
    home = str(root)
    if not download and not (Path(home) / known.folder).is_dir():
        raise UserError(f"{name}: {Path(home) / known.folder} is not there; {_way(known)}.")
    train = [_made(known, home, arguments, download, name) for arguments in known.train]
    if known.drawn is not None:
        fitted, measured = draw(_labels(train[0]), known.drawn, seed, known.most)
        first, second = (_as_rgb(train[0], transform, some) for some in (fitted, measured))
        what = f"{known.drawn:g} images a class" if known.drawn >= 1 else f"{known.drawn:.0%}"
        rest = "the others" if known.most is None else f"at most {known.most} others"
        split = f"drawn by seed {seed}: {what} to train on, {rest} to measure"
        return Opened(first, second, split, home, known.measure)
    test = _made(known, home, known.test, download, name)
    labels = [getattr(one, "class_to_idx", None) for one in (*train, test)]
    if any(one != labels[0] for one in labels):
        raise UserError(
            f"{name}: the parts in {home} do not have the same classes, so that their labels differ; get it whole."
        )
    parts = [_as_rgb(one, transform) for one in train]
    joined: Any = parts[0]
    if len(parts) > 1:
        joined = NamesBadImages(_Joined([part.dataset for part in parts]))
    names = [str(next(iter(arguments.values()))) for arguments in (*known.train, known.test)]
    if names[0] == "True":
        names = ["train", "test"]
    split = f"published {' + '.join(names[:-1])}, {names[-1]}"
    return Opened(joined, _as_rgb(test, transform), split, home, known.measure)


def draw(
    labels: np.ndarray, drawn: float, seed: int, most: Optional[int] = None
) -> Tuple[np.ndarray, np.ndarray]:
    """A seeded split within each class: indexes to train on and to measure, both in order.

    Args:
        labels: (N,) classes.
        drawn: how many of a class are trained on, or which share if below 1; of a class of too few images all but one.
        seed: of the draw.
        most: of the others of a class that are measured; None is all.
    """
    dice = np.random.default_rng(seed)
    fitted: List[int] = []
    measured: List[int] = []
    for label in np.unique(labels):
        mine = dice.permutation(np.flatnonzero(labels == label))
        count = int(drawn) if drawn >= 1 else round(drawn * len(mine))
        count = max(1, min(count, len(mine) - 1))
        fitted += mine[:count].tolist()
        measured += mine[count : None if most is None else count + most].tolist()
    return np.sort(fitted), np.sort(measured)


class RgbImages(Dataset):
    """Images of a data set of torchvision's as RGB, all or some of them; items are (image, label).

    Args:
        dataset: of (image, label).
        transform: of an RGB image.
        some: indexes; None takes all.
    """

    def __init__(
        self, dataset: Any, transform: Callable, some: Optional[np.ndarray] = None
    ) -> None:
        self.dataset, self.transform = dataset, transform
        self.indexes = np.arange(len(dataset)) if some is None else some
        self.loader: Callable[[str], Any] = read_image
        files = _files(dataset)
        if files:
            self.samples = [(files[i], 0) for i in self.indexes]
            self.labels = _labels(dataset)[self.indexes]
        if hasattr(dataset, "classes"):
            self.classes = [c if isinstance(c, str) else c[0] for c in dataset.classes]

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        if hasattr(self, "samples"):
            return self.transform(self.loader(self.samples[index][0])), int(self.labels[index])
        image, label = self.dataset[int(self.indexes[index])]
        return self.transform(to_rgb(image)), int(label)


class _Joined(ConcatDataset):
    """Several parts of a set, with the names of all its files."""

    def __init__(self, parts: List[RgbImages]) -> None:
        super().__init__(parts)
        if all(hasattr(part, "samples") for part in parts):
            self.samples = [sample for part in parts for sample in part.samples]
        if hasattr(parts[0], "classes"):
            self.classes = parts[0].classes


def _as_rgb(dataset: Any, transform: Callable, some: Any = None) -> NamesBadImages:
    return NamesBadImages(RgbImages(dataset, transform, some))


def _made(known: Known, root: str, arguments: Mapping[str, Any], download: bool, name: str) -> Any:
    """torchvision's data set.

    Raises:
        UserError: it is not there, damaged, or cannot be downloaded.
    """
    build = partial(getattr(torchvision.datasets, known.name), root, **arguments)
    if download and not known.download:
        raise UserError(f"{name}: torchvision cannot download it; {_way(known)}.")
    if download:
        build = partial(build, download=True)
    try:
        dataset = build()
    except (
        Exception
    ) as error:  # of torchvision, scipy, h5py and csv: whatever a damaged file makes of them
        reason = " ".join(str(error).split()).partition(". You can use")[0].rstrip(".")
        raise UserError(
            f"{name}: {known.name} in {root} cannot be read ({(reason or type(error).__name__)[:200]}); {_way(known)}."
        ) from error
    if not len(dataset):
        raise UserError(f"{name}: {known.name} in {root} has no images; {_way(known)}.")
    if known.name == "SUN397":  # in the order of a file system
        order = np.argsort([str(file) for file in dataset._image_files])
        dataset._image_files = [dataset._image_files[i] for i in order]
        dataset._labels = [dataset._labels[i] for i in order]
    return dataset


def _way(known: Known) -> str:
    page = f"--data_root is the root of torchvision.datasets.{known.name}"
    return f"{page}; add --download to get it" if known.download else f"{page}, whose page says how"


def _files(dataset: Any) -> List[str]:
    """Paths of the images where the data set has them, or nothing."""
    for attribute in ("_image_files", "_images", "_samples", "samples"):
        found = getattr(dataset, attribute, None)
        if isinstance(found, (list, tuple)) and found:
            first = [one[0] if isinstance(one, tuple) else one for one in found]
            if isinstance(first[0], (str, Path)):
                return [str(one) for one in first]
    return []


def _labels(dataset: Any) -> np.ndarray:
    """(N,) labels, without reading an image.

    Raises:
        UserError: this torchvision keeps them elsewhere.
    """
    for attribute in ("_samples", "samples"):
        found = getattr(dataset, attribute, None)
        if isinstance(found, (list, tuple)) and found and isinstance(found[0], tuple):
            return np.array([int(label) for _, label in found])
    for attribute in ("_labels", "targets", "y", "labels"):
        found = getattr(dataset, attribute, None)
        if found is not None:
            return np.asarray(found, dtype=np.int64)
    raise UserError(
        f"torchvision {torchvision.__version__} keeps no labels of {type(dataset).__name__}."
    )


def _folders(path: str, transform: Callable) -> Opened:
    """A folder of class folders.

    Raises:
        UserError: ``train``, ``val`` and ``test`` are not there, or differ in classes.
    """
    root = Path(path)
    part = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if part is None or not (root / "train").is_dir():
        raise UserError(
            f"--datasets {path}: expected the folders {root}/train and {root}/val or {root}/test, each with a folder a "
            "class."
        )
    train, val = (list_images(str(place), labelled=True) for place in (root / "train", part))
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise UserError(f"--datasets {path}: the class {unknown[0]} of {part} is none of train.")
    if not train.samples or not val.samples:
        raise UserError(f"--datasets {path}: there are no images in {root}/train or {part}.")
    fitted = NamesBadImages(ImageFiles(train, transform))
    measured = NamesBadImages(ImageFiles(labels_as_in(val, train.classes), transform))
    return Opened(fitted, measured, f"folders train, {part.name}", path, "top1")
