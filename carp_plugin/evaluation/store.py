"""Features of labelled images: computed once, in float32 or as unit rows in half precision, in memory or in a file."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from rich.progress import track
from torch.utils.data import DataLoader

from carp_plugin.data.images import named_images
from carp_plugin.errors import UserError
from carp_plugin.training.callbacks.history import write_json


class Features(NamedTuple):
    """Features of a labelled set of images.

    Attributes:
        feats: (N, F) float32 or, from :func:`stream`, float16 on the CPU.
        targets: (N,) int64.
    """

    feats: torch.Tensor
    targets: torch.Tensor


@torch.no_grad()
def extract(
    backbone: nn.Module, loader: DataLoader, device: torch.device, title: str = ""
) -> Features:
    """Features of every image of a loader, with the backbone in evaluation mode.

    Args:
        backbone: images (N, 3, H, W) to features (N, F); its mode is restored afterwards.
        loader: gives (images, labels).
        device: where to compute; the backbone is there already.
        title: shown before the progress bar; no bar where it is empty, or without a terminal.

    Returns:
        Features: float32, in the loader's order.
    """
    feats, targets = [], []
    with _evaluating(backbone):
        for images, labels in _progress(loader, title):
            images = images.to(device, type_of(backbone), non_blocking=True)
            feats.append(backbone(images).float().cpu())
            targets.append(labels)
    return Features(torch.cat(feats), torch.cat(targets))


@torch.no_grad()
def stream(
    networks: Mapping[str, Tuple[nn.Module, Mapping[str, nn.Module]]],
    loader: DataLoader,
    device: torch.device,
    title: str = "",
    folder: Optional[Path] = None,
    dtype: torch.dtype = torch.float16,
) -> Dict[str, Features]:
    """Unit rows of several networks, in half precision, in one pass over the images.

    Rows are l2-normalised in float32 and then rounded to float16, that is to 11 significant bits: a cosine
    similarity moves by less than 2^-10, typically by 1e-5, once the rows are brought to unit length again in float32.
    A query whose votes are nearly tied can thereby change its class against float32 features; the fewer the
    dimensions, and the more alike the features, the likelier.

    Args:
        networks: name -> (backbone, heads): the backbone takes images (N, 3, H, W) to features (N, F), each head
            those to features (N, D); ``nn.Identity`` stands for the backbone's own. On ``device`` already.
        loader: gives (images, labels).
        device: where to compute.
        title: as for :func:`extract`.
        folder: where to keep the rows as ``name-head.npy``, which are then mapped into memory, not held there; None
            holds them in memory.
        dtype: float16, or float32 to keep every bit: features of small data, or of networks that tell images apart by
            less than half precision can hold, as random ones do.

    Returns:
        Dict[str, Features]: of ``dtype``, under ``"name/head"``, in the loader's order.

    Raises:
        UserError: the folder cannot be made or a file not be written.
    """
    total = len(loader.dataset)  # type: ignore[arg-type]
    modules = [
        module for backbone, heads in networks.values() for module in (backbone, *heads.values())
    ]
    targets: List[torch.Tensor] = []
    rows: Dict[str, _Rows] = {
        f"{name}/{head}": _Rows(total, dtype, folder and folder / f"{name}-{head}.npy")
        for name, (_, heads) in networks.items()
        for head in heads
    }
    try:
        with _evaluating(*modules):
            for images, labels in _progress(loader, title):
                images = images.to(device, non_blocking=True)
                for name, (backbone, heads) in networks.items():
                    feats = backbone(images.to(type_of(backbone)))
                    for head, module in heads.items():
                        unit = F.normalize(module(feats).float().flatten(1))
                        rows[f"{name}/{head}"].append(unit.to(dtype).cpu())
                targets.append(labels)
        labels = torch.cat(targets)
        return {key: Features(row.finish(), labels) for key, row in rows.items()}
    except OSError as error:
        raise UserError(
            f"the features cannot be written to {folder} ({error.strerror}); make room or give another folder."
        ) from error
    finally:
        for row in rows.values():
            row.discard()


def image_names(loader: DataLoader) -> List[str]:
    """Paths of a loader's images in its order, or their numbers where images have no files of their own."""
    named = named_images(loader)
    total = len(loader.dataset)  # type: ignore[arg-type]
    return (named.files() if named else []) or [f"number {index}" for index in range(total)]


def class_names(loader: DataLoader, targets: Sequence[torch.Tensor]) -> List[str]:
    """Names of the classes in the order of the labels, or their numbers where the data set has no names.

    Args:
        loader: of (images, labels).
        targets: labels of all images, whose highest counts the classes where they have no names.
    """
    dataset: Any = loader.dataset
    names = getattr(
        getattr(dataset, "dataset", None), "classes", None
    )  # within what names bad images
    if names is None:
        names = range(1 + max(int(labels.max()) for labels in targets))
    return [str(name) for name in names]


def describe(folder: Path, loader: DataLoader, targets: torch.Tensor) -> None:
    """Writes whose rows lie in a folder: ``images.json`` with ``paths``, ``labels`` and ``classes``, in their order.

    Raises:
        UserError: it cannot be written.
    """
    content = {
        "paths": image_names(loader),
        "labels": targets.tolist(),
        "classes": class_names(loader, [targets]),
    }
    write_json(folder / "images.json", content)


class _Rows:
    """Collects N rows, in one tensor or in one .npy file that is there as a whole or not at all.

    The file is written, not mapped, while it grows: a full disk is then an error and not a crash.
    """

    def __init__(self, total: int, dtype: torch.dtype, path: Optional[Path]) -> None:
        self.total, self.dtype, self.path = total, dtype, path
        self.unfinished = path and path.with_name(f"{path.name}.{os.getpid()}.part")
        self.count = 0
        self.tensor: Optional[torch.Tensor] = None
        self.file: Optional[BinaryIO] = None

    def append(self, rows: torch.Tensor) -> None:
        if self.path is None or self.unfinished is None:
            if self.tensor is None:
                self.tensor = rows.new_empty(self.total, rows.shape[1])
            self.tensor[self.count : self.count + len(rows)] = rows
        else:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.unfinished, "wb")
                shape = (self.total, rows.shape[1])
                np.lib.format.write_array_header_1_0(
                    self.file, {"descr": self.kind, "fortran_order": False, "shape": shape}
                )
            self.file.write(rows.numpy().astype(self.kind, copy=False).tobytes())
        self.count += len(rows)

    @property
    def kind(self) -> str:
        """numpy's name of the type."""
        return "<f2" if self.dtype == torch.float16 else "<f4"

    def finish(self) -> torch.Tensor:
        if self.count != self.total:
            raise ValueError(f"expected {self.total} rows, one an image, got {self.count}")
        if self.path is None:
            return self.tensor if self.tensor is not None else torch.empty(0, 0)
        if self.file is not None and self.unfinished is not None:
            self.file.close()
            os.replace(self.unfinished, self.path)
        # Copy on write: torch wants memory that it may write to, and the file stays as it is.
        return torch.from_numpy(np.load(self.path, mmap_mode="c"))

    def discard(self) -> None:
        """Leaves nothing half-written behind."""
        if self.file is not None and self.unfinished is not None:
            self.file.close()
            self.unfinished.unlink(missing_ok=True)


def type_of(module: nn.Module) -> torch.dtype:
    """Of a module's weights, which its images must have too: 64-true and bf16-true convert it for good."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and each module's own mode afterwards."""
    before = {module: module.training for top in modules for module in top.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _progress(loader: DataLoader, title: str) -> Any:
    return track(
        loader, description=title, disable=not (title and sys.stdout.isatty()), transient=True
    )
