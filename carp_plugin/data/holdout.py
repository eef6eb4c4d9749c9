"""Training images that are held out and validated on, for choices that the reported images must not see."""

from __future__ import annotations

from typing import List, Protocol, Sequence, Tuple

from carp_plugin.data.listing import Sample
from carp_plugin.data.subsets import by_class, hash_of, relative
from carp_plugin.errors import UserError


class Asked(Protocol):
    """Which part."""

    @property
    def fraction(self) -> float: ...
    @property
    def seed(self) -> int: ...


def hold_out(samples: Sequence[Sample], root: str, asked: Asked) -> Tuple[List[int], List[int]]:
    """Splits labelled images in two, class by class.

    Which images are held out depends on their names below the root and the seed alone: not on the order of a listing,
    and not on the images of other classes.

    Args:
        samples: (path, label) of the training images.
        root: their folder; paths count without it.
        asked: the part of every class, at least one image of it on either side, and the seed.

    Returns:
        Tuple[List[int], List[int]]: indices, rising, of the images to train on and of those to validate on.

    Raises:
        UserError: a class has fewer than two images.
    """
    names = [relative(path, root) for path, _ in samples]
    train: List[int] = []
    held: List[int] = []
    for members in by_class([label for _, label in samples]).values():
        if len(members) < 2:
            raise UserError(
                f"the class of {samples[members[0]][0]} holds 1 image; holding some out needs two at least."
            )
        members.sort(key=lambda index: hash_of(asked.seed, names[index]))
        count = min(max(1, round(asked.fraction * len(members))), len(members) - 1)
        held += members[:count]
        train += members[count:]
    return sorted(train), sorted(held)
