"""A validation split taken from the training images, for choices that the reported images must not see."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Dict, List, Tuple

from carp_plugin.data.listing import list_images
from carp_plugin.errors import UserError

_MANIFEST = "holdout.json"


def hold_out(train_path: Path, root: Path, fraction: float, seed: int) -> Tuple[Path, Path]:
    """Splits an ImageFolder in two, class by class, as links to its images.

    Which images are held out depends on their class, their name and the seed alone: not on the order of a listing,
    and not on other images.

    Args:
        train_path: one folder a class.
        root: receives ``train`` and ``val``; a split of the same images that stands there is used again.
        fraction: of every class that is held out; at least one image of it on either side.
        seed: another seed holds out other images.

    Returns:
        Tuple[Path, Path]: the folder to train on, and the one to validate on.

    Raises:
        UserError: a class has fewer than two images, or another split stands at ``root``.
    """
    split = _split(train_path, fraction, seed)
    manifest = {"from": str(train_path.resolve()), "fraction": fraction, "seed": seed}
    manifest["names_sha256"] = hashlib.sha256(json.dumps(split).encode()).hexdigest()
    folders = root / "train", root / "val"
    if root.exists():
        stands = root / _MANIFEST
        if stands.is_file() and json.loads(stands.read_text()) == manifest:
            return folders
        raise UserError(
            f"{root} holds another split than that of {train_path} with fraction={fraction}, seed={seed}; "
            "delete it, or choose another dir."
        )
    unfinished = root.with_name(f"{root.name}.{uuid.uuid4().hex}.part")
    try:
        for part, classes in split.items():
            for name, files in classes.items():
                for file in files:
                    target = unfinished / part / name / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link((train_path / name / file).resolve(), target)
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        os.rename(unfinished, root)
    except OSError as error:
        raise UserError(
            f"the split {root} cannot be written ({error.strerror}); choose another dir."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folders


def origin_of(train_path: Path) -> Path:
    """The folder that a split's training images are from; the folder itself where it is no split's."""
    try:
        return Path(json.loads((train_path.parent / _MANIFEST).read_text())["from"])
    except (OSError, ValueError, KeyError):
        return train_path


def _split(train_path: Path, fraction: float, seed: int) -> Dict[str, Dict[str, List[str]]]:
    """train and val -> class -> names of files, below the class folder."""
    split: Dict[str, Dict[str, List[str]]] = {"train": {}, "val": {}}
    listing = list_images(train_path, labelled=True)
    files: Dict[str, List[str]] = {name: [] for name in listing.classes}
    for path, label in listing.samples:
        folder = train_path / listing.classes[label]
        files[folder.name].append(Path(path).relative_to(folder).as_posix())
    for name, unsorted in files.items():
        folder, names = train_path / name, sorted(unsorted)
        if len(names) < 2:
            raise UserError(
                f"{folder} holds {len(names)} image{'s' * (len(names) != 1)}; holding some out needs two at least."
            )
        shuffled = sorted(names, key=lambda name: _hash(f"{seed}/{folder.name}/{name}"))
        held = min(max(1, round(fraction * len(names))), len(names) - 1)
        split["val"][folder.name] = sorted(shuffled[:held])
        split["train"][folder.name] = sorted(shuffled[held:])
    return split


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
