"""UMAP pictures of one checkpoint: the features of student and teacher in two dimensions, one colour a class.

The projection is umap-learn's, an optional package. Rows are brought to unit length first, so that near means a high
cosine similarity, as for the k-NN of appendix C.3.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Sequence

import numpy as np
import torch.nn.functional as F
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.table import Table

from carp_plugin.errors import UserError
from carp_plugin.evaluation.drawing import (
    Picture,
    canvas,
    colours,
    drawing,
    short,
    write_pdf,
    write_png,
)
from carp_plugin.evaluation.store import Features

NEIGHBOURS = 15  # umap-learn's default
FEWEST = 3  # images: fewer span no plane
SPLITS = {"train": "training", "val": "validation"}

_IN_LEGEND = 20  # classes; a longer legend is larger than the picture
_AS_VECTORS = 20_000  # points; more of them make a PDF that viewers choke on, and are pixels in it

#: umap.UMAP, or what stands for it in a test: settings -> an object with ``fit_transform``.
Reducer = Callable[..., Any]


class Projection(NamedTuple):
    """Features of one network on one split, in two dimensions.

    Attributes:
        network: ``"student"`` or ``"teacher"``.
        features: ``"backbone"`` or ``"projector"``.
        split: ``"train"`` or ``"val"``.
        coordinates: (N, 2) float32, without a unit.
        labels: (N,) int64, the classes.
    """

    network: str
    features: str
    split: str
    coordinates: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def name(self) -> str:
        """Of its files, without an ending; the backbone, which is the default, goes without saying."""
        parts = ["umap", self.network, self.features, self.split]
        return "_".join(part for part in parts if part != "backbone")


def load_umap() -> Reducer:
    """``umap.UMAP``; here and not above, for it is optional.

    Raises:
        UserError: umap-learn is missing, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Tensorflow, which is not needed, is not there
            from umap import UMAP
    except ImportError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"main_umap.py needs umap-learn, which cannot be imported ({reason}); "
            "run `pip install carp-plugin[umap]`."
        ) from error
    return UMAP


def neighbours_of(images: int) -> int:
    """UMAP's ``n_neighbors``: 15, or all the others where there are fewer."""
    return min(NEIGHBOURS, images - 1)


def project(features: Features, reducer: Reducer, seed: int) -> NDArray[np.float32]:
    """Features in two dimensions; the same features and seed give the same map.

    Args:
        features: (N, F) of any floating type, N >= 3; rows need not be normalised.
        reducer: ``umap.UMAP``.
        seed: 0 to 2^32 - 1.

    Returns:
        NDArray[np.float32]: (N, 2).

    Raises:
        ValueError: fewer than 3 rows.
        UserError: features that are not finite.
    """
    rows = F.normalize(features.feats.float()).numpy()
    if len(rows) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} rows, got {len(rows)}")
    if not np.isfinite(rows).all():
        raise UserError(
            "the features hold values that are not finite, so that there is nothing to draw: the network has diverged."
        )
    # The spectral start takes 3 eigenvectors of a graph of N nodes, which must be fewer than N.
    start = "spectral" if len(rows) > 3 else "random"
    # One job: with a seed umap-learn takes no more anyway, and would say so.
    settings = {"n_components": 2, "random_state": seed, "n_jobs": 1, "init": start}
    with warnings.catch_warnings():
        # On few or equal rows it falls back to a random start by itself, and says so.
        warnings.filterwarnings("ignore", message="Spectral initialisation failed")
        found = reducer(n_neighbors=neighbours_of(len(rows)), **settings).fit_transform(rows)
    return np.asarray(found, dtype=np.float32)


def picture(found: Projection, method: str, classes: Sequence[str]) -> Picture:
    """One dot an image, in the colour of its class; a legend where there are at most 20 classes.

    Args:
        found: to draw.
        method: its name.
        classes: names in the order of the labels; their colours are those of every picture of these classes.
    """
    count = len(found.labels)
    who = found.network if found.features == "backbone" else f"{found.network} {found.features}"
    title = f"{method}, {who}: {count} {SPLITS[found.split]} images"
    palette = colours(len(classes))
    # Images come class by class: drawn in that order, the last class would hide the others.
    order = np.random.default_rng(0).permutation(count)
    columns = 3 if all(len(short(name)) <= 12 for name in classes) else 2
    legend = len(classes) <= _IN_LEGEND
    with drawing():
        figure, (axes,) = canvas(4.2 + (0.2 * -(-len(classes) // columns) if legend else 0))
        axes.scatter(
            found.coordinates[order, 0],
            found.coordinates[order, 1],
            c=[palette[label] for label in found.labels[order]],
            s=min(16.0, max(1.0, 20_000 / count)),
            linewidths=0,
            rasterized=count > _AS_VECTORS,
        )
        axes.set(xticks=[], yticks=[])  # positions have no unit, and no meaning but nearness
        axes.grid(visible=False)
        axes.set_title(title, fontsize=10)
        if legend:
            handles = [
                Line2D([], [], linestyle="", marker="o", color=colour, label=short(name))
                for name, colour in zip(classes, palette)
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return Picture(found.name, f"UMAP. {title}, coloured by {len(classes)} classes.", figure)


def write(
    found: Projection,
    drawn: Picture,
    folder: Path,
    paths: Sequence[str],
    classes: Sequence[str],
) -> List[Path]:
    """Writes a picture as PNG and PDF, and what it shows as ``.npz``.

    Args:
        found: ``coordinates`` and ``labels`` go into the ``.npz``.
        drawn: the picture of it.
        folder: exists already.
        paths: of the images, in the order of the coordinates; they go there too.
        classes: names in the order of the labels; likewise.

    Raises:
        UserError: they cannot be written.
    """
    data = folder / f"{found.name}.npz"
    try:
        files = [write_png(drawn, folder), write_pdf(drawn, folder)]
        np.savez_compressed(
            data,
            coordinates=found.coordinates,
            labels=found.labels,
            paths=np.asarray(paths),
            classes=np.asarray(classes),
        )
    except OSError as error:
        raise UserError(not_writable(folder, error)) from error
    return [*files, data]


def table(projections: Sequence[Projection], title: str) -> Table:
    """One row for every picture."""
    shown = Table(title=title)
    for column in ("network", "features", "images of"):
        shown.add_column(column)
    shown.add_column("images", justify="right")
    shown.add_column("n_neighbors", justify="right")
    shown.add_column("files")
    for found in projections:
        numbers = [str(len(found.labels)), str(neighbours_of(len(found.labels)))]
        files = f"{found.name} .png .pdf .npz"
        shown.add_row(found.network, found.features, SPLITS[found.split], *numbers, files)
    return shown


def not_writable(folder: Path, error: OSError) -> str:
    """Why pictures cannot be written, in a sentence."""
    return f"the pictures cannot be written to {folder} ({error.strerror}); give a folder as --out."
