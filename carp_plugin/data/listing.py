"""Which files of a folder are its images: one listing for training, evaluation, DALI, counts, fingerprints, hold-outs.

Images are told by the endings of photographs that this Pillow opens, in class folders and in flat ones alike. Hidden
files, and what archivers, file managers and synchronisers leave behind, are none at any depth. Links are followed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from PIL import Image

from carp_plugin.errors import UserError

if TYPE_CHECKING:
    from carp_plugin.data.subsets import Subset

#: Of photographs. Pillow opens more: documents, arrays and films, whose pixels are no images to learn from.
ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .ppm .pgm .pbm .pnm .tif .tiff .webp .gif .tga "
    ".jp2 .j2k .jpf .jpx .avif .avifs .heic .heif".split()
)
#: Of photographs that Pillow does not open, or not without a plug-in: whoever has them misses them.
_UNREADABLE = frozenset(".heic .heif .avif .avifs .jxl .dng .cr2 .cr3 .nef .arw .raf .orf".split())
#: Not hidden by their names, but written by other programs; in lower case.
_STRAY = frozenset(
    ["__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"]
    + ["$recycle.bin", "system volume information", "lost+found"]
)
_HIDDEN, _BESIDE, _LOOPS = "hidden", "images beside the class folders", "links back to a folder"
_SETTLED = 2.0  # seconds after which a folder's time stamp tells every later change

Sample = Tuple[str, int]


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        root: the folder, as the host joins it to its files.
        classes: names of the class folders in the order of the labels; none in a folder without labels.
        samples: (path, label) of every image, in torchvision's order; the label is -1 without classes.
        left_out: why -> how many files or folders are no images, and the first of them.
        subset: which of the images that there are, where some were asked for.
    """

    root: str
    classes: Tuple[str, ...]
    samples: List[Sample] = field(repr=False)
    left_out: Dict[str, Tuple[int, str]] = field(repr=False)
    subset: Optional[Subset] = None

    def empty(self) -> List[str]:
        """Classes without an image."""
        there = {label for _, label in self.samples}
        return [name for label, name in enumerate(self.classes) if label not in there]

    def sentence(self, named: str, otherwise: str = "") -> Optional[str]:
        """What was left out, and what is there; None where nothing was left out.

        Args:
            named: the folder, as the user gave it.
            otherwise: what else can be done with images that have no class, as the end of a sentence.
        """
        if not self.left_out:
            return None
        reasons = [
            f"{count:,} {_in_words(why)} ({shown(first)}{', …' if count > 1 else ''})"
            for why, (count, first) in sorted(self.left_out.items())
        ]
        return f"{named} holds {len(self.samples):,} images; left out: {', '.join(reasons)}{self._advice(otherwise)}."

    def misses_images(self) -> bool:
        """Whether images were left out that the user may well have meant."""
        return _BESIDE in self.left_out or any(why in _UNREADABLE for why in self.left_out)

    def _advice(self, otherwise: str) -> str:
        said = ""
        if _BESIDE in self.left_out:
            said += f"; images beside the class folders have no class: put them into one{otherwise}"
        if any(why in _UNREADABLE for why in self.left_out):
            said += "; this Pillow cannot open all of these formats: convert them, to .jpg or .png"
        return said


def list_images(root: Union[str, Path], labelled: bool) -> Listing:
    """The images of a folder, listed once for as long as no folder in it changes.

    Args:
        root: one folder a class, each with further folders in it or none; or, without labels, any tree.
        labelled: whether its folders are classes.

    Raises:
        UserError: a folder that cannot be listed.
    """
    known = _known.get((str(root), labelled))
    if known is not None and known.still_holds():
        return known.listing
    walk = _Walk(str(Path(root)))
    listing = walk.labelled() if labelled else walk.unlabelled()
    while len(_known) >= _KEPT:
        _known.pop(next(iter(_known)))
    _known[str(root), labelled] = _Known(listing, walk.stamps)
    return listing


def labels_as_in(listing: Listing, classes: Sequence[str]) -> Listing:
    """The same images with the labels that other classes have; all of its classes must be among them."""
    if listing.classes == tuple(classes):
        return listing
    label_of = {name: label for label, name in enumerate(classes)}
    samples = [(path, label_of[listing.classes[label]]) for path, label in listing.samples]
    return replace(listing, classes=tuple(classes), samples=samples)


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its name: not hidden, and with the ending of a photograph that Pillow opens."""
    return not is_hidden(name) and _ending(name) in readable_endings()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that other programs leave behind."""
    return name.startswith(".") or name.lower() in _STRAY


