"""What prototypes have come to stand for: the images nearest to the prototypes that are used most.

Every image is assigned to the prototype of its largest logit, over all K prototypes and not block by block as in
training (section 3 of the paper). A prototype's row shows the images of largest cosine similarity to it: logits are
not normalised, and an image with a long embedding would be near to every prototype.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple, Union

import matplotlib
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from rich.progress import track

from carp_plugin.data.idx import image_at
from carp_plugin.errors import UserError

_GAP, _FRAME, _CAPTION = 4, 2, 20  # pixels
_FRAME_COLOUR, _INK = "#1f8ad6", "#1b1b1c"
_KEYS = ("prototypes", "counts", "purity", "majority", "tiles", "similarities", "labels", "members")

PathLike = Union[str, Path]


class Row(NamedTuple):
    """A prototype and its nearest images.

    Attributes:
        prototype: its number, 0 to K - 1.
        images: number of images assigned to it.
        purity: share of the most frequent class among those, 0 to 1.
        strip: the images side by side; assigned ones are framed.
        labels: class of each image in the strip.
    """

    prototype: int
    images: int
    purity: float
    strip: Image.Image
    labels: List[int]

    @property
    def caption(self) -> str:
        """What the row shows, in a few words."""
        assigned = f"{self.images} image{'s' * (self.images != 1)}"
        return f"prototype {self.prototype}: {assigned}, purity {100 * self.purity:.0f} %"

    @property
    def data_uri(self) -> str:
        """The strip as it stands in a page."""
        return "data:image/png;base64," + base64.b64encode(_png(self.strip)).decode()


def save(
    path: PathLike,
    model: nn.Module,
    loader: Any,
    files: Sequence[PathLike],
    *,
    rows: int = 12,
    columns: int = 10,
    network: str = "teacher",
) -> None:
    """Finds the prototypes used most and the images nearest to each, and writes them to an npz file.

    Ties go to the smaller number, of a prototype as of an image, so the same model and images give the same file.

    Args:
        path: of the file: "prototypes", "counts", "purity", "majority" (R,), the last the most frequent class;
            "tiles" (R, C), numbers of images in the loader's order, with their "similarities", "labels" and
            "members", whether the image is assigned to the prototype; "files" (R, C), their paths.
        model: CARP.
        loader: gives (images, labels), always in the same order.
        files: path of each image in that order.
        rows: R, at most; prototypes that no image is assigned to are not shown.
        columns: C, at most.
        network: "teacher" or "student", with its projector and prototypes.

    Raises:
        UserError: a model without prototypes, an unknown network, or another number of images than files.
    """
    if rows < 1 or columns < 1:
        raise UserError(
            f"a gallery needs at least one row and one column, got rows={rows}, columns={columns}."
        )
    embeddings, labels = _embed(model, loader, network)
    if len(embeddings) != len(files):
        raise UserError(
            f"the gallery was given {len(files)} files for {len(embeddings)} images; give one for each, in order."
        )
    prototypes = _parts(model, network)[2].to(embeddings.device)
    chosen = choose(embeddings, prototypes, labels, rows, columns)
    names = np.array([str(file) for file in files])[chosen["tiles"]]
    np.savez_compressed(path, **chosen, files=names)  # type: ignore[arg-type]


def choose(
    embeddings: torch.Tensor,
    prototypes: torch.Tensor,
    labels: NDArray[np.int64],
    rows: int,
    columns: int,
    chunk: int = 256,
) -> Dict[str, NDArray]:
    """The tensors behind :func:`save`, which names what is returned.

    Args:
        embeddings: (N, D).
        prototypes: (K, D), as the loss takes them.
        labels: (N,).
        rows: prototypes, at most.
        columns: images of each, at most.
        chunk: images whose K logits are in memory at once.
    """
    assigned = np.concatenate(
        [(part @ prototypes.T).argmax(dim=1).cpu().numpy() for part in embeddings.split(chunk)]
    )
    counts = np.bincount(assigned, minlength=len(prototypes))
    order = np.argsort(-counts, kind="stable")[:rows]
    order = order[counts[order] > 0]
    directions = F.normalize(prototypes[torch.from_numpy(order).to(prototypes.device)], dim=-1)
    similarity = (F.normalize(embeddings, dim=-1) @ directions.T).T.cpu().numpy()
    tiles = np.argsort(-similarity, axis=1, kind="stable")[:, :columns]
    classes = [np.bincount(labels[assigned == prototype]) for prototype in order]
    return {
        "prototypes": order,
        "counts": counts[order],
        "purity": np.array([c.max() / c.sum() for c in classes]),
        "majority": np.array([int(c.argmax()) for c in classes]),
        "tiles": tiles,
        "similarities": np.take_along_axis(similarity, tiles, axis=1),
        "labels": labels[tiles],
        "members": assigned[tiles] == order[:, None],
    }


def _parts(model: nn.Module, network: str) -> Tuple[nn.Module, nn.Module, torch.Tensor]:
    """Backbone, projector and prototypes (K, D) of one network."""
    if network not in ("teacher", "student"):
        raise UserError(
            f"network={network} is unknown; a gallery shows the 'teacher' or the 'student'."
        )
    prefix = "momentum_" if network == "teacher" else ""
    prototypes: Any = getattr(model, "prototypes", None)
    if prefix and hasattr(model, "momentum_prototypes"):
        prototypes = model.momentum_prototypes
    found = [getattr(model, prefix + name, None) for name in ("backbone", "projector")]
    if not callable(prototypes) or None in found or getattr(prototypes, "normalize", None) is None:
        raise UserError(
            f"a gallery shows the prototypes of CARP; {type(model).__name__} has none, leave the gallery out."
        )
    with torch.no_grad():
        rows: torch.Tensor = prototypes().detach()
    return found[0], found[1], rows  # type: ignore[return-value]


@torch.no_grad()
def _embed(model: nn.Module, loader: Any, network: str) -> Tuple[torch.Tensor, NDArray[np.int64]]:
    """Embeddings (N, D) in float32 and labels (N,); the model's mode is restored."""
    backbone, projector, prototypes = _parts(model, network)
    device = prototypes.device
    modes = [(part, part.training) for part in (backbone, projector)]
    embeddings, labels = [], []
    try:
        for part, _ in modes:
            part.eval()
        title = f"gallery of the {network}"
        for images, targets in track(
            loader, description=title, disable=not sys.stdout.isatty(), transient=True
        ):
            embeddings.append(projector(backbone(images.to(device))).float())
            labels.append(targets.numpy())
    finally:
        for part, training in modes:
            part.train(training)
    if not embeddings:
        raise UserError("a gallery needs images, but the loader gives none.")
    if not all(part.isfinite().all() for part in embeddings):
        raise UserError(
            f"the {network}'s embeddings are not finite: this model has broken down, and a gallery would mean nothing."
        )
    return torch.cat(embeddings), np.concatenate(labels).astype(np.int64)


