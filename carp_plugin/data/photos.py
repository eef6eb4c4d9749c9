"""The default data set: tiles of photographs that already lie inside scikit-image and scikit-learn.

Real images without a download. A class is a photograph, an image is a tile of it, and no pixel is
shared between training and validation, because the tiles of a photograph do not overlap.

    python -m carp_plugin.data.photos datasets/photos --picture tiles.png

Recipe (a change of any of it is a new `RECIPE`):

1. Every photograph is covered by a centred grid of `TILE` x `TILE` pixels, at its own resolution
   and in its own mode: grey photographs stay grey, the loader turns both kinds into RGB.
2. Tiles without content (`MIN_CONTRAST`: the black surroundings of the retina) are left out,
   because nobody can tell where they come from.
3. The tiles are sorted by a hash of their place, so validation is spread over the whole photograph
   and neither a random generator nor its version matters. The first `VAL_PER_CLASS` validate, the
   next `TRAIN_PER_CLASS` train, the rest is left out.

Every class has the same number of tiles, so that the k-NN vote has no favourite and accuracy needs
no weights; the numbers are what the smallest photograph (coffee: 216 tiles) gives. The 1,125
validation tiles keep the standard error of any accuracy under 1.5 points.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

from carp_plugin.errors import UserError

RECIPE = 1
TILE = 32  # pixels
VAL_PER_CLASS = 75
TRAIN_PER_CLASS = 138
MIN_CONTRAST = 1.0  # standard deviation in grey levels of 0..255, averaged over the channels
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
DEFAULT_ROOT = "datasets/photos"

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cell": ("skimage", "data/cell.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
"""Class name -> (package whose wheel carries the photograph, path inside that package)."""

PIXELS_SHA256 = "0d1437541e06fd329e9bbb5454fbdf3c7c15ac4c80afa4b97d195e19151c8b67"
"""`pixels_digest` of the tiles that the published accuracies were measured on."""

_PIP_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


class PhotosError(UserError, OSError):
    """The default data set cannot be written or is not what stands in its place; one sentence."""


class Tile(NamedTuple):
    """A square of a photograph, (y, x) being its upper left pixel in the photograph."""

    y: int
    x: int
    pixels: np.ndarray  # (TILE, TILE) grey or (TILE, TILE, 3) RGB, uint8

    @property
    def file_name(self) -> str:
        """Name of its file; it records where in the photograph the tile was cut."""
        return f"y{self.y:04d}_x{self.x:04d}.png"


def prepare_photos(root: str | Path = DEFAULT_ROOT) -> Path:
    """Makes sure that the default data set stands under `root`, as two ImageFolders.

    Writes `root/{train,val}/<class>/y<row>_x<column>.png` and a manifest, which takes about two
    seconds; when they stand already, it only compares the manifest and the file names. The folder
    is written beside `root` and renamed when it is whole, so an interrupted run leaves no half of
    it and several processes may call this at once. Anything else found at `root` is left untouched.

    Args:
        root: folder of the data set; missing parents are made.

    Returns:
        The absolute path of `root`.

    Raises:
        PhotosError: `root` holds something else, or another recipe's tiles, or cannot be written;
            or the photographs are missing because scikit-image or scikit-learn is.
    """
    root = Path(root).expanduser().resolve()
    if _stands(root):
        return root
    tiles = {name: split_tiles(name, load_photograph(name)) for name in PHOTOGRAPHS}
    digest = pixels_digest(tiles)
    if digest != PIXELS_SHA256:
        warnings.warn(
            "the photographs in the installed scikit-image and scikit-learn differ from those that "
            f"the published accuracies were measured on (pixels {digest[:12]}, not "
            f"{PIXELS_SHA256[:12]})",
            stacklevel=2,
        )
    unfinished = root.parent / f".{root.name}.{uuid.uuid4().hex[:12]}.unfinished"
    try:
        _write(unfinished, tiles, digest)
        _move_into_place(unfinished, root)
    except PhotosError:
        raise
    except OSError as error:
        raise PhotosError(
            f"cannot write the default data set to {root}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def load_photograph(name: str) -> np.ndarray:
    """Reads one photograph from the wheel that carries it; never downloads.

    Args:
        name: a key of `PHOTOGRAPHS`.

    Returns:
        uint8 array, (height, width) when grey and (height, width, 3) when in colour.

    Raises:
        PhotosError: the package is not installed, or does not carry the photograph.
    """
    package, path = PHOTOGRAPHS[name]
    pip_name = _PIP_NAMES.get(package, package)
    try:
        with files(package).joinpath(path).open("rb") as stream:
            return np.asarray(Image.open(stream))
    except ModuleNotFoundError as error:
        raise PhotosError(
            f"the default data set is cut from photographs inside {pip_name}, which is "
            f"not installed: pip install {pip_name}"
        ) from error
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise PhotosError(
            f"the installed {pip_name} does not carry the photograph {path}: reinstall "
            "it from the Python package index"
        ) from error


def split_tiles(name: str, pixels: np.ndarray) -> dict[str, list[Tile]]:
    """Cuts a photograph into the training and the validation tiles of its class.

    Args:
        name: the class; part of the hash that decides where a tile goes.
        pixels: uint8, (height, width) or (height, width, 3).

    Returns:
        `{"train": TRAIN_PER_CLASS tiles, "val": VAL_PER_CLASS tiles}`, no two of them overlapping.

    Raises:
        PhotosError: the photograph is too small or too empty for so many tiles.
    """
    height, width = pixels.shape[:2]
    rows = range((height % TILE) // 2, height - TILE + 1, TILE)
    columns = range((width % TILE) // 2, width - TILE + 1, TILE)
    grid = [Tile(y, x, pixels[y : y + TILE, x : x + TILE]) for y in rows for x in columns]
    tiles = [tile for tile in grid if tile.pixels.std(axis=(0, 1)).mean() >= MIN_CONTRAST]
    needed = VAL_PER_CLASS + TRAIN_PER_CLASS
    if len(tiles) < needed:
        raise PhotosError(
            f"the photograph {name} of {height} x {width} pixels gives {len(tiles)} tiles with "
            f"content, and {needed} are needed"
        )
    tiles.sort(key=lambda tile: hashlib.sha256(f"{name}/{tile.y}/{tile.x}".encode()).digest())
    return {"val": tiles[:VAL_PER_CLASS], "train": tiles[VAL_PER_CLASS:needed]}


def pixels_digest(tiles: dict[str, dict[str, list[Tile]]]) -> str:
    """SHA-256 of every tile's class, split, place and pixels, however PNG encodes them.

    Args:
        tiles: class -> split -> tiles, as `split_tiles` gives them.
    """
    digest = hashlib.sha256()
    for name in sorted(tiles):
        for split in SPLITS:
            for tile in tiles[name][split]:
                digest.update(f"{name}/{split}/{tile.y}/{tile.x}/{tile.pixels.shape}".encode())
                digest.update(tile.pixels.tobytes())
    return digest.hexdigest()


def _recipe() -> dict:
    """What a manifest has to say for its folder to be this version's data set."""
    return {
        "data_set": "carp_plugin photos",
        "recipe": RECIPE,
        "tile": TILE,
        "classes": sorted(PHOTOGRAPHS),
        "train_per_class": TRAIN_PER_CLASS,
        "val_per_class": VAL_PER_CLASS,
    }