def readable_endings() -> Set[str]:
    """Endings of photographs that this Pillow opens; a plug-in such as pillow-heif adds to them."""
    known = Image.registered_extensions()
    return {ending for ending in ENDINGS if known.get(ending) in Image.OPEN}


def shown(name: str) -> str:
    """A name of a file as any terminal can print it."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Walk:
    """One pass over a tree; ``stamps`` are the folders that were listed and when each was changed last."""

    def __init__(self, root: str) -> None:
        self.root, self.endings = root, readable_endings()
        self.left_out: Dict[str, Tuple[int, str]] = {}
        self.stamps: Dict[str, int] = {}

    def unlabelled(self) -> Listing:
        """Every image of the tree."""
        samples = [(path, -1) for path in self._images(self.root)]
        return Listing(self.root, (), samples, self.left_out)

    def labelled(self) -> Listing:
        """Every image below the class folders."""
        folders, files = self._entries(self.root)
        for name in files:
            if self._is_image(self.root, name):
                self._leave(_BESIDE, self.root, name)
        samples = [
            (path, label)
            for label, name in enumerate(folders)
            for path in self._images(os.path.join(self.root, name), (_identity(self.root),))
        ]
        return Listing(self.root, tuple(folders), samples, self.left_out)

    def _images(self, top: str, above: Tuple[Tuple[int, int], ...] = ()) -> Iterator[str]:
        """Folder by folder in the order of their paths, in each in the order of the names, as torchvision does."""
        found: List[Tuple[str, List[str]]] = []
        todo = [(top, above)]
        while todo:
            folder, above = todo.pop()
            here = _identity(folder)
            if here in above:
                self._leave(_LOOPS, *os.path.split(folder))
                continue
            folders, files = self._entries(folder)
            found.append((folder, [name for name in files if self._is_image(folder, name)]))
            todo += [(os.path.join(folder, name), (*above, here)) for name in folders]
        for folder, names in sorted(found):
            for name in names:
                yield os.path.join(folder, name)

    def _entries(self, folder: str) -> Tuple[List[str], List[str]]:
        """Names of the folders and of the files in a folder, sorted, without those that are hidden."""
        folders: List[str] = []
        files: List[str] = []
        try:
            self.stamps[folder] = os.stat(folder).st_mtime_ns
            with os.scandir(folder) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            raise UserError(
                f"the folder {shown(folder)} cannot be listed ({error.strerror}); check its permissions."
            ) from None
        for names in (folders, files):
            names.sort()
            for name in filter(is_hidden, names):
                self._leave(_HIDDEN, folder, name)
        return _visible(folders), _visible(files)

    def _is_image(self, folder: str, name: str) -> bool:
        ending = _ending(name)
        if ending in self.endings:
            return True
        self._leave(ending, folder, name)
        return False

    def _leave(self, why: str, folder: str, name: str) -> None:
        count, first = self.left_out.get(why, (0, ""))
        first = first or os.path.relpath(os.path.join(folder, name), self.root)
        self.left_out[why] = (count + 1, first)


@dataclass(frozen=True)
class _Known:
    """A listing, and what tells that it still holds."""

    listing: Listing
    stamps: Dict[str, int]
    at: float = field(default_factory=time.time)

    def still_holds(self) -> bool:
        """Whether no folder was changed since, nor so shortly before that a stamp could not tell."""
        try:
            return all(
                stamp / 1e9 < self.at - _SETTLED and os.stat(folder).st_mtime_ns == stamp
                for folder, stamp in self.stamps.items()
            )
        except OSError:
            return False


_KEPT = 4  # listings: training and validation images, with and without labels
_known: Dict[Tuple[str, bool], _Known] = {}


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _identity(folder: str) -> Tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise UserError(
            f"the folder {shown(folder)} cannot be looked at ({error.strerror}); check its permissions."
        ) from None
    return status.st_dev, status.st_ino


def _visible(names: List[str]) -> List[str]:
    return [name for name in names if not is_hidden(name)]


def _in_words(why: str) -> str:
    if why.startswith("."):
        return f"of {shown(why)}"
    return why or "without an ending"
