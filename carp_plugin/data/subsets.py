"""Which labelled training images are used: all, a seeded part of every class, or a published list of names.

The list is of SimCLR's format (google-research/simclr, ``imagenet_subsets``): one file name a line, such as
``n01440764_10026.JPEG``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Sequence, Tuple

from carp_plugin.data.listing import Sample, shown
from carp_plugin.errors import UserError


class Asked(Protocol):
    """Which labels are asked for; ``file`` goes before ``fraction``."""

    @property
    def fraction(self) -> float: ...
    @property
    def file(self) -> Optional[str]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Subset:
    """Training images whose labels are used.

    Attributes:
        name: in words, for a table.
        indices: of the samples, rising.
        sha256: of the members' paths relative to their root and of their classes' numbers, sorted: the same on every
            machine and in every order of the files.
        total: images that there were to choose from.
        classes: label -> images of it; labels without one are missing.
        file_sha256: of the list's bytes, where there was one.
    """

    name: str
    indices: Tuple[int, ...] = field(repr=False)
    sha256: str
    total: int
    classes: Dict[int, int] = field(repr=False)
    file_sha256: Optional[str] = None

    @property
    def images(self) -> int:
        """How many."""
        return len(self.indices)

    def as_dict(self) -> Dict[str, Any]:
        """As json takes it."""
        counts = self.classes.values()
        return {
            "name": self.name,
            "sha256": self.sha256,
            "images": self.images,
            "of": self.total,
            "classes": len(self.classes),
            "images_a_class": [min(counts), max(counts)],
            **({} if self.file_sha256 is None else {"file_sha256": self.file_sha256}),
        }


def subset_of(samples: Sequence[Sample], root: str, asked: Asked) -> Subset:
    """The images that are asked for.

    Args:
        samples: (path, label) of every training image.
        root: their folder; paths count without it.
        asked: a file of names, or a fraction, 0 to 1, of every class and the seed of its draw.

    Raises:
        UserError: ``file`` cannot be read, is empty, or has a name twice, one that is none of the images, or one that
            is the name of several.
    """
    names = [relative(path, root) for path, _ in samples]
    labels = [label for _, label in samples]
    file_sha256 = None
    if asked.file is not None:
        content = _read(asked.file)
        file_sha256 = hashlib.sha256(content).hexdigest()
        indices = _listed(content, asked.file, names, root)
        name = f"the list {os.path.basename(asked.file)}"
    elif asked.fraction < 1:
        indices = _drawn(names, labels, asked.fraction, asked.seed)
        name = f"{100 * asked.fraction:g} % of every class, seed {asked.seed}"
    else:
        indices, name = list(range(len(samples))), "all"
    return subset(name, indices, samples, root, file_sha256)


def drawn(samples: Sequence[Sample], root: str, images: int, seed: int, key: str) -> List[int]:
    """Indices, rising, of a number of images: of every class its share of them, and at least one.

    Which ones depends on their names and the seed alone. What is left of a division goes to the classes that it costs
    most.

    Args:
        samples: (path, label) of every image there is.
        root: their folder; paths count without it.
        images: how many are drawn.
        seed: of the draw.
        key: that says how many, for the sentence.

    Raises:
        UserError: there are fewer images, or more classes than are to be drawn.
    """
    there = Counter(label for _, label in samples)
    if not len(there) <= images <= len(samples):
        fits = min(max(images, len(there)), len(samples))
        raise UserError(
            f"{key}={images} cannot be drawn from {len(samples):,} images of {len(there)} classes, each of which needs "
            f"one; give {key}={fits}, or leave it out."
        )
    shares = {label: images * count / len(samples) for label, count in there.items()}
    wanted = {label: max(1, int(share)) for label, share in shares.items()}
    while sum(wanted.values()) != images:
        step = 1 if sum(wanted.values()) < images else -1
        free = [one for one in wanted if 1 <= wanted[one] + step <= there[one]]
        label = max(free, key=lambda one: (step * (shares[one] - wanted[one]), -one))
        wanted[label] += step
    names = [relative(path, root) for path, _ in samples]
    found: List[int] = []
    for label, members in by_class([label for _, label in samples]).items():
        members.sort(key=lambda index: hash_of(seed, names[index]))
        found += members[: wanted[label]]
    return sorted(found)


def subset(
    name: str,
    indices: Sequence[int],
    samples: Sequence[Sample],
    root: str,
    file_sha256: Optional[str] = None,
) -> Subset:
    """Some images, by their indices.

    Args:
        name: in words.
        indices: rising.
        samples: (path, label) of every image there is.
        root: their folder; paths count without it.
        file_sha256: of the list's bytes, where there was one.
    """
    members = sorted(f"{relative(samples[i][0], root)}\t{samples[i][1]}" for i in indices)
    digest = hashlib.sha256("\n".join(members).encode("utf-8", "surrogateescape"))
    classes = Counter(samples[index][1] for index in indices)
    return Subset(
        name, tuple(indices), digest.hexdigest(), len(samples), dict(classes), file_sha256
    )


def relative(path: str, root: str) -> str:
    """A path without its root, with slashes on every system."""
    return os.path.relpath(path, root).replace(os.sep, "/") if root else path


def _drawn(names: Sequence[str], labels: Sequence[int], fraction: float, seed: int) -> List[int]:
    """A part of every class, at least one image of it; a smaller part of the same seed lies within a larger one.

    Which images depends on their names and the seed alone: every class is sorted by hashes of both.
    """
    chosen: List[int] = []
    for members in by_class(labels).values():
        members.sort(key=lambda index: hash_of(seed, names[index]))
        chosen += members[: max(1, round(fraction * len(members)))]
    return sorted(chosen)


def by_class(labels: Sequence[int]) -> Dict[int, List[int]]:
    """Label -> indices of its images."""
    of_class: Dict[int, List[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    return of_class


def hash_of(seed: int, name: str) -> bytes:
    """What decides on an image in a draw."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"labels.file={file} cannot be read ({error.strerror}); give a file of image names, one a line."
        ) from None


def _listed(content: bytes, file: str, names: Sequence[str], root: str) -> List[int]:
    """The images that a list names.

    A line is a file's name, or as much of its path below the root as it takes: ``class/file``.
    """
    lines = [line.strip() for line in content.decode("utf-8-sig", "surrogateescape").splitlines()]
    asked = [line for line in lines if line]
    if not asked:
        raise UserError(f"labels.file={file} names no image; expected one file name a line.")
    bare: Dict[str, List[int]] = {}
    for index, name in enumerate(names):
        bare.setdefault(name.rpartition("/")[2], []).append(index)
    chosen: Dict[int, str] = {}
    for line in asked:
        own = line.removeprefix("./")
        found = [
            index
            for index in bare.get(own.rpartition("/")[2], [])
            if f"/{names[index]}".endswith(f"/{own}")
        ]
        if not found:
            raise UserError(
                f"labels.file={file} names {shown(line)[:100]}, which is none of the {len(names):,} images of "
                f"data.train_path={root}; give the list of these images, or the folder that the list is of."
            )
        if len(found) > 1:
            raise UserError(
                f"labels.file={file} names {shown(line)[:100]}, which is the name of {len(found)} images of "
                f"data.train_path={root} ({shown(names[found[0]])}, {shown(names[found[1]])}, …); write class/file."
            )
        if found[0] in chosen:
            raise UserError(
                f"labels.file={file} names {shown(line)[:100]} twice; expected every image once."
            )
        chosen[found[0]] = line
    return sorted(chosen)