def _names_digest(root: Path) -> str:
    """SHA-256 of the paths of all images under `root`: notices a lost, added or moved file."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*/*"))
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


def _stands(root: Path) -> bool:
    """Whether the whole data set of this recipe is at `root`; False when there is nothing yet.

    Raises:
        PhotosError: something else is there.
    """
    try:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PhotosError(
            f"{root} holds something else than the default data set (it has no readable "
            f"{MANIFEST}); nothing was changed, choose another folder"
        ) from error
    ours = _recipe()
    if not isinstance(manifest, dict) or {key: manifest.get(key) for key in ours} != ours:
        raise PhotosError(
            f"{root} was written by another recipe than this version's ({RECIPE}); nothing was "
            "changed, delete it or choose another folder"
        )
    if manifest.get("names_sha256") != _names_digest(root):
        raise PhotosError(
            f"images were added to {root} or are missing from it since it was written; nothing was "
            "changed, delete it or choose another folder"
        )
    return True


def _write(folder: Path, tiles: dict[str, dict[str, list[Tile]]], digest: str) -> None:
    """Writes the whole data set into `folder`, which must not exist; the manifest comes last."""
    for name in tiles:
        for split in SPLITS:
            class_folder = folder / split / name
            class_folder.mkdir(parents=True)
            for tile in tiles[name][split]:
                Image.fromarray(tile.pixels).save(class_folder / tile.file_name)
    manifest = {**_recipe(), "pixels_sha256": digest, "names_sha256": _names_digest(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _move_into_place(unfinished: Path, root: Path) -> None:
    """Renames the finished folder to `root`, or leaves it if another process was first."""
    try:
        os.rename(unfinished, root)
    except OSError:
        if not _stands(root):
            raise


def count_tiles(root: str | Path) -> dict[str, dict[str, int]]:
    """Counts the images that stand under `root`: class -> split -> number of files."""
    return {
        name: {split: sum(1 for _ in Path(root, split, name).iterdir()) for split in SPLITS}
        for name in sorted(PHOTOGRAPHS)
    }


def contact_sheet(root: str | Path, train: int = 12, val: int = 6) -> Image.Image:
    """Draws tiles of every class, one row a class: `train` training tiles, a gap, `val` others.

    Args:
        root: a folder that `prepare_photos` returned.
        train: number of training tiles shown of each class.
        val: number of validation tiles shown of each class.

    Returns:
        An RGB image with the class name at the left of each row.
    """
    label, gap, line = 90, TILE, TILE + 2
    width = label + (train + val) * line + gap
    sheet = Image.new("RGB", (width, (1 + len(PHOTOGRAPHS)) * line), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((label, line // 3), "train", fill="black")
    draw.text((label + train * line + gap, line // 3), "val", fill="black")
    for row, name in enumerate(sorted(PHOTOGRAPHS), start=1):
        draw.text((4, row * line + line // 3), name, fill="black")
        x = label
        for split, number in (("train", train), ("val", val)):
            paths = sorted(Path(root, split, name).iterdir())
            for path in paths[:: max(1, len(paths) // number)][:number]:
                with Image.open(path) as tile:
                    sheet.paste(tile.convert("RGB"), (x, row * line))
                x += line
            x += gap
    return sheet


def _table(root: Path) -> Table:
    """The counts of the data set as a table with a last line of totals."""
    table = Table(title=f"{root}: tiles of {TILE} x {TILE} pixels", show_footer=True)
    counts = count_tiles(root)
    table.add_column("class", footer="all")
    for split in SPLITS:
        total = sum(count[split] for count in counts.values())
        table.add_column(split, justify="right", footer=f"{total:,}")
    for name, count in counts.items():
        table.add_row(name, *(f"{count[split]:,}" for split in SPLITS))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: writes the data set where it is missing and prints its counts.

    Returns:
        Exit status: 0, or 2 after one sentence on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m carp_plugin.data.photos",
        description="Write the default data set (tiles of the photographs inside scikit-image and "
        "scikit-learn, no download) and print its counts.",
    )
    parser.add_argument("root", nargs="?", default=DEFAULT_ROOT, help="default: %(default)s")
    parser.add_argument("--picture", metavar="FILE.png", help="also draw a contact sheet")
    options = parser.parse_args(arguments)
    try:
        root = prepare_photos(options.root)
    except PhotosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(_table(root))
    if options.picture:
        try:
            contact_sheet(root).save(options.picture)
        except (OSError, ValueError) as error:
            print(f"error: cannot write the picture {options.picture}: {error}", file=sys.stderr)
            return 2
        print(f"picture: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
