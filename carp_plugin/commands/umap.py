"""``main_umap.py``: pictures of one checkpoint's features, of student and teacher, one colour a class."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import List

from rich.progress import track
from torch.utils.data import DataLoader

from carp_plugin.data.loaders import say_bad_images
from carp_plugin.errors import UserError
from carp_plugin.evaluation.offline import Prepared, prepare
from carp_plugin.evaluation.store import class_names, image_names, stream
from carp_plugin.evaluation.umap import (
    FEWEST,
    SPLITS,
    Projection,
    load_umap,
    not_writable,
    picture,
    project,
    table,
    write,
)
from carp_plugin.settings.offline import Umap
from carp_plugin.terminal import say


def umap(flags: Umap) -> List[Path]:
    """Draws the training and the validation images as every chosen network sees them, and says where the files are.

    Returns:
        List[Path]: of the files: for every network, features and split a ``.png``, a ``.pdf``, and a ``.npz`` with
        ``coordinates`` (N, 2) float32, ``labels`` (N,) int64, and ``paths`` and ``classes`` as text.

    Raises:
        UserError: a mistake in the flags, the checkpoint or the data, umap-learn is missing, too few images, or a
            folder that cannot be written to.
    """
    run = prepare(flags)
    loaders = {"train": run.train, "val": run.val}
    for split, loader in loaders.items():
        _check_enough(run, split, loader)
    reducer = load_umap()  # only now: importing it takes longer than to find the mistakes above
    folder = _made(Path(flags.out) if flags.out else run.pretrained.path.parent)
    networks = run.networks()
    rows = {
        split: stream(networks, loader, run.device, f"{split} images")
        for split, loader in loaders.items()
    }
    say_bad_images(run.train)
    classes = class_names(
        run.train, [feats.targets for by in rows.values() for feats in by.values()]
    )
    paths = {split: image_names(loader) for split, loader in loaders.items()}
    jobs = [(split, *column) for column in run.columns for split in SPLITS]
    quiet = not sys.stdout.isatty()
    projections, files = [], []
    for split, network, kind in track(jobs, "UMAP", disable=quiet, transient=True):
        feats = rows[split][f"{network}/{kind}"]
        found = Projection(
            network, kind, split, project(feats, reducer, flags.seed), feats.targets.numpy()
        )
        files += write(
            found, picture(found, run.pretrained.method, classes), folder, paths[split], classes
        )
        projections.append(found)
    say(table(projections, f"{run.pretrained.method}: UMAP, seed {flags.seed}"))
    say(f"written to {folder}")
    return files


def _check_enough(run: Prepared, split: str, loader: DataLoader) -> None:
    images = len(loader.dataset)  # type: ignore[arg-type]
    folder = getattr(run.trained.data, f"{split}_path")
    if images < FEWEST:
        raise UserError(
            f"--{split}_data_path {folder} holds {images} image{'s' * (images != 1)}, and UMAP "
            f"needs at least {FEWEST}; add images."
        )


def _made(folder: Path) -> Path:
    """The folder of the pictures, before time is spent on what goes there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(not_writable(folder, error)) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written to; give another one as --out.")
    return folder
