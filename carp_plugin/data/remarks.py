"""What a user is to know of the images of a run before it begins: what is left out, and numbers that are not meant."""

from __future__ import annotations

import hashlib
import os
from statistics import median_low
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from carp_plugin.data.images import sizes_of
from carp_plugin.data.listing import Listing, shown
from carp_plugin.data.used import (
    Source,
    all_training,
    all_validation,
    listed,
    training_listing,
    validation_listing,
)
from carp_plugin.errors import typed
from carp_plugin.settings.parts import Size
from carp_plugin.terminal import say

_HOSTS = (256, 224)  # pixels: what the host evaluates folders of images with
_HALF = 0.5  # of an image that an evaluation should see at least
_ASKED = 500  # validation images that are looked for among the training images
_WHOLE = (
    50_000  # training images that are looked at one by one; of more, only those of the same names
)
_READ = 5_000  # training images that are read
_BYTES = 2**18  # of a file, which with its size tells it from another


def remarks_on(data: Source, no_labels: bool = False, flags: bool = False) -> List[str]:
    """What a user is to know of the folders of a run, a sentence each; those that begin with "warning:" are to be seen.

    Args:
        data: where the images are; checked already.
        no_labels: whether the training images have no labels; validation images are not used then.
        flags: whether the folders were given by flags, and not by keys.
    """
    if not listed(data):
        return []
    train = all_training(data, not no_labels)
    tree = "" if flags else ", or take every image of the tree unlabelled with data.no_labels=True"
    said = _left_out(_named("train", train, flags), train, tree)
    if data.val_path is None:
        return said
    if no_labels:
        return [
            *said,
            f"warning: data.val_path={data.val_path} is not used, for training images without labels name no classes; "
            "with one folder a class, set data.no_labels=False.",
        ]
    val = validation_listing(data)
    named = _named("val", val, flags)
    if data.holdout is None:
        said += _left_out(named, all_validation(data))
    train = training_listing(data, labelled=True)
    for doubt in (_lacking(named, val), _seen_before(train, val), _cut(named, val, data)):
        said += [f"warning: {doubt}"] if doubt else []
    return said


def say_remarks(remarks: Sequence[str]) -> None:
    """Says the sentences of :func:`remarks_on`, warnings in yellow."""
    for sentence in remarks:
        say(sentence, "yellow" if sentence.startswith("warning:") else None)


def _named(part: str, listing: Listing, flags: bool) -> str:
    path = shown(listing.root)
    return f"--{part}_data_path {path}" if flags else f"data.{part}_path={path}"


def _left_out(named: str, listing: Listing, otherwise: str = "") -> List[str]:
    sentence = listing.sentence(named, otherwise)
    if not sentence:
        return []
    return [("warning: " if listing.misses_images() else "") + sentence]


def _lacking(named: str, val: Listing) -> Optional[str]:
    missing = val.empty()
    if not missing:
        return None
    names = ", ".join(map(shown, missing[:5])) + (", …" if len(missing) > 5 else "")
    return (
        f"{named} holds no image of {len(missing)} of the {len(val.classes)} classes of the training images ({names}): "
        "accuracies are those of the others."
    )


def _seen_before(train: Listing, val: Listing) -> Optional[str]:
    found, asked = shared_images(train, val)
    if not found:
        return None
    of = f"{asked:,}" + (" sampled" if asked < len(val.samples) else "")
    mine, theirs = next(iter(found.items()))
    return (
        f"{len(found)} of {of} validation images are among the training images ({shown(mine)} is {shown(theirs)}): "
        "accuracies on them tell nothing of new images; take them out of one of the two folders."
    )


def shared_images(train: Listing, val: Listing) -> Tuple[Dict[str, str], int]:
    """Validation images that are training images too, under whatever name, as far as a sample of them tells.

    Two files are one image if their sizes and their first bytes are the same.

    Returns:
        The path of each -> that of the training image, and how many were asked for.
    """
    step = max(1, -(-len(val.samples) // _ASKED))
    asked = [path for path, _ in val.samples[::step]]
    by_size: Dict[int, List[str]] = {}
    for path in asked:
        by_size.setdefault(_bytes(path), []).append(path)
    by_size.pop(0, None)
    names: Set[str] = {os.path.basename(path) for path in asked}
    few = len(train.samples) <= _WHOLE
    likely = [path for path, _ in train.samples if few or os.path.basename(path) in names]
    likely = [path for path in likely[:_WHOLE] if _bytes(path) in by_size]
    likely.sort(key=lambda path: os.path.basename(path) not in names)  # stable: those first
    contents = {_content(path): path for path in reversed(likely[:_READ])} if likely else {}
    found = {}
    for path in asked if likely else []:
        other = contents.get(_content(path))
        if other is not None and _bytes(path):
            found[path] = other
    return found, len(asked)


def _bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nowhere: named when it is read
        return 0


def _content(path: str) -> Tuple[int, bytes]:
    try:
        with open(path, "rb") as file:
            return _bytes(path), hashlib.blake2b(file.read(_BYTES)).digest()
    except OSError:
        return 0, path.encode("utf-8", "surrogateescape")


def _cut(named: str, val: Listing, data: Any) -> Optional[str]:
    """An evaluation that sees less than half of the median image."""
    size: Optional[Size] = getattr(data, "eval_transform", None)
    resize, crop = _HOSTS if size is None else (size.resize, size.crop_size)
    sizes = sizes_of([path for path, _ in val.samples])
    if not sizes:
        return None
    share = median_low([(share_seen(one, resize, crop), one) for one in sizes])
    if share[0] >= _HALF:
        return None
    width, height = share[1]
    advice = "cut such images to nearly square ones"
    for better in (round(crop * 8 / 7), crop):
        then = share_seen(share[1], better, crop)
        if then >= _HALF:
            whole = typed("data.eval_transform", f"{{resize:{better},crop_size:{crop}}}")
            setting = f"data.eval_transform.resize={better}" if size is not None else whole
            advice = f"with {setting} it would see {100 * then:.0f} %"
            break
    return (
        f"the evaluation crop of {crop} px sees {100 * share[0]:.2g} % of an image of {width} x {height} px, the "
        f"median of {named}, less than half of it; {advice}."
    )


def share_seen(image: Tuple[int, int], resize: Optional[int], crop: int) -> float:
    """The part of an image, 0 to 1, that a central crop shows.

    Args:
        image: width and height in pixels.
        resize: what the shorter side is brought to first; None leaves it.
        crop: side of the crop in pixels.
    """
    scale = 1.0 if resize is None else resize / min(image)
    width, height = image[0] * scale, image[1] * scale
    return min(crop, width) * min(crop, height) / (width * height)