def read(
    path: PathLike, size: int = 64, files: Union[Sequence[PathLike], None] = None
) -> List[Row]:
    """The rows of a saved gallery.

    Args:
        path: what :func:`save` wrote.
        size: edge of an image in pixels; small images grow by a whole factor with sharp pixels, large ones shrink.
        files: path of every image of the loader, where they have moved since; by default the saved paths.

    Raises:
        UserError: the file is missing, torn or of something else, or an image cannot be read.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            saved = {key: arrays[key] for key in (*_KEYS, "files")}
    except Exception as error:  # zipfile, zlib, numpy and the system each have their own
        raise UserError(
            f"the gallery {path} cannot be read ({' '.join(str(error).split())}); make it again."
        ) from error
    rows = []
    for i, prototype in enumerate(saved["prototypes"]):
        names = saved["files"][i] if files is None else [files[tile] for tile in saved["tiles"][i]]
        strip = _strip([_tile(name, size) for name in names], saved["members"][i], size)
        count, purity = int(saved["counts"][i]), float(saved["purity"][i])
        rows.append(Row(int(prototype), count, purity, strip, saved["labels"][i].tolist()))
    return rows


def render(path: PathLike, files: Union[Sequence[PathLike], None] = None, size: int = 64) -> bytes:
    """A saved gallery as one PNG on white, a caption above each row; the same gallery gives the same bytes.

    Args:
        path: what :func:`save` wrote.
        files: as :func:`read` takes them.
        size: edge of an image in pixels.

    Raises:
        UserError: as :func:`read`.
    """
    rows = read(path, size, files)
    height = rows[0].strip.height + _CAPTION + _GAP
    width = max(max(row.strip.width for row in rows), 300)
    grid = Image.new("RGB", (width, height * len(rows)), "white")
    pen = ImageDraw.Draw(grid)
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 13
    )
    for i, row in enumerate(rows):
        pen.text((_FRAME, i * height + 2), row.caption, fill=_INK, font=font)
        grid.paste(row.strip, (0, i * height + _CAPTION), row.strip)
    return _png(grid)


def _tile(file: PathLike, size: int) -> Image.Image:
    """An image as a square of the wanted size, cut to its centre."""
    try:
        stored = image_at(str(file))
        image = stored if stored is not None else _opened(file)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else "it is no image"
        raise UserError(
            f"the image {file} of the gallery cannot be read ({reason}); put it back, or make the gallery again."
        ) from error
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    if edge <= size:
        factor = size // edge
        image = image.resize((edge * factor, edge * factor), Image.Resampling.NEAREST)
        square = Image.new("RGB", (size, size), "white")
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return square
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _opened(file: PathLike) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


def _strip(tiles: Sequence[Image.Image], members: NDArray[np.bool_], size: int) -> Image.Image:
    """Images side by side on nothing, so that any background shows between them; members are framed."""
    cell = size + 2 * _FRAME
    strip = Image.new("RGBA", (len(tiles) * (cell + _GAP) - _GAP, cell), (0, 0, 0, 0))
    for i, (tile, member) in enumerate(zip(tiles, members)):
        left = i * (cell + _GAP)
        if member:
            strip.paste(_FRAME_COLOUR, (left, 0, left + cell, cell))
        strip.paste(tile, (left + _FRAME, _FRAME))
    return strip


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
